from fractions import Fraction

from altgrad_format_log8 import POSITIVE

from altgrad_core.testing import FormatConformance


class TestLog8(FormatConformance):
    format = "log8"

    def definition(self, x):
        """In exact fractions: x is past 2^(s/16) when x^16 is past 2^s."""
        power = Fraction(x) ** 16
        code = sum(power >= Fraction(2) ** (2 * code - 129) for code in range(1, 128))
        return (-1 if x < 0 else 1) * (POSITIVE[code - 1] if code else 0.0)
