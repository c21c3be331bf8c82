"""What follows from a format's values: range, precision, density, spacing. Imports no torch."""

from __future__ import annotations

import bisect
import itertools
import math
from functools import cache
from typing import Any

import attrs

from altgrad_core.analysis.formats.hardware import native_on
from altgrad_core.numerics.formats import BlockFormat, FloatFormat, Format

# A table of values is made for formats up to this width; wider ones are described by their constants alone.
LISTED_BITS = 16


def element_of(format: Format) -> Format:
    """Return the format of a block format's elements; any other format itself."""
    return format.element if isinstance(format, BlockFormat) else format


def bits_per_value(format: Format) -> float:
    """Return what a value costs in memory: the element's bits and its share of the block's scale."""
    return format.bits_per_value if isinstance(format, BlockFormat) else float(format.bits)


@cache
def positive_values(format: Format) -> tuple[float, ...]:
    """Return the finite values above zero in ascending order, of a format of up to 16 bits."""
    return tuple(sorted({value for value in format.values() if 0 < value < math.inf}))


@cache
def binades(format: Format) -> tuple[tuple[int, int], ...]:
    """Return (e, number of positive values in 2^e <= x < 2^(e+1)) from the smallest value to the largest."""
    element = element_of(format)
    low, high = exponent_of(element.min_positive), exponent_of(element.max_finite)
    edges = [math.ldexp(1.0, e) if e < 1024 else math.inf for e in range(low, high + 2)]
    if isinstance(element, FloatFormat):
        codes, magnitude = range(1, element.max_code + 1), element.magnitude
        places = [bisect.bisect_left(codes, edge, key=magnitude) for edge in edges]
    else:
        values = positive_values(element)
        places = [bisect.bisect_left(values, edge) for edge in edges]
    return tuple((low + i, above - below) for i, (below, above) in enumerate(itertools.pairwise(places)))


def exponent_of(value: float) -> int:
    """Return floor(log2(value)) of a positive number, by its bits."""
    return math.frexp(value)[1] - 1


def significant_bits(format: Format) -> float:
    """Return log2 of the most values in a binade, and one: the significand's bits, 1 + M, where the exponent is full.

    Of a fixed-point format it is what the largest values have; of a table it need not be whole.
    """
    return math.log2(max(count for _, count in binades(format))) + 1


@attrs.frozen(kw_only=True)
class Facts:
    """A format in numbers. Those of a block format are its element's, before the scale of the block."""

    name: str
    """The format's name."""
    bits: float
    """Bits a value, the block's scale included."""
    split: str
    """Exponent and mantissa bits, ``4/3``; ``table``; of a block format the element's name."""
    significant_bits: float
    """Bits of the significand, the implicit one included."""
    digits: float
    """The same in decimal digits."""
    max_finite: float
    """Largest finite value."""
    min_normal: float | None
    """Smallest normal value, None where there is none."""
    min_positive: float
    """Smallest value above zero."""
    binades: float
    """log2 of max_finite / min_positive."""
    range_db: float
    """20 log10 of max_finite / min_positive."""
    relative_error: float | None
    """Largest relative error of rounding to nearest among normals, 2^-(M+1); None for a table."""
    specials: str
    """Inf, NaN and -0 in words."""
    native: str
    """First hardware generations that multiply it; empty when it is only emulated."""
    torch_dtype: str | None
    """torch's dtype of the same encoding."""
    source: str
    """Clause of the standard, or the project."""
    note: str
    """A sentence that spares a mistake."""

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return attrs.asdict(self)


@cache
def facts_of(format: Format) -> Facts:
    """Work out a format's facts."""
    element = element_of(format)
    significant = significant_bits(format)
    ratio = math.log2(element.max_finite) - math.log2(element.min_positive)
    native = native_on(format)
    return Facts(
        name=format.name,
        bits=bits_per_value(format),
        split=_split(format),
        significant_bits=significant,
        digits=significant * math.log10(2),
        max_finite=element.max_finite,
        min_normal=element.min_normal if isinstance(element, FloatFormat) else None,
        min_positive=element.min_positive,
        binades=ratio,
        range_db=20 * math.log10(2) * ratio,
        relative_error=2.0 ** -(element.mantissa_bits + 1)
        if isinstance(element, FloatFormat) and element.exponent_bits
        else None,
        specials=specials(element),
        native=native.short if native else "",
        torch_dtype=format.torch_dtype,
        source=format.source,
        note=format.note,
    )


def specials(format: Format) -> str:
    """Say in a few words which values beside numbers a format has, and what it lacks."""
    has = [name for name, present in (("Inf", format.has_inf), ("NaN", format.has_nan)) if present]
    text = " ".join(has) or "none"
    if not format.signed:
        return f"{text}, unsigned"
    return text if format.has_negative_zero else f"{text}, no -0"


def _split(format: Format) -> str:
    if isinstance(format, BlockFormat):
        return format.element.name
    if isinstance(format, FloatFormat):
        return f"{format.exponent_bits}/{format.mantissa_bits}"
    return "table"


def number(value: float | None) -> str:
    """Return a value of a format as people write it: plain where short, else a power of two times a short factor."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Inf" if value > 0 else "-Inf")
    if value == 0:
        return "-0" if math.copysign(1.0, value) < 0 else "0"
    plain = f"{value:.9g}"
    if float(plain) == value and len(plain) <= 9 and abs(value) >= 0.01 and "e" not in plain:
        return plain
    fraction, exponent = math.frexp(value)
    if abs(fraction) == 0.5:
        return f"{'-' if value < 0 else ''}2^{exponent - 1}"
    factor = f"{2 * fraction:.9g}"
    return f"{factor}*2^{exponent - 1}" if float(factor) == 2 * fraction and len(factor) <= 8 else f"{value:.6g}"


def hexadecimal(code: int, bits: int) -> str:
    """Return a code with the digits that its width needs: ``0x7E``."""
    return f"0x{code:0{(bits + 3) // 4}X}"
