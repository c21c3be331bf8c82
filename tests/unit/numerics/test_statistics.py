"""The statistics vector against a count one element at a time, in exact fractions."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from altgrad_core.numerics import FloatFormat, get_format
from altgrad_core.numerics import cast as cast_module
from altgrad_core.numerics.cast import cast, inverse_scale
from altgrad_core.numerics.kernel import grid_of
from altgrad_core.numerics.modes import SATURATIONS
from altgrad_core.numerics.reference import nearest_code
from altgrad_core.numerics.roundings import nearest_overflows
from altgrad_core.numerics.statistics import FIELDS, CastStatistics, combine, tensor_statistics
from altgrad_core.numerics.stochastic import Draw
from altgrad_core.testing.strategies import landmarks, tensors

FORMATS: list[str | FloatFormat] = ["e5m2", "e4m3fn", "e4m3fnuz", "e2m1fn", "e0m7", "e7m0", "bf16", "e3m4"]
FORMATS += [FloatFormat(name="u", exponent_bits=4, mantissa_bits=4, signed=False)]


def count(x: Tensor, format: FloatFormat, scale: float) -> dict[str, float]:
    """The definitions of ``altgrad_core.numerics.statistics``, slowly."""
    inverse = torch.tensor(inverse_scale(scale), dtype=torch.float32)
    scale = torch.tensor(scale, dtype=torch.float32).item()
    c = dict.fromkeys(FIELDS, 0.0)
    c["amin"] = math.inf
    signal = error = Fraction(0)
    for value, scaled in zip(x.double().flatten().tolist(), (x.float() * inverse).flatten().tolist(), strict=True):
        c["elements"] += 1
        c["nan"] += math.isnan(value)
        c["inf"] += math.isinf(value)
        size = abs(value)
        if not math.isfinite(value):
            continue
        c["amax"] = max(c["amax"], size)
        if size:
            c["amin"] = min(c["amin"], size)
        code = format.max_code + 1 if math.isinf(scaled) else nearest_code(abs(Fraction(scaled)), format)
        below_zero = not format.signed and scaled < 0
        c["overflow"] += code > 0 if below_zero else code > format.max_code
        code = 0 if below_zero else min(code, format.max_code)
        c["underflow"] += size > 0 and code == 0
        c["subnormal"] += 0 < code < 2**format.mantissa_bits and format.exponent_bits > 0
        signal += Fraction(value) ** 2
        error += (Fraction(math.copysign(format.magnitude(code), scaled)) * Fraction(scale) - Fraction(value)) ** 2
    c["signal_power"], c["error_power"] = float(signal), float(error)
    c["amin"] = 0.0 if math.isinf(c["amin"]) else c["amin"]
    return c


def check(x: Tensor, format: FloatFormat, scale: float, saturation: str = "finite") -> None:
    _, vector = cast(x, format, scale=scale, saturation=saturation, statistics=True)
    assert vector is not None
    assert vector.shape == (len(FIELDS),)
    assert vector.dtype is torch.float64
    expected = count(x, format, scale)
    got = dict(zip(FIELDS, vector.tolist(), strict=True))
    # An unsigned format's overflow below zero leaves zero in saturated results and NaN in others.
    if not format.signed and saturation == "none":
        expected.pop("underflow"), got.pop("underflow")
    signal, error = expected.pop("signal_power"), expected.pop("error_power")
    assert got.pop("signal_power") == pytest.approx(signal, rel=1e-5, abs=1e-300)
    assert got.pop("error_power") == pytest.approx(error, rel=1e-5, abs=1e-300)
    assert got == expected


def float_format(format: str | FloatFormat) -> FloatFormat:
    found = get_format(format)
    assert isinstance(found, FloatFormat)
    return found


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("scale", [1.0, 0.25, 0.3])
@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.filterwarnings("error")
def test_landmarks_counted_one_by_one(format: str | FloatFormat, scale: float) -> None:
    f = float_format(format)
    marks = landmarks(f)
    x = marks[:: max(1, len(marks) // 400)]
    check(x * scale, f, scale)
    finite = x[torch.isfinite(x)]
    check(finite[finite.abs() < 1e6] * scale, f, scale)  # no specials: the fast way
    check(finite[finite.abs() <= f.max_finite / 2] * scale, f, scale)


@pytest.mark.parametrize("format", FORMATS, ids=str)
@settings(deadline=None, max_examples=25, derandomize=True, database=None)
@given(data=st.data())
def test_any_tensor_counted_one_by_one(format: str | FloatFormat, data: st.DataObject) -> None:
    f = float_format(format)
    x = data.draw(tensors(f, dtype=data.draw(st.sampled_from([torch.float32, torch.bfloat16]))))
    scale = data.draw(st.sampled_from([1.0, 2.0**-6, 3.7]))
    check(x, f, scale, data.draw(st.sampled_from(SATURATIONS)))


@pytest.mark.usefixtures("each_kernel")
def test_ordinary_gradients_counted_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cast_module, "CHUNK", 300)
    x = torch.randn(1500, generator=torch.Generator().manual_seed(0)) * 1e-4
    x[::7] = 0.0
    x[5] = 3e-9
    for scale in (2.0**-20, 1e-7, 2.0**-24):
        check(x, float_format("e4m3fn"), scale)


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("format", ["e4m3fn", "e5m2", "e2m1fn", "e1m6f", "e5m10", "bf16", "fp32"])
@pytest.mark.parametrize("scale", [0.3, 1e-7, 0.99999994, 3e20])
def test_scales_that_are_no_powers_of_two(format: str, scale: float) -> None:
    """Good to five digits, also where next to nothing is lost: a tensor that was cast before, and rounded to float32."""
    f = float_format(format)
    x = torch.randn(250, generator=torch.Generator().manual_seed(1)) * (scale * min(f.max_finite, 100.0) / 3)
    check(x, f, scale)
    on_grid, _ = cast(x, f, scale=scale, multiplier=scale, dtype=torch.float32)
    check(on_grid, f, scale)
    check(torch.cat([x[:20], on_grid]), f, scale)


HUGE = [3.4028234663852886e38, -3.4028234663852886e38, 2.0**127, -1e30, 1e-30, 1.0, 0.0, math.inf, -math.inf, math.nan]


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [2.0**-126, 1e-38, 1e-3])
@pytest.mark.parametrize("format", ["e5m2", "e4m3fnuz", "e2m1fn", "bf16", "e8m3fnuz", "binary8p4ue"])
def test_a_finite_element_whose_quotient_is_infinite(format: str, scale: float, dtype: torch.dtype) -> None:
    """It overflows like any finite element: clamped unless the mode is none, counted, its error that of the last value."""
    f = float_format(format)
    x = torch.tensor(HUGE * 4, dtype=dtype)
    if dtype is torch.float64:
        x = torch.cat([x, torch.tensor([1.7e308, -1.7e308], dtype=dtype)])
    inverse = inverse_scale(scale)
    assert (torch.isinf((x if dtype is torch.float64 else x.float()) * inverse) & torch.isfinite(x)).any()
    beyond = torch.isfinite(x) & (x.double().abs() * inverse > 2.0**128)
    negative = torch.signbit(x)
    held = torch.float64 if dtype is torch.float64 else torch.float32
    rows = torch.full((1, 1), scale)
    for saturation, rounding in itertools.product(SATURATIONS, ("nearest_even", "toward_zero", "up", "stochastic")):
        options = {"saturation": saturation, "rounding": rounding, "draw": Draw(seed=1), "dtype": held}
        q, vector = cast(x, f, scale=scale, statistics=True, **options)
        in_block, of_block = cast(x, f, scale=rows, block=(1, x.numel()), statistics=True, **options)
        torch.testing.assert_close(in_block, q, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(of_block, vector, rtol=1e-6, atol=0)
        assert vector[FIELDS.index("overflow")] >= beyond.sum()
        assert vector[FIELDS.index("inf")] == torch.isinf(x).sum()
        inwards = {"toward_zero": torch.ones_like(negative), "up": negative}.get(rounding, torch.zeros_like(negative))
        clamped = beyond & (inwards if saturation == "none" and (f.has_inf or f.has_nan) else True)
        last = torch.full(x.shape, f.max_finite, dtype=held)
        last = torch.where(negative, -last if f.signed else torch.zeros_like(last), last)
        assert torch.equal(q[clamped], last[clamped])
        assert not q[beyond & ~clamped].isfinite().any()
        if saturation == "propagate" and f.has_inf and f.signed:
            assert torch.equal(q[torch.isinf(x)], x[torch.isinf(x)].to(held))
        finite = torch.isfinite(x)
        values = torch.where(torch.isfinite(q), q, last)[finite].double()
        lost = [Fraction(v) * Fraction(rows.item()) - Fraction(e) for v, e in zip(values.tolist(), x[finite].tolist())]
        power = sum(error * error for error in lost)
        if power < Fraction(2) ** 1000:  # float64 holds it
            assert vector[FIELDS.index("error_power")].item() == pytest.approx(float(power), rel=1e-5)


def test_the_fast_and_the_plain_way_agree() -> None:
    f = float_format("e4m3fn")
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(3)) * 150
    q, vector = cast(x, f, dtype=torch.float32, statistics=True)
    assert torch.allclose(vector, tensor_statistics(x, x, q, 1.0, nearest_overflows(x, x, grid_of(f)), f), rtol=1e-6)
    assert vector[FIELDS.index("overflow")] > 0


def test_huge_and_tiny_numbers_keep_their_powers() -> None:
    f = float_format("bf16")
    for size in (1e-30, 1e30):
        _, vector = cast(torch.full((8,), size), f, statistics=True)
        held = torch.tensor(size).double().item()
        assert vector[FIELDS.index("signal_power")].item() == pytest.approx(8 * held**2, rel=1e-12)
        assert 0 < vector[FIELDS.index("error_power")].item() < 8 * (held * 2**-8) ** 2


def test_an_empty_tensor_has_zeros() -> None:
    for x in (torch.empty(0), torch.empty(0, dtype=torch.float64)):
        _, vector = cast(x, "e5m2", statistics=True)
        assert vector.tolist() == [0.0] * len(FIELDS)


def test_combine_adds_counts_and_keeps_extremes() -> None:
    f = float_format("e4m3fn")
    parts = [torch.tensor([1.0, -2.0, 1e-9]), torch.tensor([0.0, 0.0]), torch.tensor([500.0, math.nan, 3e-3])]
    vectors = torch.stack([cast(part, f, statistics=True)[1] for part in parts])
    _, whole = cast(torch.cat(parts), f, statistics=True)
    assert torch.allclose(combine(vectors), whole, rtol=1e-6)
    assert torch.equal(combine(vectors[1:2]), vectors[1])


def test_counts_beyond_what_float32_can_count() -> None:
    x = torch.full((2**24 + 3,), 1e-5)
    _, vector = cast(x, "e4m3fn", statistics=True)
    statistics = CastStatistics.from_values(vector.tolist())
    assert statistics.elements == statistics.underflow == 2**24 + 3
    many = combine(torch.stack([vector] * 5))
    assert many[FIELDS.index("underflow")] == 5 * (2**24 + 3)


def test_rates() -> None:
    _, vector = cast(torch.tensor([1000.0, 1.0, 1e-9, 0.0]), "e4m3fn", statistics=True)
    statistics = CastStatistics.from_values(vector.tolist())
    assert statistics.overflow_rate == 0.25
    assert statistics.underflow_rate == 0.25
    assert statistics.sqnr_db == pytest.approx(10 * math.log10(1000001 / 552**2), rel=1e-6)
    exact = CastStatistics.from_values(cast(torch.ones(3), "e5m2", statistics=True)[1].tolist())
    assert exact.sqnr_db == math.inf
    nothing = CastStatistics.from_values(cast(torch.zeros(0), "e5m2", statistics=True)[1].tolist())
    assert all(math.isnan(rate) for rate in (nothing.overflow_rate, nothing.underflow_rate, nothing.sqnr_db))


@pytest.mark.parametrize(
    ("format", "x", "overflow"),
    [
        ("e4m3fn", [464.0, -464.0, 1.0], 0),
        ("e4m3fn", [464.00003, -465.0, 1.0], 2),
        ("e5m2", [61440.0, 61439.0, 1.0], 1),
    ],
)
def test_the_overflow_threshold_is_counted_as_it_rounds(format: str, x: list[float], overflow: int) -> None:
    _, vector = cast(torch.tensor(x), format, statistics=True)
    assert vector[FIELDS.index("overflow")] == overflow
    check(torch.tensor(x), float_format(format), 1.0)
