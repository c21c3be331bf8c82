"""What ``cast`` and ``quantize`` accept, refuse and promise beyond the values, which the conformance suite checks."""

from __future__ import annotations

import math
import re

import pytest
import torch

from altgrad_core.errors import AltgradError
from altgrad_core.numerics import FloatFormat, get_format
from altgrad_core.numerics import cast as cast_module
from altgrad_core.numerics.cast import cast, inverse_scale, quantize
from altgrad_core.numerics.kernel import grid_of, path_of
from altgrad_core.numerics.stochastic import Draw
from altgrad_core.testing.exact import assert_same, search_table
from altgrad_core.testing.strategies import landmarks

INF, NAN = math.inf, math.nan


def values(format: str | FloatFormat, x: list[float], **options: object) -> list[float]:
    return quantize(torch.tensor(x), format, **options).tolist()


@pytest.mark.parametrize(
    ("format", "saturation", "expected"),
    [
        # x = 464 463.9 465 1e9 Inf
        ("e4m3fn", "finite", [448, 448, 448, 448, 448]),
        ("e4m3fn", "propagate", [448, 448, 448, 448, 448]),
        ("e4m3fn", "none", [448, 448, NAN, NAN, NAN]),
        ("e4m3", "none", [INF, INF, INF, INF, INF]),
        ("e4m3", "propagate", [240, 240, 240, 240, INF]),
        ("e4m3f", "finite", [448, 448, 480, 480, 480]),
        ("e4m3f", "none", [448, 448, 480, 480, 480]),
        ("e5m2", "none", [448, 448, 448, INF, INF]),
        ("bf16", "propagate", [464, 464, 464, 1e9, INF]),
    ],
)
def test_saturation(format: str, saturation: str, expected: list[float]) -> None:
    x = torch.tensor([464, 463.9, 465, 1e9, INF])
    if format == "bf16":
        expected = x.bfloat16().tolist()
    got = quantize(x, format, saturation=saturation)
    assert_same(got, torch.tensor(expected), x)
    assert_same(quantize(-x, format, saturation=saturation), -torch.tensor(expected), -x)


@pytest.mark.parametrize(
    ("format", "inside", "outside"),
    [("e5m2", 61439.996, 61440.0), ("e4m3fn", 464.0, 464.00003), ("e3m4", 15.749999, 15.75)],
)
def test_overflow_is_decided_after_rounding(format: str, inside: float, outside: float) -> None:
    f = get_format(format)
    assert isinstance(f, FloatFormat)
    got = values(format, [inside, outside], saturation="none")
    assert got[0] == f.max_finite
    assert not math.isfinite(got[1])


def test_ties_go_to_the_even_code_where_that_depends_on_the_bias() -> None:
    assert values("e7m0f", [1.5, 3.0, 6.0, -1.5, -3.0]) == [2, 2, 8, -2, -2]
    even = FloatFormat(name="even", exponent_bits=7, mantissa_bits=0, bias=64, specials="none")
    assert values(even, [1.5, 3.0, 6.0, -1.5, -3.0]) == [1, 4, 4, -1, -4]


def test_zeros_and_nan() -> None:
    tiny = -(2.0**-20)
    for format, sign in [
        ("e5m2", -1.0),
        ("e4m3fn", -1.0),
        ("e0m7", -1.0),
        ("e7m0", -1.0),
        ("bf16", -1.0),
        ("e4m3fnuz", 1.0),
    ]:
        got = values(format, [-0.0, tiny if format != "bf16" else -1e-45, NAN])
        assert got[0] == 0
        assert math.copysign(1.0, got[0]) == sign
        assert got[1] == 0 or format == "e7m0"
        assert math.copysign(1.0, got[1]) == sign
        assert math.isnan(got[2])


@pytest.mark.parametrize("payload", [0x7F800001, 0x7FC00000, 0x7FFFFFFF, -1, -0x7FFFFF])
@pytest.mark.parametrize("format", ["e5m2", "e7m0", "e8m3", "fp32", "bf16", "e5m22", "e0m7"])
def test_every_kind_of_nan_stays_nan(format: str, payload: int) -> None:
    x = torch.tensor([payload], dtype=torch.int32).view(torch.float32)
    assert torch.isnan(x).all()
    for saturation in ("finite", "propagate", "none"):
        assert torch.isnan(quantize(x, format, saturation=saturation)).all()


