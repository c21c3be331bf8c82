"""Registers the scaling policies ``none``, ``static``, ``current`` and ``delayed``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from altgrad_core.hookspecs import Register, hookimpl
from altgrad_core.plugins import NoOptions

if TYPE_CHECKING:
    from altgrad_core.numerics.formats import Format
    from altgrad_core.numerics.scaling import ScalingPolicy

# A margin beyond this leaves no format of 8 bits any range; and scales end at 2^126.
_margin = [attrs.validators.ge(-64), attrs.validators.le(64)]


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

    history: int = attrs.field(default=16, validator=[attrs.validators.ge(1), attrs.validators.le(65536)])
    """How many earlier tensors are remembered; every micro-batch shows one."""
    algorithm: Literal["max", "most_recent"] = attrs.field(
        default="max", validator=attrs.validators.in_(("max", "most_recent"))
    )
    """Scale for the largest magnitude in the history, or for the newest."""
    power_of_two: bool = True
    """Round the scale up to a power of two, so that the format's rounding is the only one."""
    margin: int = attrs.field(default=0, validator=_margin)
    """Powers of two of room left above that magnitude."""


def build_none(options: NoOptions, format: Format) -> ScalingPolicy:
    """Build the policy whose scale is 1."""
    from altgrad_scaling.policies import StaticScaling

    return StaticScaling(1.0)


def build_static(options: StaticOptions, format: Format) -> ScalingPolicy:
    """Build the policy with a fixed scale."""
    from altgrad_scaling.policies import StaticScaling

    return StaticScaling(options.scale)


def build_current(options: CurrentOptions, format: Format) -> ScalingPolicy:
    """Build the policy that scales by the tensor's own largest magnitude."""
    from altgrad_scaling.policies import CurrentScaling

    return CurrentScaling(format, power_of_two=options.power_of_two, margin=options.margin)


def build_delayed(options: DelayedOptions, format: Format) -> ScalingPolicy:
    """Build the policy that scales by the history of largest magnitudes."""
    from altgrad_scaling.policies import DelayedScaling

    return DelayedScaling(
        format,
        history=options.history,
        algorithm=options.algorithm,
        power_of_two=options.power_of_two,
        margin=options.margin,
    )


@hookimpl
def altgrad_register_scaling(register: Register) -> None:
    """Register the policies of this package."""
    register("none", build_none)
    register("static", build_static, StaticOptions)
    register("current", build_current, CurrentOptions)
    register("delayed", build_delayed, DelayedOptions)
