"""Registers the fp8, fp6 and fp4 formats under their LLVM names: e5m2, e4m3fn, e3m2fn, e2m3fn, e2m1fn and siblings."""

from __future__ import annotations

from altgrad_core.hookspecs import RegisterFormat, hookimpl
from altgrad_core.numerics.formats import FloatFormat

FORMATS = (
    FloatFormat(
        name="e5m2",
        exponent_bits=5,
        mantissa_bits=2,
        source="OCP OFP8 1.0, 5.1: E5M2",
        torch_dtype="float8_e5m2",
    ),
    FloatFormat(
        name="e4m3fn",
        exponent_bits=4,
        mantissa_bits=3,
        specials="fn",
        source="OCP OFP8 1.0, 5.1: E4M3",
        note="what hardware documents call E4M3",
        torch_dtype="float8_e4m3fn",
    ),
    FloatFormat(
        name="e4m3",
        exponent_bits=4,
        mantissa_bits=3,
        source="LLVM APFloat: Float8E4M3",
        note="with infinities; the E4M3 of hardware documents is e4m3fn",
    ),
    FloatFormat(
        name="e3m4",
        exponent_bits=3,
        mantissa_bits=4,
        source="LLVM APFloat: Float8E3M4",
        note="with infinities; max 15.5, where other papers' E3M4 reach 30 or 31",
    ),
    FloatFormat(
        name="e4m3fnuz",
        exponent_bits=4,
        mantissa_bits=3,
        specials="fnuz",
        source="arXiv 2206.02915; LLVM APFloat: Float8E4M3FNUZ",
        torch_dtype="float8_e4m3fnuz",
    ),
    FloatFormat(
        name="e5m2fnuz",
        exponent_bits=5,
        mantissa_bits=2,
        specials="fnuz",
        source="arXiv 2206.02915; LLVM APFloat: Float8E5M2FNUZ",
        torch_dtype="float8_e5m2fnuz",
    ),
    FloatFormat(
        name="e4m3b11fnuz",
        exponent_bits=4,
        mantissa_bits=3,
        bias=11,
        specials="fnuz",
        source="arXiv 1812.08011 (HFP8); LLVM APFloat: Float8E4M3B11FNUZ",
    ),
    FloatFormat(
        name="e3m2fn",
        exponent_bits=3,
        mantissa_bits=2,
        specials="none",
        source="OCP MX 1.0, 5.3.2: FP6 E3M2",
    ),
    FloatFormat(
        name="e2m3fn",
        exponent_bits=2,
        mantissa_bits=3,
        specials="none",
        source="OCP MX 1.0, 5.3.2: FP6 E2M3",
    ),
    FloatFormat(
        name="e2m1fn",
        exponent_bits=2,
        mantissa_bits=1,
        specials="none",
        source="OCP MX 1.0, 5.3.3: FP4 E2M1",
    ),
)


@hookimpl
def altgrad_register_formats(register: RegisterFormat) -> None:
    """Register the formats of this package."""
    for format in FORMATS:
        register(format)
