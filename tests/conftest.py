"""What all tests share."""

import os

from altgrad_core.numerics.native import kernel_folder

# Many tests give each run a cache of its own; the kernel is not compiled anew for each.
os.environ.setdefault("ALTGRAD_KERNEL_CACHE", str(kernel_folder()))
