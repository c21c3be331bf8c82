"""The scalar reference itself, against numbers computed by hand from the definitions."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from altgrad_core.numerics import FloatFormat, TableFormat, get_format
from altgrad_core.numerics.modes import Rounding
from altgrad_core.numerics.reference import nearest_code, quantize_exactly


def float_format(name: str) -> FloatFormat:
    found = get_format(name)
    assert isinstance(found, FloatFormat)
    return found


@pytest.mark.parametrize(
    ("format", "x", "expected"),
    [
        ("e2m1fn", 2.5, 2.0),
        ("e2m1fn", 3.5, 4.0),
        ("e2m1fn", 5.0, 4.0),
        ("e2m1fn", 0.25, 0.0),
        ("e2m1fn", -0.25, -0.0),
        ("e2m1fn", -0.75, -1.0),
        ("e4m3fn", 464.0, 448.0),
        ("e5m2", -61440.0, -57344.0),
        ("e7m0f", 1.5, 2.0),
        ("e7m0f", 3.0, 2.0),
        ("e4m3fnuz", -1e-9, 0.0),
        ("e5m2", math.inf, 57344.0),
    ],
)
def test_by_hand(format: str, x: float, expected: float) -> None:
    f = get_format(format)
    assert isinstance(f, FloatFormat)
    got = quantize_exactly(x, f)
    assert (got, math.copysign(1.0, got)) == (expected, math.copysign(1.0, expected))


ROUNDED = {
    # e2m1fn has 1, 1.5, 2 at codes 2, 3, 4; what 1.125, 1.25, -1.125 and -1.25 become.
    "nearest_even": (1.0, 1.0, -1.0, -1.0),
    "nearest_away": (1.0, 1.5, -1.0, -1.5),
    "toward_zero": (1.0, 1.0, -1.0, -1.0),
    "up": (1.5, 1.5, -1.0, -1.0),
    "down": (1.0, 1.0, -1.5, -1.5),
}


@pytest.mark.parametrize("rounding", ROUNDED)
def test_modes_by_hand(rounding: Rounding) -> None:
    f = float_format("e2m1fn")
    got = tuple(quantize_exactly(x, f, rounding=rounding) for x in (1.125, 1.25, -1.125, -1.25))
    assert got == ROUNDED[rounding]


def test_stochastic_goes_away_from_zero_as_often_as_the_fraction_says() -> None:
    f = float_format("e2m1fn")
    for x, often in ((1.0, 0), (1.125, 4), (1.25, 8), (-1.125, 4), (1.03125, 1), (1.015625, 0), (1.046875, 2)):
        away = [quantize_exactly(x, f, rounding="stochastic", bits=r, random_bits=4) for r in range(16)]
        assert sum(abs(value) > 1 for value in away) == often, x
        assert set(away[-often:] if often else []) <= {math.copysign(1.5, x)}


def test_directed_modes_stop_at_the_largest_value() -> None:
    f = float_format("e5m2")
    for rounding, x, expected in (
        ("toward_zero", 1e9, 57344.0),
        ("down", 1e9, 57344.0),
        ("up", 1e9, math.inf),
        ("up", -1e9, -57344.0),
        ("up", 57345.0, math.inf),
        ("down", math.inf, math.inf),
        ("nearest_away", 61440.0, math.inf),
        ("nearest_away", 61439.0, 57344.0),
    ):
        assert quantize_exactly(x, f, rounding=rounding, saturation="none") == expected  # type: ignore[arg-type]


def test_unsigned_formats_have_nothing_below_zero() -> None:
    f = float_format("binary4p2uf")
    assert f.min_positive == 2.0**-4
    for x, rounding, expected in (
        (-(2.0**-5), "nearest_even", 0.0),
        (-(2.0**-5), "nearest_away", math.nan),
        (-1.0, "nearest_even", math.nan),
        (-1.0, "up", 0.0),
        (-1.0, "toward_zero", 0.0),
        (-1.0, "down", math.nan),
    ):
        got = quantize_exactly(x, f, rounding=rounding, saturation="none")  # type: ignore[arg-type]
        assert got == expected or (math.isnan(got) and math.isnan(expected)), (x, rounding)
        assert quantize_exactly(x, f, rounding=rounding) == 0.0  # type: ignore[arg-type]


def test_tables_by_hand() -> None:
    f = TableFormat(name="mine", table=(-1.0, 0.5, 3.0, 4.0))  # codes 0 and 2 are even
    for x, expected in ((3.5, 3.0), (1.75, 3.0), (-0.25, -1.0), (5.0, 4.0), (-2.0, -1.0)):
        assert quantize_exactly(x, f) == expected
    assert quantize_exactly(-0.25, f, rounding="nearest_away") == -1.0
    assert quantize_exactly(0.1, f, rounding="toward_zero") == 0.5
    assert quantize_exactly(-0.1, f, rounding="toward_zero") == -1.0
    # Neither code is even; the smaller in magnitude, then the greater.
    odd = TableFormat(name="odd", table=(9.0, 1.0, 8.0, 2.0))
    assert quantize_exactly(1.5, odd) == 1.0
    mirrored = TableFormat(name="mirrored", table=(9.0, 1.0, 8.0, -1.0))
    assert quantize_exactly(0.0, mirrored) == 1.0


def test_a_hair_decides_a_tie() -> None:
    f = get_format("e5m2")
    assert isinstance(f, FloatFormat)
    hair = Fraction(1, 10**40)
    tie = Fraction(9, 8)
    assert [quantize_exactly(tie + d, f) for d in (-hair, Fraction(0), hair)] == [1.0, 1.0, 1.25]
    assert nearest_code(Fraction(61440) - hair, f) == f.max_code
    assert nearest_code(Fraction(61440), f) == f.max_code + 1


def test_overflow_and_nan() -> None:
    e5m2, e4m3fn = get_format("e5m2"), get_format("e4m3fn")
    assert isinstance(e5m2, FloatFormat)
    assert isinstance(e4m3fn, FloatFormat)
    assert math.isnan(quantize_exactly(math.nan, e5m2))
    assert quantize_exactly(-1e9, e5m2, saturation="none") == -math.inf
    assert quantize_exactly(-1e9, e5m2, saturation="propagate") == -57344.0
    assert quantize_exactly(-math.inf, e5m2, saturation="propagate") == -math.inf
    assert math.isnan(quantize_exactly(465.0, e4m3fn, saturation="none"))
    assert quantize_exactly(math.inf, e4m3fn, saturation="propagate") == 448.0
