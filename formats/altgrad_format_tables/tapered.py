"""Posits and takums from their definitions: code -> value."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

# A takum's sign, direction, regime and longest characteristic; shorter ones are understood with zeros appended.
_TAKUM_BITS = 12


def posit(code: int, bits: int) -> float:
    """Return the value of a posit (Standard for Posit Arithmetic, 2022: two exponent bits); NaN for NaR.

    With the sign bit s, the regime r (k ones then a zero: k - 1; k zeros then a one: -k), the exponent e and the
    fraction f, of which bits that are cut off are zero: ((1 - 3s) + f) * 2^((1 - 2s) * (4r + e + s)).
    """
    if code == 0:
        return 0.0
    if code == 1 << (bits - 1):
        return math.nan
    sign = code >> (bits - 1)
    text = f"{code:0{bits}b}"[1:]
    run = len(text) - len(text.lstrip(text[0]))
    regime = run - 1 if text[0] == "1" else -run
    rest = text[run + 1 :]
    exponent = int(rest[:2].ljust(2, "0"), 2)
    fraction = int(rest[2:] or "0", 2) / 2 ** len(rest[2:])
    return math.ldexp(1 - 3 * sign + fraction, (1 - 2 * sign) * (4 * regime + exponent + sign))


def takum_fields(code: int, bits: int) -> tuple[int, int, float]:
    """Return a takum's sign bit S, characteristic c in -255..254 and fraction f in [0, 1) (arXiv 2404.18603)."""
    width = max(bits, _TAKUM_BITS)
    padded = code << (width - bits)
    sign = padded >> (width - 1)
    direction = padded >> (width - 2) & 1
    regime = padded >> (width - 5) & 7
    length = regime if direction else 7 - regime
    fraction_bits = width - 5 - length
    characteristic = padded >> fraction_bits & (2**length - 1)
    characteristic += 2**length - 1 if direction else 1 - 2 ** (length + 1)
    return sign, characteristic, (padded & (2**fraction_bits - 1)) / 2**fraction_bits


def takum(code: int, bits: int) -> float:
    """Return the value of a logarithmic takum, (-1)^S * sqrt(e)^((-1)^S (c + f)), to the nearest float64; NaN for NaR.

    The Decimal exponential is rounded correctly; ``math.exp`` is off by a unit on some machines.
    """
    if code == 0:
        return 0.0
    if code == 1 << (bits - 1):
        return math.nan
    sign, characteristic, fraction = takum_fields(code, bits)
    logarithm = (1 - 2 * sign) * (characteristic + fraction) / 2
    with localcontext() as context:
        context.prec = 40
        return (1 - 2 * sign) * float(Decimal(logarithm).exp())


def linear_takum(code: int, bits: int) -> float:
    """Return the value of a linear takum, ((1 - 3S) + f) * 2^((-1)^S (c + S)) (arXiv 2408.10594); NaN for NaR."""
    if code == 0:
        return 0.0
    if code == 1 << (bits - 1):
        return math.nan
    sign, characteristic, fraction = takum_fields(code, bits)
    return math.ldexp(1 - 3 * sign + fraction, (1 - 2 * sign) * (characteristic + sign))
