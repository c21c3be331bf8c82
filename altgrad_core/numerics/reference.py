"""The definition of a cast, one number at a time, in exact fractions: what the kernels are tested against.

Nothing here knows about bits of float32 or tricks of arithmetic: the candidates are the values of two neighbouring
magnitude codes, and the nearer one wins, the even code on a tie.
"""

from __future__ import annotations

import math
from fractions import Fraction

from altgrad_core.numerics.formats import FloatFormat
from altgrad_core.numerics.modes import Saturation


def quantize_exactly(x: float | Fraction, format: FloatFormat, saturation: Saturation = "finite") -> float:
    """Return the value of ``format`` nearest to ``x``, as ``altgrad_core.quantize`` defines it (scale 1)."""
    if isinstance(x, float) and math.isnan(x):
        return math.nan
    negative = x < 0 or (isinstance(x, float) and math.copysign(1.0, x) < 0)
    infinite = isinstance(x, float) and math.isinf(x)
    code = format.max_code + 1 if infinite else nearest_code(abs(Fraction(x)), format)
    if negative and not format.signed:
        beyond = infinite or code > 0
        result = math.nan if beyond and saturation == "none" and format.has_nan else 0.0
    elif code > format.max_code:
        result = _overflow(format, saturation, infinite=infinite)
    else:
        result = format.magnitude(code)
    if negative and format.signed and (result != 0 or format.has_negative_zero):
        return -result
    return result


def nearest_code(magnitude: Fraction, format: FloatFormat) -> int:
    """Return the magnitude code whose value is nearest, even on a tie; ``max_code + 1`` for what rounds past it."""
    low, high = 0, format.max_code + 1
    if magnitude >= Fraction(format.magnitude(high)):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if Fraction(format.magnitude(middle)) <= magnitude:
            low = middle
        else:
            high = middle
    below, above = magnitude - Fraction(format.magnitude(low)), Fraction(format.magnitude(high)) - magnitude
    if below == above:
        return low if low % 2 == 0 else high
    return low if below < above else high


def _overflow(format: FloatFormat, saturation: Saturation, *, infinite: bool) -> float:
    if format.has_inf and (saturation == "none" or (saturation == "propagate" and infinite)):
        return math.inf
    if format.has_nan and saturation == "none":
        return math.nan
    return format.max_finite
