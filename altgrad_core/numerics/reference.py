"""The definition of a cast, one number at a time, in exact fractions: what the kernels are tested against.

Nothing here knows about bits of float32 or tricks of arithmetic. A number lies at or between two neighbours of the
format's grid; the rounding mode chooses one; and if that one lies beyond the format's ends, the saturation mode says
what becomes of it. A float format's grid goes on beyond its ends as its codes would, a table's by ``beyond``.
"""

from __future__ import annotations

import bisect
import functools
import math
from fractions import Fraction
from typing import NamedTuple

from altgrad_core.numerics.formats import FloatFormat, TableFormat
from altgrad_core.numerics.modes import Rounding, Saturation


class Neighbour(NamedTuple):
    """A point of the grid."""

    value: Fraction
    """The number."""
    even: bool
    """Whether its code is even."""
    inside: bool
    """Whether it is a value of the format; if not, rounding to it is overflow."""


def quantize_exactly(
    x: float | Fraction,
    format: FloatFormat | TableFormat,
    *,
    rounding: Rounding = "nearest_even",
    saturation: Saturation = "finite",
    bits: int = 0,
    random_bits: int = 32,
) -> float:
    """Return the value of ``format`` that ``x`` rounds to, as ``altgrad_core.quantize`` defines it (scale 1).

    ``stochastic`` draws ``bits``, a number of ``random_bits`` bits. Raises ``ValueError`` for a table that rounds to
    nearest by a rule of its own, which nothing here knows.
    """
    if isinstance(format, TableFormat) and format.rounds_itself(rounding):
        raise ValueError(f"'{format.name}' rounds to nearest in its own way")
    if isinstance(x, float) and math.isnan(x):
        return math.nan
    negative = x < 0 or (isinstance(x, float) and math.copysign(1.0, x) < 0)
    if isinstance(x, float) and math.isinf(x):
        result = _overflow(format, rounding, saturation, below=negative, infinite=True)
    else:
        chosen = _rounded(x, format, rounding, bits, random_bits)
        if chosen.inside:
            result = float(chosen.value)
        else:
            below = chosen.value < Fraction(format.max_finite)
            result = _overflow(format, rounding, saturation, below=below, infinite=False)
    if result == 0:
        return -0.0 if negative and format.has_negative_zero else 0.0
    return result


# The same numbers are asked for in every mode.
_CACHED = 1 << 14


@functools.lru_cache(maxsize=_CACHED)
def _rounded(
    x: float | Fraction, format: FloatFormat | TableFormat, rounding: Rounding, bits: int, random_bits: int
) -> Neighbour:
    exact = Fraction(x)
    return choose(exact, *around(exact, format), rounding, bits, random_bits)


@functools.lru_cache(maxsize=_CACHED)
def around(x: Fraction, format: FloatFormat | TableFormat) -> tuple[Neighbour, Neighbour]:
    """Return the neighbours of ``x``, the lower first; twice the same where ``x`` is a point of the grid or past it."""
    if isinstance(format, FloatFormat):
        sign = -1 if x < 0 else 1
        codes = _codes_around(abs(x), format)
        near, far = (
            Neighbour(
                value=sign * _magnitude(code, format),
                even=code % 2 == 0,
                inside=code <= format.max_code and (format.signed or sign > 0 or code == 0),
            )
            for code in codes
        )
        return (near, far) if sign > 0 else (far, near)
    grid = _grid(format)
    if not grid[0].value <= x <= grid[-1].value:
        outside = Neighbour(x, even=True, inside=False)
        return outside, outside
    upper = bisect.bisect_left(grid, x, key=lambda point: point.value)
    return grid[upper] if grid[upper].value == x else grid[upper - 1], grid[upper]


@functools.lru_cache(maxsize=64)
def _grid(format: TableFormat) -> list[Neighbour]:
    codes = zip(format.numbers, format.number_codes, strict=True)
    grid = [Neighbour(Fraction(number), even=code % 2 == 0, inside=True) for number, code in codes]
    if format.beyond is None:
        return grid
    low, high = format.beyond
    # One code on: even beside odd.
    before = Neighbour(Fraction(low), even=not grid[0].even, inside=False)
    after = Neighbour(Fraction(high), even=not grid[-1].even, inside=False)
    return [before, *grid, after]


def choose(x: Fraction, low: Neighbour, high: Neighbour, rounding: Rounding, r: int, random_bits: int) -> Neighbour:
    """Return the one of two neighbours that ``x`` rounds to; ``r`` is from 0 to 2^random_bits - 1."""
    if low.value == high.value:
        return low
    if rounding == "up":
        return high
    if rounding == "down":
        return low
    if rounding == "toward_zero":
        if low.value < 0 < high.value:  # a table without zero: towards it, not across
            return high if x >= 0 else low
        return low if x > 0 else high
    near, far = (low, high) if x >= 0 else (high, low)
    fraction = (x - near.value) / (far.value - near.value)
    if rounding == "stochastic":
        # Python's round() of a fraction goes to the even integer on a tie.
        return far if round(fraction * 2**random_bits) + r >= 2**random_bits else near
    if fraction != Fraction(1, 2):
        return near if fraction < Fraction(1, 2) else far
    smaller, larger = (low, high) if abs(low.value) < abs(high.value) else (high, low)
    if rounding == "nearest_away":
        return high if abs(low.value) == abs(high.value) else larger
    if low.even != high.even:
        return low if low.even else high
    return smaller


def nearest_code(magnitude: Fraction, format: FloatFormat) -> int:
    """Return the magnitude code whose value is nearest, even on a tie; ``max_code + 1`` for what rounds past it."""
    low, high = _codes_around(magnitude, format)
    twice = 2 * magnitude - _magnitude(low, format) - _magnitude(high, format)
    return high if twice > 0 or (twice == 0 and high % 2 == 0) else low


def _codes_around(magnitude: Fraction, format: FloatFormat) -> tuple[int, int]:
    """Return the magnitude codes at or around a magnitude; ``max_code + 1`` twice for anything past it."""
    low, high = 0, format.max_code + 1
    if magnitude >= _magnitude(high, format):
        return high, high
    while high - low > 1:
        middle = (low + high) // 2
        if _magnitude(middle, format) <= magnitude:
            low = middle
        else:
            high = middle
    return (low, low) if _magnitude(low, format) == magnitude else (low, high)


def _magnitude(code: int, format: FloatFormat) -> Fraction:
    """Return what exponent and mantissa bits mean, read as a number."""
    field, mantissa = divmod(code, 2**format.mantissa_bits)
    significand = mantissa + (2**format.mantissa_bits if field else 0)
    exponent = max(field, 1) - format.bias - format.mantissa_bits
    return Fraction(significand * 2**exponent) if exponent >= 0 else Fraction(significand, 2**-exponent)


def _overflow(
    format: FloatFormat | TableFormat, rounding: Rounding, saturation: Saturation, *, below: bool, infinite: bool
) -> float:
    if below:
        end = format.min_finite
        infinity = -math.inf if format.has_negative_inf else None
        # IEEE 754-2019, 7.4: a mode that rounds back from beyond the end stops at the end.
        back = rounding == "up" or (rounding == "toward_zero" and end <= 0)
    else:
        end = format.max_finite
        infinity = math.inf if format.has_inf else None
        back = rounding == "down" or (rounding == "toward_zero" and end >= 0)
    if saturation == "finite" or (not infinite and (saturation == "propagate" or back)):
        return end
    if infinity is not None:
        return infinity
    return math.nan if saturation == "none" and format.has_nan else end
