"""What tests of the numerics share: the kernel that casts on the CPU, chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from altgrad_core.numerics import native


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Run on one thread but where a test says otherwise: on a busy machine each of the many small operations that torch
    shares out waits for the slower thread, some 40 times as long as it computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Return a function that sets the number of threads for the rest of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def loaded_kernel() -> native.KernelStatus:
    """Return what comes of loading the native kernel, which starts a compiler to ask for its version: once."""
    native.status.cache_clear()
    return native.status()


@pytest.fixture
def use_kernel(loaded_kernel: native.KernelStatus, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Return a function that switches to the ``native`` kernel or to ``torch``."""
    monkeypatch.setattr(native, "_load", lambda: loaded_kernel)

    def use(name: str) -> None:
        monkeypatch.setenv("ALTGRAD_KERNEL", name)
        native.status.cache_clear()

    yield use
    monkeypatch.undo()
    native.status.cache_clear()


@pytest.fixture
def kernel(loaded_kernel: native.KernelStatus, use_kernel: Callable[[str], None]) -> Callable[[str], None]:
    """Return ``use_kernel``; skips where there is no native kernel to compare with."""
    if not loaded_kernel.native:
        pytest.skip(f"no native kernel to compare with: {loaded_kernel.reason}")
    return use_kernel


@pytest.fixture
def kernels(loaded_kernel: native.KernelStatus, use_kernel: Callable[[str], None]) -> Callable[[], Iterator[str]]:
    """Return a function that goes through the kernels of this machine, switching to each."""

    def each() -> Iterator[str]:
        for name in ("native", "torch") if loaded_kernel.native else ("torch",):
            use_kernel(name)
            yield name

    return each


@pytest.fixture(params=["native", "torch"])
def each_kernel(
    request: pytest.FixtureRequest, loaded_kernel: native.KernelStatus, use_kernel: Callable[[str], None]
) -> None:
    """Run the test once with each kernel of this machine."""
    if request.param == "native" and not loaded_kernel.native:
        pytest.skip(f"no native kernel: {loaded_kernel.reason}")
    use_kernel(request.param)
