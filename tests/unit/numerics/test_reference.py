"""The scalar reference itself, against numbers computed by hand from the definitions."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from altgrad_core.numerics import FloatFormat, get_format
from altgrad_core.numerics.reference import nearest_code, quantize_exactly


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