def test_unsigned_formats_have_nothing_below_zero() -> None:
    f = FloatFormat(name="u", exponent_bits=4, mantissa_bits=4, signed=False)
    assert f.bits == 8
    x = [-0.0, -(2.0**-12), -1.0, -INF, 1.0, INF]
    assert values(f, x) == [0, 0, 0, 0, 1, f.max_finite]
    assert math.copysign(1.0, values(f, x)[0]) == 1.0
    assert_same(
        quantize(torch.tensor(x), f, saturation="none"), torch.tensor([0, 0, NAN, NAN, 1, INF]), torch.tensor(x)
    )
    assert values(f, x, saturation="propagate") == [0, 0, 0, 0, 1, INF]


@pytest.mark.parametrize(
    ("format", "path"),
    [
        ("e5m2", "float32"),
        ("e4m3b11fnuz", "float32"),
        ("e7m0f", "float32"),
        ("fp16", "float32"),
        ("e2m21", "float32"),
        ("bf16", "integers"),
        ("fp32", "integers"),
        ("e8m3", "integers"),
        ("e8m3fnuz", "float64"),
        ("e5m22", "float64"),
    ],
)
def test_each_way_of_rounding_has_its_formats(format: str, path: str) -> None:
    f = get_format(format)
    assert isinstance(f, FloatFormat)
    assert path_of(grid_of(f), torch.float32) == path
    assert path_of(grid_of(f), torch.float64) == "float64"


def spread() -> list[str]:
    """Names over all exponent widths and suffixes, less those that float32 cannot hold."""
    impossible = {"e0m0", "e0m0fn", "e0m0fnuz", "e0m0f", "e8m0"}
    names = [f"e{e}m{m}{suffix}" for e in range(9) for m in (0, 1, 3, 6, 9) for suffix in ("", "fn", "fnuz", "f")]
    full_range = re.compile("e8m.+(fn|f)")
    return [name for name in names if name not in impossible and not full_range.fullmatch(name)]


@pytest.mark.parametrize("format", spread())
def test_a_spread_of_names_against_a_table(format: str) -> None:
    f = get_format(format)
    assert isinstance(f, FloatFormat)
    x = landmarks(f)
    assert_same(quantize(x, f), search_table(x, f), x)


def test_cast_returns_grid_values_not_multiplied_back() -> None:
    q, statistics = cast(torch.tensor([0.5, 1.5, 3.1]), "e2m1fn", scale=0.5)
    assert statistics is None
    assert q.dtype is torch.bfloat16
    assert q.tolist() == [1, 3, 6]
    assert values("e2m1fn", [0.5, 1.5, 3.1], scale=0.5) == [0.5, 1.5, 3.0]
    assert cast(torch.ones(2), "fp16")[0].dtype is torch.float32
    assert cast(torch.ones(2), "e5m2", dtype=torch.float64)[0].dtype is torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 4)])
def test_dtype_and_shape_are_kept(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.linspace(-3, 3, math.prod(shape)).reshape(shape).to(dtype)
    q = quantize(x, "e4m3fn", scale=torch.tensor(2.0))
    assert q.dtype is dtype
    assert q.shape == x.shape
    expected = quantize(x.double(), "e4m3fn", scale=2.0)
    assert_same(q, expected, x)
    q, vector = cast(x, "e4m3fn", statistics=True)
    assert q.shape == x.shape
    assert vector is not None
    assert vector[0] == x.numel()


def test_bfloat16_cannot_hold_all_that_it_is_cast_to() -> None:
    x = torch.tensor([1e5], dtype=torch.bfloat16)
    assert quantize(x, "fp16").item() == 65536.0
    assert cast(x, "fp16")[0].item() == 65504.0


def test_chunks_and_whole_tensors_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0)) * 300
    expected, vector = cast(x, "e4m3fn", scale=0.7, dtype=torch.float32, statistics=True)
    monkeypatch.setattr(cast_module, "CHUNK", 7)
    for view in (x, x.bfloat16().float()):
        got, chunked = cast(view, "e4m3fn", scale=0.7, dtype=torch.float32, statistics=True)
        if view is x:
            assert torch.equal(got, expected)
            assert torch.allclose(chunked, vector, rtol=1e-5)
    assert torch.equal(quantize(x.t(), "e4m3fn", scale=0.7), quantize(x, "e4m3fn", scale=0.7).t())


