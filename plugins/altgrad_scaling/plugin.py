"""Registers the scaling policies: one scale a tensor (``none``, ``static``, ``current``, ``delayed``), one a row
(``rowwise``), one a block (``blockwise``, ``mx``, ``nvfp4``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from altgrad_core.hookspecs import Register, hookimpl
from altgrad_core.plugins import NoOptions
from altgrad_scaling.options import (
    BlockwiseOptions,
    CurrentOptions,
    DelayedOptions,
    MXOptions,
    NVFP4Options,
    RowwiseOptions,
    StaticOptions,
)

if TYPE_CHECKING:
    from altgrad_core.numerics.formats import Format
    from altgrad_core.numerics.scaling import ScalingPolicy


_FIXED = "the scale is fixed"
ALTGRAD_CANNOT = {
    "scaling/none": {"fits": _FIXED, "proportional": _FIXED},
    "scaling/static": {"edges": _FIXED, "fits": _FIXED, "proportional": _FIXED},
    "scaling/nvfp4": {
        "edges": "a block's scale of 1 is multiplied by the tensor's",
        "fits": "a block's scale is rounded to e4m3fn, to a smaller one too",
        "local": "the tensor's scale is part of every block's",
    },
}


def build_none(options: NoOptions, format: Format) -> ScalingPolicy:
    """Build the policy whose scale is 1."""
    from altgrad_scaling.tensor_policies import StaticScaling

    return StaticScaling(1.0)


def build_static(options: StaticOptions, format: Format) -> ScalingPolicy:
    """Build the policy with a fixed scale."""
    from altgrad_scaling.tensor_policies import StaticScaling

    return StaticScaling(options.scale)


def build_current(options: CurrentOptions, format: Format) -> ScalingPolicy:
    """Build the policy that scales by the tensor's own largest magnitude."""
    from altgrad_scaling.tensor_policies import CurrentScaling

    return CurrentScaling(format, power_of_two=options.power_of_two, margin=options.margin)


def build_delayed(options: DelayedOptions, format: Format) -> ScalingPolicy:
    """Build the policy that scales by the history of largest magnitudes."""
    from altgrad_scaling.tensor_policies import DelayedScaling

    return DelayedScaling(
        format,
        history=options.history,
        algorithm=options.algorithm,
        power_of_two=options.power_of_two,
        margin=options.margin,
    )


def build_rowwise(options: RowwiseOptions, format: Format) -> ScalingPolicy:
    """Build the policy that scales each row by its own largest magnitude."""
    from altgrad_scaling.block_policies import RowwiseScaling

    return RowwiseScaling(format, power_of_two=options.power_of_two, margin=options.margin)


def build_blockwise(options: BlockwiseOptions, format: Format) -> ScalingPolicy:
    """Build the policy that scales each block by its own largest magnitude."""
    from altgrad_scaling.block_policies import BlockwiseScaling

    return BlockwiseScaling(
        format,
        rows=options.rows,
        columns=options.columns,
        power_of_two=options.power_of_two,
        margin=options.margin,
    )


def build_mx(options: MXOptions, format: Format) -> ScalingPolicy:
    """Build the policy of OCP MX; ``format`` is a block format or that of the elements."""
    from altgrad_scaling.block_policies import MXScaling

    return MXScaling(format, mode=options.mode, size=options.block)


def build_nvfp4(options: NVFP4Options, format: Format) -> ScalingPolicy:
    """Build the policy of NVFP4; ``format`` is a block format or that of the elements."""
    from altgrad_scaling.block_policies import NVFP4Scaling

    return NVFP4Scaling(format, power_of_two=options.power_of_two, size=options.block)


@hookimpl
def altgrad_register_scaling(register: Register) -> None:
    """Register the policies of this package."""
    register("none", build_none)
    register("static", build_static, StaticOptions)
    register("current", build_current, CurrentOptions)
    register("delayed", build_delayed, DelayedOptions)
    register("rowwise", build_rowwise, RowwiseOptions)
    register("blockwise", build_blockwise, BlockwiseOptions)
    register("mx", build_mx, MXOptions)
    register("nvfp4", build_nvfp4, NVFP4Options)
