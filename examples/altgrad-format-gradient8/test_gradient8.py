from altgrad_core.testing import FormatConformance


class TestGradient8(FormatConformance):
    format = "gradient8"
