"""The built-in formats, and the names that the grammar understands, through the public suite."""

from __future__ import annotations

import math

from altgrad_core.numerics.formats import FloatFormat, TableFormat
from altgrad_core.testing import FormatConformance


class TestBF16(FormatConformance):
    format = "bf16"


class TestFP16(FormatConformance):
    format = "fp16"


class TestTF32(FormatConformance):
    format = "tf32"


class TestFP32(FormatConformance):
    format = "fp32"


class TestE5M2(FormatConformance):
    format = "e5m2"


class TestE4M3FN(FormatConformance):
    format = "e4m3fn"


class TestE4M3(FormatConformance):
    format = "e4m3"


class TestE3M4(FormatConformance):
    format = "e3m4"


class TestE4M3FNUZ(FormatConformance):
    format = "e4m3fnuz"


class TestE5M2FNUZ(FormatConformance):
    format = "e5m2fnuz"


class TestE4M3B11FNUZ(FormatConformance):
    format = "e4m3b11fnuz"


class TestE3M2FN(FormatConformance):
    format = "e3m2fn"


class TestE2M3FN(FormatConformance):
    format = "e2m3fn"


class TestE2M1FN(FormatConformance):
    format = "e2m1fn"


class TestFixedPoint(FormatConformance):
    format = "e0m7"


class TestE1M6(FormatConformance):
    format = "e1m6"


class TestPowersOfTwo(FormatConformance):
    format = "e7m0"


class TestFinitePowersOfTwoWithEvenBias(FormatConformance):
    format = FloatFormat(name="e5m0even", exponent_bits=5, mantissa_bits=0, bias=14, specials="none")


class TestPowersOfTwoAsWideAsFloat32(FormatConformance):
    format = "e8m0fnuz"


class TestE3M0FN(FormatConformance):
    format = FloatFormat(name="e3m0nan", exponent_bits=3, mantissa_bits=0, specials="fn")


class TestWideExponent(FormatConformance):
    format = "e8m3"


class TestWideExponentWithOddUnit(FormatConformance):
    format = "e8m3fnuz"


class TestLongMantissa(FormatConformance):
    format = "e2m13"


class TestTooLongForFloat32Addition(FormatConformance):
    format = "e5m22"


class TestUnsigned(FormatConformance):
    format = FloatFormat(name="ue5m3", exponent_bits=5, mantissa_bits=3, signed=False)


class TestUnsignedFixedPoint(FormatConformance):
    format = FloatFormat(name="ue0m8", exponent_bits=0, mantissa_bits=8, specials="none", signed=False)


class TestExtended(FormatConformance):
    format = "binary8p4se"


class TestExtendedUnsigned(FormatConformance):
    format = "binary6p3ue"


class TestExtendedPowersOfTwo(FormatConformance):
    format = "binary8p1se"


class TestExtendedFixedPoint(FormatConformance):
    format = "binary5p5se"


class TestWiderThanFloat32(FormatConformance):
    format = "e9m3"


class TestAsWideAsFloat64(FormatConformance):
    format = "binary13p2sf"


class TestPosit8(FormatConformance):
    format = "posit8"


class TestTakum8(FormatConformance):
    format = "takum8"


class TestLinearTakum8(FormatConformance):
    format = "takum_linear8"


class TestNF4(FormatConformance):
    format = "nf4"


class TestInt8(FormatConformance):
    format = "int8"


class TestE8M0FNU(FormatConformance):
    format = "e8m0fnu"


class TestTableWithAllSpecials(FormatConformance):
    format = TableFormat(name="mixed", table=(0.0, 1.0, 2.5, math.inf, -0.0, -1.0, math.nan, -math.inf))


class TestTableWithoutZero(FormatConformance):
    format = TableFormat(name="signs", table=(-1.0, 0.5, 1.0, -0.25), beyond=(-2.0, 2.0))
