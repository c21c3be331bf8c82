"""Eager and compiled casts agree bit for bit, in one graph: through the compiler's own code, and the kernel's operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from altgrad_core.numerics import FloatFormat, TableFormat, get_format
from altgrad_core.numerics.amax import tensor_amax
from altgrad_core.numerics.blocks import MX_MODES, mx_scale, nvfp4_scales
from altgrad_core.numerics.cast import cast, quantize
from altgrad_core.numerics.codes import decode, encode, neighbours, ordinal, ulp
from altgrad_core.numerics.scaling import scale_for
from altgrad_core.numerics.stochastic import Draw
from altgrad_core.testing.exact import assert_same
from altgrad_core.testing.strategies import landmarks

# The compiler's own imports warn.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(autouse=True)
def _fresh_compiler(each_kernel: None) -> Iterator[None]:
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


@pytest.mark.parametrize("dynamic", [True, False])
def test_numbers_as_scales_are_float32_numbers(dynamic: bool) -> None:
    """Of float64 input, too: a compiler that fills in 0.1 as float32 multiplies float64 numbers with 0.1 unrounded."""
    f = get_format("e4m3fn")
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3

    def run(t: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        multiplied, _ = cast(t, f, scale=2.0, multiplier=scale, dtype=torch.float64)
        return quantize(t, f, scale=scale), cast(t, f, scale=scale, dtype=torch.float64)[0], multiplied

    got = torch.compile(run, fullgraph=True, dynamic=dynamic)(x, 0.1)
    for mine, expected in zip(got, run(x, 0.1), strict=True):
        assert_same(mine, expected, x)


@pytest.mark.parametrize("name", ["e4m3fn", "posit8", "nf4", "takum8"])
def test_codes(name: str) -> None:
    f = get_format(name)
    assert isinstance(f, FloatFormat | TableFormat)
    x = landmarks(f)
    x = x[~torch.isnan(x)]
    codes = torch.arange(2**f.bits, dtype=torch.int16)

    def run(x: Tensor, codes: Tensor, scale: float) -> list[Tensor]:
        there = encode(x, f, scale=scale, nan_code=0)
        return [there, decode(codes, f, scale=scale), ulp(x, f, scale=scale), ordinal(codes, f), *neighbours(x, f)]

    for got, expected in zip(compiled(run)(x, codes, 0.3), run(x, codes, 0.3), strict=True):
        assert got.dtype is expected.dtype
        assert_same(got.double(), expected.double(), expected)


@pytest.mark.parametrize("name", ["e4m3fn", "e2m1fn", "posit8", "takum8"])
def test_scales_of_blocks(name: str) -> None:
    f = get_format(name)
    amax = torch.rand(300, generator=torch.Generator().manual_seed(0)) * 2.0 ** torch.arange(-150, 150)

    def run(amax: Tensor) -> list[Tensor]:
        return [*(mx_scale(amax, f, mode) for mode in MX_MODES), *nvfp4_scales(amax, amax.amax(), element=f)]

    for got, expected in zip(compiled(run)(amax), run(amax), strict=True):
        assert_same(got, expected, expected)


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 9, 2**64 + 1, 3**100, -(3**100)])
def test_seeds_of_any_size(seed: int) -> None:
    """More bits than an operator's integers have; a new step or seed of the same size is no new graph."""
    f, x = get_format("e4m3fn"), torch.linspace(-3, 3, 1000)
    counter = CompileCounter()

    def run(t: Tensor, draw: Draw) -> Tensor:
        return quantize(t, f, rounding="stochastic", draw=draw)

    function = torch.compile(run, fullgraph=True, dynamic=True, backend=counter)
    for further in range(3):
        draw = Draw(seed=seed + further, step=2**40 + further, name="x")
        assert torch.equal(function(x, draw), run(x, draw))
    assert counter.frame_count == 1


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
