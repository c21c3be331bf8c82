"""A plain float format: e4m3 whose bias puts its range where the gradients of a small transformer are."""

from altgrad_core import FloatFormat, hookimpl

ALTGRAD_HOOKSPEC = 1

GRADIENT8 = FloatFormat(
    name="gradient8",
    exponent_bits=4,
    mantissa_bits=3,
    bias=20,  # 7 is usual: values from 2^-22 to 0.055, so that gradients need no scaling
    specials="fn",
    source="AltGrad's examples",
)


@hookimpl
def altgrad_register_formats(register):
    """Offer it."""
    register(GRADIENT8)
