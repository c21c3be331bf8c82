"""Registers ``mxfp8_e4m3``, ``mxfp8_e5m2``, ``mxfp6_e3m2``, ``mxfp6_e2m3``, ``mxfp4``, ``mxint8`` and ``nvfp4``."""

from __future__ import annotations

from altgrad_format_ocp.plugin import E2M1FN, E2M3FN, E3M2FN, E4M3FN, E5M2, E8M0FNU, INT8

from altgrad_core.hookspecs import RegisterFormat, hookimpl
from altgrad_core.numerics.formats import BlockFormat, Format


def _mx(name: str, element: Format, note: str = "") -> BlockFormat:
    """Return an MX format: 32 elements that share an e8m0fnu scale."""
    return BlockFormat(
        name=name,
        element=element,
        scale_format=E8M0FNU,
        block=32,
        source=f"OCP MX 1.0, concrete formats: {name.upper().split('_')[0]}",
        note=note,
    )


FORMATS = (
    _mx("mxfp8_e4m3", E4M3FN, note="elements are e4m3fn"),
    _mx("mxfp8_e5m2", E5M2),
    _mx("mxfp6_e3m2", E3M2FN, note="elements are e3m2fn"),
    _mx("mxfp6_e2m3", E2M3FN, note="elements are e2m3fn"),
    _mx("mxfp4", E2M1FN, note="elements are e2m1fn"),
    _mx("mxint8", INT8, note="elements are int8, two's complement i/64"),
    BlockFormat(
        name="nvfp4",
        element=E2M1FN,
        scale_format=E4M3FN,
        block=16,
        tensor_scale=True,
        source="NVIDIA NVFP4; Transformer Engine",
        note="without the tensor's float32 scale it would be another format",
    ),
)


@hookimpl
def altgrad_register_formats(register: RegisterFormat) -> None:
    """Register the formats of this package."""
    for format in FORMATS:
        register(format)
