"""What ``scaling = { kind = "...", ... }`` accepts, kind by kind. Imports no torch."""

from __future__ import annotations

from typing import Literal

import attrs

from altgrad_core.numerics.modes import MX_MODES, MXMode

# A margin beyond this leaves no format of 8 bits any range; and scales end at 2^126.
_margin = [attrs.validators.ge(-64), attrs.validators.le(64)]
_side = [attrs.validators.ge(1), attrs.validators.le(65536)]


@attrs.frozen(kw_only=True)
class StaticOptions:
    """``scaling = { kind = "static", scale = 0.5 }``."""

    scale: float = attrs.field(validator=[attrs.validators.ge(2.0**-126), attrs.validators.le(2.0**126)])
    """The decode scale, from 2^-126 to 2^126; rounded to float32."""


@attrs.frozen(kw_only=True)
class CurrentOptions:
    """``scaling = { kind = "current", ... }``: from the largest magnitude of the tensor that is about to be cast."""

    power_of_two: bool = True
    """Round the scale up to a power of two, so that the format's rounding is the only one."""
    margin: int = attrs.field(default=0, validator=_margin)
    """Powers of two of room left above the largest magnitude."""


@attrs.frozen(kw_only=True)
class DelayedOptions:
    """``scaling = { kind = "delayed", ... }``: from the largest magnitudes of the tensors cast before."""

    history: int = attrs.field(default=16, validator=_side)
    """How many earlier tensors are remembered; every micro-batch shows one."""
    algorithm: Literal["max", "most_recent"] = attrs.field(
        default="max", validator=attrs.validators.in_(("max", "most_recent"))
    )
    """Scale for the largest magnitude in the history, or for the newest."""
    power_of_two: bool = True
    """Round the scale up to a power of two, so that the format's rounding is the only one."""
    margin: int = attrs.field(default=0, validator=_margin)
    """Powers of two of room left above that magnitude."""


@attrs.frozen(kw_only=True)
class RowwiseOptions:
    """``scaling = { kind = "rowwise", ... }``: current, a scale for each row as the GEMM at hand reads the operand."""

    power_of_two: bool = True
    """Round each scale up to a power of two; others make the GEMM one in FP32."""
    margin: int = attrs.field(default=0, validator=_margin)
    """Powers of two of room left above the largest magnitude of a row."""


@attrs.frozen(kw_only=True)
class BlockwiseOptions:
    """``scaling = { kind = "blockwise", ... }``: current, a scale for each block of the operand."""

    rows: int = attrs.field(default=1, validator=_side)
    """Rows of a block: across the dimension that the GEMM sums over."""
    columns: int = attrs.field(default=128, validator=_side)
    """Columns of a block: along the dimension that the GEMM sums over."""
    power_of_two: bool = True
    """Round each scale up to a power of two; others make the GEMM one in FP32."""
    margin: int = attrs.field(default=0, validator=_margin)
    """Powers of two of room left above the largest magnitude of a block."""


@attrs.frozen(kw_only=True)
class MXOptions:
    """``scaling = { kind = "mx", ... }``: a power of two for each block along the dimension that the GEMM sums over."""

    mode: MXMode = attrs.field(default="rceil", validator=attrs.validators.in_(MX_MODES))
    """How the power of two comes from the block's largest magnitude; ``floor`` and ``even`` may clamp it."""
    block: int | None = attrs.field(default=None, validator=attrs.validators.optional(_side))
    """Elements that share a scale; by default those of the block format, 32 for any other format."""


@attrs.frozen(kw_only=True)
class NVFP4Options:
    """``scaling = { kind = "nvfp4", ... }``: an e4m3fn scale for each block, under a float32 scale for the tensor."""

    power_of_two: bool = False
    """Round the tensor's scale up to a power of two, so that no factor is left to the product; NVFP4 itself does not."""
    block: int | None = attrs.field(default=None, validator=attrs.validators.optional(_side))
    """Elements that share a scale; by default those of the block format, 16 for any other format."""
