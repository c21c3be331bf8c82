"""Formats described by gfloat: a ``FormatInfo`` becomes a ``Format``. Neither gfloat nor torch is imported."""

from __future__ import annotations

import math
from typing import Any

from altgrad_core.errors import AltgradError
from altgrad_core.numerics.blockformat import BlockFormat
from altgrad_core.numerics.floatformat import FloatFormat, Specials
from altgrad_core.numerics.format import Format
from altgrad_core.numerics.tableformat import TableFormat

_SOURCE = "a gfloat FormatInfo"
_FIELDS = (
    "name", "k", "precision", "bias", "is_signed", "domain", "has_nz", "num_high_nans", "has_subnormals",
    "is_twos_complement",
)  # fmt: skip
_BLOCK_FIELDS = ("name", "etype", "k", "stype")
_TABLE_BITS = 16


def is_gfloat(value: Any) -> bool:
    """Whether ``value`` looks like a gfloat ``FormatInfo`` or ``BlockFormatInfo``."""
    return any(all(hasattr(value, field) for field in fields) for fields in (_FIELDS, _BLOCK_FIELDS))


def from_gfloat(info: Any) -> Format:
    """Return the format that a gfloat ``FormatInfo`` or ``BlockFormatInfo`` describes: the same values, same codes.

    A ``FloatFormat`` where there is one; else (no subnormals, two's complement, other counts of NaN) a ``TableFormat``,
    up to 16 bits. Raises ``AltgradError`` for what is neither, and for what is no description.
    """
    if all(hasattr(info, field) for field in _BLOCK_FIELDS):
        return BlockFormat(
            name=info.name,
            element=from_gfloat(info.etype),
            scale_format=from_gfloat(info.stype),
            block=info.k,
            source=_SOURCE,
        )
    if not all(hasattr(info, field) for field in _FIELDS):
        raise AltgradError(
            f"A format is a name, a Format or a gfloat FormatInfo, got {type(info).__name__}: {info!r:.60}."
        )
    mantissa_bits = info.precision - 1
    exponent_bits = info.k - mantissa_bits - int(info.is_signed)
    _check(info, exponent_bits)
    specials = _specials(info)
    if specials is not None:
        return FloatFormat(
            name=info.name,
            exponent_bits=exponent_bits,
            mantissa_bits=mantissa_bits,
            bias=info.bias,
            specials=specials,
            signed=info.is_signed,
            source=_SOURCE,
        )
    if info.k > _TABLE_BITS:
        raise AltgradError(
            f"The gfloat format '{info.name}' is no FloatFormat (its codes for Inf, NaN and zero are of another kind), "
            f"and a TableFormat is possible for up to {_TABLE_BITS} bits; it has {info.k}."
        )
    return _table(info, exponent_bits, mantissa_bits)


def _check(info: Any, exponent_bits: int) -> None:
    """Raise ``AltgradError`` for a description that contradicts itself, and for what none of our formats is."""
    reason = ""
    if info.precision < 1 or exponent_bits < 0:
        reason = f"a precision of {info.precision}, which is from 1 to what {info.k} bits leave beside the sign"
    elif info.is_twos_complement:
        integer = info.is_signed and info.domain.name == "Finite" and not info.num_high_nans and info.has_subnormals
        if exponent_bits or not integer:
            reason = (
                "two's complement, with more than signed integers times a unit: exponent bits, or codes for Inf or NaN"
            )
    elif _last(info, exponent_bits) < 1:
        reason = "codes for Inf and NaN that leave no value but zero"
    if reason:
        raise AltgradError(f"The gfloat format '{info.name}' has {reason}.")


def _last(info: Any, exponent_bits: int) -> int:
    """Return the magnitude code of the largest finite value."""
    infinities = 1 if info.domain.name == "Extended" else 0
    return int(2 ** (exponent_bits + info.precision - 1) - 1 - info.num_high_nans - infinities)


def _specials(info: Any) -> Specials | None:
    """Return the ``specials`` of the ``FloatFormat`` with the same codes, None when there is none."""
    if info.is_twos_complement or not info.has_subnormals:
        return None
    one_zero = info.is_signed and not info.has_nz
    high = info.num_high_nans
    if info.domain.name == "Extended":
        if high == (0 if info.is_signed else 1) and (one_zero or not info.is_signed):
            return "extended"
        return "ieee" if high == 2 ** (info.precision - 1) - 1 and not one_zero else None
    if one_zero:
        return "fnuz" if high == 0 else None
    if high == 0:
        return "none"
    return "fn" if high == 1 else None


def _table(info: Any, exponent_bits: int, mantissa_bits: int) -> TableFormat:
    unit = math.ldexp(1.0, 1 - info.bias - mantissa_bits)
    size = 2**info.k
    if info.is_twos_complement:
        half = size // 2
        table = [unit * (code - size if code >= half else code) for code in range(size)]
        return TableFormat(name=info.name, table=table, beyond=(-unit * (half + 1), unit * half), source=_SOURCE)

    def magnitude(code: int) -> float:
        field, mantissa = code >> mantissa_bits, code & (2**mantissa_bits - 1)
        # Without subnormals the field 0 is a normal binade, but for the zero that a mantissa makes room for.
        normal = field > 0 or not (info.has_subnormals or (mantissa == 0 and info.precision > 1))
        exponent = field if normal else 1
        return math.ldexp(mantissa + normal * 2**mantissa_bits, exponent - info.bias - mantissa_bits)

    infinities = 1 if info.domain.name == "Extended" else 0
    last = _last(info, exponent_bits)
    half = [magnitude(code) for code in range(last + 1)] + [math.inf] * infinities + [math.nan] * info.num_high_nans
    negative = [-value for value in half] if info.is_signed else []
    if negative and half[0] == 0 and not info.has_nz:
        negative[0] = math.nan
    high = magnitude(last + 1)
    lowest = 0.0 if half[0] > 0 else -half[1]
    return TableFormat(
        name=info.name, table=half + negative, beyond=(-high if info.is_signed else lowest, high), source=_SOURCE
    )
