from altgrad_scaling_rms import ALTGRAD_CANNOT

from altgrad_core.testing import ScalingConformance


class TestRMS(ScalingConformance):
    kind = "rms"
    cannot = ALTGRAD_CANNOT["scaling/rms"]
