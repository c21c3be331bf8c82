from altgrad_format_posit8_es0 import posit

from altgrad_core.testing import FormatConformance


class TestPosit8(FormatConformance):
    format = "posit8_es0"


def test_values_that_are_published():
    """From 1/64 to 64, precise around 1."""
    assert [posit(code) for code in (1, 0x20, 0x40, 0x41, 0x60, 0x7F)] == [1 / 64, 0.5, 1.0, 1 + 1 / 32, 2.0, 64.0]
    assert posit(0xC0) == -1.0
