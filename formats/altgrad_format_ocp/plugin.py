"""Registers the fp8, fp6 and fp4 formats under their LLVM names (e5m2, e4m3fn, e3m2fn, ...), int8 and e8m0fnu."""

from __future__ import annotations

import math

from altgrad_core.hookspecs import RegisterFormat, hookimpl
from altgrad_core.numerics.formats import FloatFormat, TableFormat

E5M2 = FloatFormat(
    name="e5m2",
    exponent_bits=5,
    mantissa_bits=2,
    source="OCP OFP8 1.0, 5.1: E5M2",
    torch_dtype="float8_e5m2",
)
E4M3FN = FloatFormat(
    name="e4m3fn",
    exponent_bits=4,
    mantissa_bits=3,
    specials="fn",
    source="OCP OFP8 1.0, 5.1: E4M3",
    note="what hardware documents call E4M3",
    torch_dtype="float8_e4m3fn",
)
E4M3 = FloatFormat(
    name="e4m3",
    exponent_bits=4,
    mantissa_bits=3,
    source="LLVM APFloat: Float8E4M3",
    note="with infinities; the E4M3 of hardware documents is e4m3fn",
)
E3M4 = FloatFormat(
    name="e3m4",
    exponent_bits=3,
    mantissa_bits=4,
    source="LLVM APFloat: Float8E3M4",
    note="with infinities; max 15.5, where other papers' E3M4 reach 30 or 31",
)
E4M3FNUZ = FloatFormat(
    name="e4m3fnuz",
    exponent_bits=4,
    mantissa_bits=3,
    specials="fnuz",
    source="arXiv 2206.02915; LLVM APFloat: Float8E4M3FNUZ",
    torch_dtype="float8_e4m3fnuz",
)
E5M2FNUZ = FloatFormat(
    name="e5m2fnuz",
    exponent_bits=5,
    mantissa_bits=2,
    specials="fnuz",
    source="arXiv 2206.02915; LLVM APFloat: Float8E5M2FNUZ",
    torch_dtype="float8_e5m2fnuz",
)
E4M3B11FNUZ = FloatFormat(
    name="e4m3b11fnuz",
    exponent_bits=4,
    mantissa_bits=3,
    bias=11,
    specials="fnuz",
    source="arXiv 1812.08011 (HFP8); LLVM APFloat: Float8E4M3B11FNUZ",
)
E3M2FN = FloatFormat(
    name="e3m2fn",
    exponent_bits=3,
    mantissa_bits=2,
    specials="none",
    source="OCP MX 1.0, 5.3.2: FP6 E3M2",
)
E2M3FN = FloatFormat(
    name="e2m3fn",
    exponent_bits=2,
    mantissa_bits=3,
    specials="none",
    source="OCP MX 1.0, 5.3.2: FP6 E2M3",
)
E2M1FN = FloatFormat(
    name="e2m1fn",
    exponent_bits=2,
    mantissa_bits=1,
    specials="none",
    source="OCP MX 1.0, 5.3.3: FP4 E2M1",
)
INT8 = TableFormat(
    name="int8",
    table=[(code if code < 128 else code - 256) / 64 for code in range(256)],
    beyond=(-129 / 64, 128 / 64),
    source="OCP MX 1.0, 5.3.4: INT8",
    note="two's complement i/64, -128 included; the symmetric INT8 of 127 levels is e0m7f up to a power of two",
)
E8M0FNU = TableFormat(
    name="e8m0fnu",
    table=[*(math.ldexp(1.0, code - 127) for code in range(255)), math.nan],
    # 2^128 is what code 255 would mean. Below 2^-127, whose code is 0, nothing is left but zero, which has no code.
    beyond=(0.0, 2.0**128),
    source="OCP MX 1.0, 5.4.1: E8M0",
    note="powers of two, no zero, no sign: the scales of MX blocks",
    torch_dtype="float8_e8m0fnu",
)

FORMATS = (E5M2, E4M3FN, E4M3, E3M4, E4M3FNUZ, E5M2FNUZ, E4M3B11FNUZ, E3M2FN, E2M3FN, E2M1FN, INT8, E8M0FNU)


@hookimpl
def altgrad_register_formats(register: RegisterFormat) -> None:
    """Register the formats of this package."""
    for format in FORMATS:
        register(format)
