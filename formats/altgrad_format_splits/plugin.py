"""Registers ``e0m7f`` to ``e7m0f``: sign, E exponent and 7 - E mantissa bits, every code a finite number."""

from __future__ import annotations

from altgrad_core.hookspecs import RegisterFormat, hookimpl
from altgrad_core.numerics.formats import FloatFormat

_ONE_GRID = "the same uniform grid up to a power of two, and as symmetric INT8 with 127 levels"
NOTES = {
    0: f"fixed point, m/128; as e1m6f {_ONE_GRID}: under amax scaling they are one data point",
    1: f"as e0m7f {_ONE_GRID}: under amax scaling they are one data point",
    3: "max 31, where the E3M4 with infinities (e3m4) has 15.5",
    4: "max 480, where e4m3fn has 448: its NaN takes the last code",
    5: "max 114688, where e5m2 has 57344: its Inf and NaN take the last exponent",
    7: "powers of two and zero; the nearest value is by arithmetic distance, with the boundary at 1.5 * 2^e",
}

FORMATS = tuple(
    FloatFormat(
        name=f"e{exponent_bits}m{7 - exponent_bits}f",
        exponent_bits=exponent_bits,
        mantissa_bits=7 - exponent_bits,
        specials="none",
        source="the rule for e<E>m<M> names",
        note=NOTES.get(exponent_bits, ""),
    )
    for exponent_bits in range(8)
)


@hookimpl
def altgrad_register_formats(register: RegisterFormat) -> None:
    """Register the formats of this package."""
    for format in FORMATS:
        register(format)
