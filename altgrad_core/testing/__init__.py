"""Conformance suites and hypothesis strategies for third parties; needs the packages of ``altgrad[test]``.

A format of your own is tested by::

    from altgrad_core.testing import FormatConformance

    class TestMyFP8(FormatConformance):
        format = "myfp8"
"""

from altgrad_core.testing.formats import FormatConformance
from altgrad_core.testing.strategies import landmarks, tensors

__all__ = ["FormatConformance", "landmarks", "tensors"]
