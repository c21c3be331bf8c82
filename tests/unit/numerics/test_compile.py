"""Eager and compiled casts agree bit for bit, in one graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from altgrad_core.numerics import FloatFormat, get_format
from altgrad_core.numerics.amax import tensor_amax
from altgrad_core.numerics.cast import cast, quantize
from altgrad_core.numerics.scaling import scale_for
from altgrad_core.testing.formats import assert_same
from altgrad_core.testing.strategies import landmarks

# The compiler's own imports warn.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(function: Callable[..., object]) -> Callable[..., object]:
    return torch.compile(function, fullgraph=True, dynamic=True)


@pytest.mark.parametrize("name", ["e5m2", "e4m3fn", "e4m3fnuz", "e7m0", "e0m7", "e8m3", "bf16", "e8m0fnuz", "e5m22"])
def test_quantize(name: str) -> None:
    f = get_format(name)
    assert isinstance(f, FloatFormat)
    x = landmarks(f)
    for scale in (1.0, torch.tensor(0.3)):
        run = compiled(lambda t, s: quantize(t, f, scale=s)) if isinstance(scale, Tensor) else None
        got = run(x, scale) if run else compiled(lambda t: quantize(t, f))(x)
        assert_same(got, quantize(x, f, scale=scale), x)
    halves = x.bfloat16()
    assert_same(compiled(lambda t: quantize(t, f))(halves), quantize(halves, f), halves)


@pytest.mark.parametrize("saturation", ["propagate", "none"])
def test_saturation(saturation: str) -> None:
    f = get_format("e5m2")
    assert isinstance(f, FloatFormat)
    x = landmarks(f)
    got = compiled(lambda t: quantize(t, f, saturation=saturation))(x)
    assert_same(got, quantize(x, f, saturation=saturation), x)


def test_scaling_cast_and_statistics_in_one_graph() -> None:
    f = get_format("e4m3fn")

    def step(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale = scale_for(tensor_amax(x), f, power_of_two=True, margin=0)
        q, statistics = cast(x, f, scale=scale, statistics=True)
        return scale, q, statistics

    x = torch.randn(40, 257, generator=torch.Generator().manual_seed(0)) * 1e-3
    scale, q, statistics = step(x)
    got_scale, got_q, got_statistics = compiled(step)(x)
    assert torch.equal(got_scale, scale)
    assert torch.equal(got_q, q)
    assert torch.allclose(got_statistics, statistics, rtol=1e-6)
