"""What all tests share."""

import os
from collections.abc import Iterator

import pytest

from altgrad_core.numerics.native import kernel_folder

# Many tests give each run a cache of its own; the kernel is not compiled anew for each.
os.environ.setdefault("ALTGRAD_KERNEL_CACHE", str(kernel_folder()))


@pytest.fixture(scope="session", autouse=True)
def no_wandb_account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reaches the W&B server or the account of whoever runs it, or leaves files outside of its own folder."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
            patch.setenv(f"WANDB_{name}_DIR", str(folder))
        patch.setenv("NETRC", str(folder / "netrc"))
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        patch.setenv("WANDB_MODE", "offline")
        yield
