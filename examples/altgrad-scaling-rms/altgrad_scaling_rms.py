"""A scaling policy: by the root mean square, so that one outlier does not decide for all. What is beyond is clamped."""

import attrs

from altgrad_core import hookimpl

ALTGRAD_HOOKSPEC = 1
ALTGRAD_CANNOT = {"scaling/rms": {"fits": "what is beyond so many root mean squares is clamped"}}


@attrs.frozen(kw_only=True)
class Options:
    """What ``scaling = { kind = "rms", ... }`` accepts."""

    sigmas: float = attrs.field(default=8.0, validator=[attrs.validators.gt(0.0), attrs.validators.le(1000.0)])
    """Root mean squares that the format's largest value stands for."""


def build(options, format):
    """Make the policy for one operand of one layer."""
    from altgrad_core.numerics.scaling import ScalingPolicy, scale_for

    class RMS(ScalingPolicy):
        def forward(self, x, axis=-1):
            rms = x.detach().double().square().mean().sqrt()
            return scale_for(rms * options.sigmas, format, power_of_two=True, margin=0)

    return RMS()


@hookimpl
def altgrad_register_scaling(register):
    """Offer it."""
    register("rms", build, Options)
