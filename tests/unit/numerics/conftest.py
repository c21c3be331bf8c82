"""What tests of the numerics share: the kernel that casts on the CPU, chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from altgrad_core.numerics import native


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Return a function that switches to the ``native`` kernel (skips where there is none) or to ``torch``."""
    if not native.status().native:
        pytest.skip(f"no native kernel to compare with: {native.status().reason}")

    def use(name: str) -> None:
        monkeypatch.setenv("ALTGRAD_KERNEL", name)
        native.status.cache_clear()

    yield use
    monkeypatch.undo()
    native.status.cache_clear()


@pytest.fixture(params=["native", "torch"])
def each_kernel(request: pytest.FixtureRequest, kernel: Callable[[str], None]) -> str:
    """Run the test with each kernel."""
    kernel(request.param)
    return str(request.param)
