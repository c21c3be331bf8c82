"""Registers ``bf16``, ``fp16``, ``tf32`` and ``fp32``."""

from __future__ import annotations

from altgrad_core.hookspecs import RegisterFormat, hookimpl
from altgrad_core.numerics.formats import FloatFormat

FORMATS = (
    FloatFormat(
        name="bf16",
        exponent_bits=8,
        mantissa_bits=7,
        source="Google Brain bfloat16; Intel BFLOAT16 Hardware Numerics Definition",
        torch_dtype="bfloat16",
    ),
    FloatFormat(
        name="fp16", exponent_bits=5, mantissa_bits=10, source="IEEE 754-2019, 3.6: binary16", torch_dtype="float16"
    ),
    FloatFormat(
        name="tf32",
        exponent_bits=8,
        mantissa_bits=10,
        source="NVIDIA A100 architecture, TensorFloat-32",
        note="19 bits, held in a float32",
    ),
    FloatFormat(
        name="fp32", exponent_bits=8, mantissa_bits=23, source="IEEE 754-2019, 3.6: binary32", torch_dtype="float32"
    ),
)


@hookimpl
def altgrad_register_formats(register: RegisterFormat) -> None:
    """Register the formats of this package."""
    for format in FORMATS:
        register(format)
