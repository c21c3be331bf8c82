"""Which hardware multiplies which format: the one place that knows.

``short`` names the first generation of each maker whose matrix units take the format as an operand; ``+`` means that
the later ones do as well. A converted format (stored narrow, multiplied wide) does not count.
"""

from __future__ import annotations

import attrs

from altgrad_core.numerics.formats import Format

_PTX = "NVIDIA PTX ISA: mma, wgmma and tcgen05.mma operand types"
_TE = "Transformer Engine, datatype and hardware support matrix"
_ROCM = "AMD ROCm, data types and precision support"
_NEURON = "AWS Neuron, data types; compiler errors EVRF051 and EVRF052"


@attrs.frozen
class Native:
    """Where a format is an operand of matrix instructions."""

    short: str
    """First generation of each maker, for a table."""
    full: str
    """The same with the parts that people know."""
    source: str
    """Where it is documented."""


_MICROSCALED = Native(
    "Blackwell+, MI350+",
    "NVIDIA Blackwell (B200, compute capability 10.0), AMD CDNA4 (MI350)",
    f"{_PTX} (kind::mxf8f6f4, mxf4); {_ROCM}",
)
_NARROW = Native(_MICROSCALED.short, _MICROSCALED.full, f"{_PTX} (kind::f8f6f4); {_ROCM}")
_FNUZ = Native("MI300 only", "AMD CDNA3 (MI300); CDNA4 (MI350) has e4m3fn and e5m2 instead", _ROCM)
_OFP8 = "NVIDIA Ada (compute capability 8.9), Hopper (H100, H200) and later; AMD CDNA4 (MI350) and RDNA4"

NATIVE: dict[str, Native] = {
    "fp32": Native("everywhere", "every CPU and GPU; as matrix operand AMD CDNA (MI100) and later", _ROCM),
    "tf32": Native(
        "Ampere+, MI300 only",
        "NVIDIA Ampere (A100) and later; AMD CDNA3 (MI300, called XF32), no longer in CDNA4",
        f"{_PTX}; {_ROCM}",
    ),
    "bf16": Native("Ampere+, MI100+", "NVIDIA Ampere (A100) and later; AMD CDNA (MI100) and later", f"{_TE}; {_ROCM}"),
    "fp16": Native("Volta+, MI100+", "NVIDIA Volta (V100) and later; AMD CDNA (MI100) and later", f"{_PTX}; {_ROCM}"),
    "int8": Native("Turing+, MI100+", "NVIDIA Turing (T4) and later; AMD CDNA (MI100) and later", f"{_PTX}; {_ROCM}"),
    "e5m2": Native("Ada, Hopper+, MI350+", _OFP8, f"{_TE}; {_ROCM}"),
    "e4m3fn": Native("Ada, Hopper+, MI350+", f"{_OFP8}; AWS Trainium 3", f"{_TE}; {_ROCM}; {_NEURON}"),
    "e4m3": Native("Trainium 1-3", "AWS Trainium 1 to 3, called FP8 E4M3 there", _NEURON),
    "e5m2fnuz": _FNUZ,
    "e4m3fnuz": _FNUZ,
    "e3m2fn": _NARROW,
    "e2m3fn": _NARROW,
    "e2m1fn": _NARROW,
    "e8m0fnu": Native(
        _MICROSCALED.short,
        "as the scale of blocks: NVIDIA Blackwell (B200), AMD CDNA4 (MI350)",
        _MICROSCALED.source,
    ),
    "mxfp8_e4m3": _MICROSCALED,
    "mxfp8_e5m2": _MICROSCALED,
    "mxfp6_e3m2": _MICROSCALED,
    "mxfp6_e2m3": _MICROSCALED,
    "mxfp4": _MICROSCALED,
    "nvfp4": Native(
        "Blackwell+", "NVIDIA Blackwell (B200, compute capability 10.0)", f"{_PTX} (kind::mxf4nvf4); {_TE}"
    ),
}


def native_on(format: Format) -> Native | None:
    """Return where the format is native, None when no hardware is known to multiply it: a cast emulates it."""
    return NATIVE.get(format.name)
