"""A logarithmic format: a sign, and the binary logarithm in steps of 1/8. It rounds the logarithm, which is a cast of its own.

Codes 1 to 127 are 2^(-8 + code/8), 0 is zero, codes 129 to 255 are the negatives, 128 is NaN. The nearest value is not what
a logarithmic unit takes: between 2^a and 2^b it changes from the one to the other at 2^((a + b) / 2), their geometric mean.
Below half a step under the smallest value there is zero.
"""

import math
import struct
from fractions import Fraction

from altgrad_core import TableFormat, hookimpl

ALTGRAD_HOOKSPEC = 1
POSITIVE = [
    struct.unpack("f", struct.pack("f", 2.0 ** (-8 + code / 8)))[0] for code in range(1, 128)
]  # float32 numbers


def threshold(code):
    """Return the least float64 at or above 2^(-8 + code/8 - 1/16), where the code's numbers begin."""
    sixteenths = 2 * code - 1 - 128
    guess = math.nextafter(2.0 ** (sixteenths / 16), 0.0)
    while Fraction(guess) ** 16 < Fraction(2) ** sixteenths:
        guess = math.nextafter(guess, math.inf)
    return guess


THRESHOLDS = [threshold(code) for code in range(1, 128)]


def nearest_logarithm(y):
    """Return for each number the value whose logarithm is nearest."""
    import torch  # not at the top: `altgrad --help` imports every plugin

    thresholds = torch.tensor(THRESHOLDS, dtype=torch.float64, device=y.device)
    code = torch.bucketize(y.abs().double(), thresholds, right=True)
    magnitude = torch.tensor([0.0, *POSITIVE], dtype=y.dtype, device=y.device)[code]
    return torch.where(y < 0, -magnitude, magnitude) + 0.0  # there is no -0


LOG8 = TableFormat(
    name="log8",
    table=[0.0, *POSITIVE, math.nan, *(-value for value in POSITIVE)],
    nearest=nearest_logarithm,
    source="AltGrad's examples",
)


@hookimpl
def altgrad_register_formats(register):
    """Offer it."""
    register(LOG8)
