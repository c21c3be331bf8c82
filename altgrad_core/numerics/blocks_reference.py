"""The definition of block scales, one block at a time, in exact fractions: what ``blocks`` is tested against."""

from __future__ import annotations

import functools
import math
from fractions import Fraction

from altgrad_core.numerics.formats import Format

_FLOAT32_MANTISSA = 23


def exponent(x: Fraction) -> int:
    """Return floor(log2(x)) of a positive number."""
    guess = x.numerator.bit_length() - x.denominator.bit_length()
    return guess if Fraction(2) ** guess <= x else guess - 1


def mx_exponent_exactly(amax: float, element: Format, mode: str) -> int:
    """Return the exponent of the MX scale for a block's amax, ``mode`` as ``blocks.mx_scale`` has it."""
    if not 0 < amax < math.inf:
        return 0
    size, target = Fraction(amax), Fraction(element.scale_target)
    if mode == "rceil":
        found = _up(size / target)
    elif mode == "ceil":
        found = _up(size) - exponent(target)
    else:
        if mode == "even":
            # One unit in the last place of the element format, where amax is as large as its target.
            unit = top_spacing(element) / Fraction(2) ** exponent(target) * Fraction(2) ** exponent(size)
            size = math.floor(size / unit + Fraction(1, 2)) * unit
        found = exponent(size) - exponent(target)
    return min(max(found, -127), 127)


@functools.cache
def top_spacing(element: Format) -> Fraction:
    """Return the largest power of two of which all magnitudes in the binade of ``scale_target`` are multiples."""
    lowest = Fraction(2) ** exponent(Fraction(element.scale_target))
    values = [abs(Fraction(v)) for v in element.values() if math.isfinite(v) and lowest <= abs(v) < 2 * lowest]
    unit = lowest
    while any(value % unit for value in values):
        unit /= 2
    return unit


def nvfp4_scales_exactly(block_amax: float, tensor_amax: float, element: Format, scale: Format) -> tuple[float, float]:
    """Return (block scale, tensor scale) as ``blocks.nvfp4_scales`` defines them, without the bounds of the range."""
    tensor_scale = 1.0
    if 0 < tensor_amax < math.inf:
        tensor_scale = float32(Fraction(tensor_amax) / (Fraction(scale.scale_target) * Fraction(element.scale_target)))
    if not 0 < block_amax < math.inf:
        return 1.0, tensor_scale
    share = float32(Fraction(float32(Fraction(block_amax) / Fraction(element.scale_target))) / Fraction(tensor_scale))
    return nearest_positive(Fraction(share), scale), tensor_scale


def nearest_positive(x: Fraction, format: Format) -> float:
    """Return the positive value of ``format`` nearest to a positive number, the one with the even code on a tie."""
    _, value = min(_positive(format), key=lambda pair: (abs(Fraction(pair[1]) - x), pair[0] % 2))
    return value


@functools.cache
def _positive(format: Format) -> list[tuple[int, float]]:
    return [(code, value) for code, value in enumerate(format.values()) if 0 < value < math.inf]


def float32(x: Fraction) -> float:
    """Round a positive number to float32, ties to even; it must lie below 2^128."""
    unit = Fraction(2) ** (max(exponent(x), -126) - _FLOAT32_MANTISSA)
    return float(round(x / unit) * unit)


def _up(x: Fraction) -> int:
    """Return ceil(log2(x))."""
    below = exponent(x)
    return below if Fraction(2) ** below == x else below + 1
