"""What the benchmarks share: naming the machine, keeping freed memory, choosing AltGrad's kernel."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

import torch

from altgrad_core.numerics import native

KERNELS = ("native", "torch")


def keep_freed_memory() -> bool:
    """Stop glibc from returning large blocks to the system, which would fault every page in again each time; False
    where there is no glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    return bool(mallopt(-4, 0) and mallopt(-1, 2**31 - 1) and mallopt(-2, 512 << 20))


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, object]:
    """Return what a figure depends on."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "kernels": kernel_digest(),
        **{name: importlib.metadata.version(name) for name in ("altgrad", "torch", "numpy", "ml_dtypes", "gfloat")},
    }


def kernel_digest() -> str:
    """Return the beginning of a hash of what rounds, sources and flags: results with another one are of other code."""
    folder, digest = Path(native.__file__).parent, hashlib.sha256(repr(native._FLAGS).encode())
    names = ("native_cast.py", "native_kinds.py", "kernel.py", "roundings.py")
    for path in (*sorted(folder.rglob("*.cpp")), *sorted(folder.rglob("*.h")), *(folder / name for name in names)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def use_kernel(name: str) -> None:
    """Cast with the ``native`` kernel or with ``torch``'s operations from here on."""
    if os.environ.get("ALTGRAD_KERNEL") != name:
        os.environ["ALTGRAD_KERNEL"] = name
        native.status.cache_clear()


def has_native_kernel() -> bool:
    """Tell whether this machine can have the native kernel."""
    use_kernel("auto")
    return native.status().native