def test_gradients_neither_flow_nor_break() -> None:
    x = torch.randn(5, requires_grad=True)
    assert not quantize(x, "e5m2", scale=torch.tensor(2.0, requires_grad=True)).requires_grad
    assert not cast(x, "e5m2", statistics=True)[1].requires_grad


def test_a_scale_is_inverted_once_in_float64() -> None:
    for scale in (0.3, 77.7, 1e-3, 2.0**-126, 2.0**126):
        held = torch.tensor(scale)
        expected = torch.tensor(1.0 / held.double().item(), dtype=torch.float32)
        assert inverse_scale(scale) == expected.item()
        assert torch.equal(inverse_scale(held), expected)
        x = torch.randn(999) * scale
        assert torch.equal(quantize(x, "e4m3fn", scale=scale), quantize(x, "e4m3fn", scale=held))


@pytest.mark.parametrize("scale", [0.0, -1.0, NAN, INF, 1e-46, 1e39, 1e-39, 10**400, "2", None, 1j])
def test_useless_scales_are_refused(scale: object) -> None:
    with pytest.raises(AltgradError, match="scale is a positive number"):
        quantize(torch.ones(2), "e5m2", scale=scale)


@pytest.mark.parametrize("scale", [0.0, -1.0, NAN, INF])
def test_useless_scale_tensors_are_not_checked_and_do_not_crash(scale: float) -> None:
    q, vector = cast(torch.ones(2), "e5m2", scale=torch.tensor(scale), statistics=True)
    assert q.shape == (2,)
    assert vector[0] == 2


def test_what_a_cast_refuses() -> None:
    x = torch.ones(2)
    with pytest.raises(AltgradError, match=r"got a tensor of shape \[2\]"):
        quantize(x, "e5m2", scale=torch.ones(2))
    with pytest.raises(AltgradError, match=r"floating-point tensor, got torch.int64"):
        quantize(torch.arange(3), "e5m2")
    with pytest.raises(AltgradError, match=r"Unknown rounding 'upp'. Did you mean 'up'\?.*nearest_even"):
        quantize(x, "e5m2", rounding="upp")
    with pytest.raises(AltgradError, match=r"pass draw=Draw\(seed="):
        quantize(x, "e5m2", rounding="stochastic")
    with pytest.raises(AltgradError, match=r"draw is a Draw, which names the random bits, got 1; pass draw=Draw\("):
        quantize(x, "e5m2", rounding="stochastic", draw=1)
    for wrong in (33, 0, 3.0):
        with pytest.raises(AltgradError, match=rf"random_bits is an integer from 1 to 32, got {wrong}"):
            quantize(x, "e5m2", rounding="stochastic", draw=Draw(seed=0), random_bits=wrong)
    with pytest.raises(AltgradError, match=r"blocks of 1 x 2 a tensor of shape \[2\] needs a scale of shape \[1, 1\]"):
        quantize(x, "e5m2", scale=0.5, block=(1, 2))
    for block in ((0, 2), (1, 2, 3), (1, 2.0), 2):
        with pytest.raises(AltgradError, match=re.escape(f"A block is (rows, columns), both at least 1, got {block}")):
            quantize(x, "e5m2", scale=torch.ones(1, 1), block=block)
    for many in (torch.ones(2), torch.ones(1, 1)):
        with pytest.raises(AltgradError, match=r"multiplier is a number or a 0-d tensor unless block="):
            cast(x, "e5m2", multiplier=many)
    with pytest.raises(AltgradError, match=r"A cast takes a dense tensor, got a tensor of layout torch.sparse_coo"):
        quantize(torch.eye(2).to_sparse(), "e5m2")
    with pytest.raises(AltgradError, match=r"torch.float8_e5m2 would round the result once more; pass x.float\(\)"):
        quantize(x.to(torch.float8_e5m2), "e4m3fn")
    assert cast(x.to(torch.float8_e5m2), "e4m3fn")[0].tolist() == [1.0, 1.0]
    with pytest.raises(AltgradError, match=r"Unknown saturation 'infinite'. Did you mean 'finite'\?"):
        quantize(x, "e5m2", saturation="infinite")
    with pytest.raises(
        AltgradError, match=r"values of 'fp16' are held in float32 or float64, got dtype=torch.bfloat16"
    ):
        cast(x, "fp16", dtype=torch.bfloat16)
    with pytest.raises(AltgradError, match=r"held in bfloat16, float32 or float64, got dtype=torch.float16"):
        cast(x, "e5m2", dtype=torch.float16)
