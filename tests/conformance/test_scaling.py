"""The built-in scaling policies through the public suite."""

from __future__ import annotations

from altgrad_core.plugins import installed
from altgrad_core.testing import ScalingConformance


class TestNone(ScalingConformance):
    kind = "none"
    cannot = installed().get("scaling", "none").cannot


class TestStatic(ScalingConformance):
    kind = "static"
    options = {"scale": 0.3}
    cannot = installed().get("scaling", "static").cannot


class TestCurrent(ScalingConformance):
    kind = "current"


class TestCurrentOfAnySize(ScalingConformance):
    kind = "current"
    options = {"power_of_two": False}


class TestCurrentWithAMargin(ScalingConformance):
    kind = "current"
    options = {"margin": 2}


class TestDelayed(ScalingConformance):
    kind = "delayed"
    options = {"history": 3}


class TestDelayedMostRecent(ScalingConformance):
    kind = "delayed"
    options = {"history": 4, "algorithm": "most_recent", "power_of_two": False}


class TestRowwise(ScalingConformance):
    kind = "rowwise"


class TestRowwiseOfAnySize(ScalingConformance):
    kind = "rowwise"
    options = {"power_of_two": False}


class TestBlockwise(ScalingConformance):
    kind = "blockwise"


class TestBlockwiseSquare(ScalingConformance):
    kind = "blockwise"
    options = {"rows": 128, "power_of_two": False}


class TestMX(ScalingConformance):
    kind = "mx"
    formats = ("e4m3fn", "e5m2", "e2m1fn", "mxfp8_e4m3")


class TestMXFloor(ScalingConformance):
    kind = "mx"
    options = {"mode": "floor"}
    cannot = {"fits": "floor may clamp the largest element"}


class TestMXEven(ScalingConformance):
    kind = "mx"
    options = {"mode": "even"}
    cannot = {"fits": "even may clamp the largest element"}


class TestMXCeil(ScalingConformance):
    kind = "mx"
    options = {"mode": "ceil"}


class TestNVFP4(ScalingConformance):
    kind = "nvfp4"
    formats = ("e2m1fn", "nvfp4")
    cannot = installed().get("scaling", "nvfp4").cannot
