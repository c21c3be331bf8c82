"""Registers ``posit8``, ``takum8``, ``takum_linear8`` and ``nf4``.

A cast to a table takes the nearest value. The posit and takum documents round on the code instead (half-way is the code
one bit longer, and nothing but zero becomes zero), which differs where the spacing of the values changes.
"""

from __future__ import annotations

from altgrad_core.hookspecs import RegisterFormat, hookimpl
from altgrad_core.numerics.formats import TableFormat
from altgrad_format_tables.tapered import linear_takum, posit, takum

_NEAREST = "cast to the nearest value, where the standard rounds the code and never to zero"

# Tapered formats are densest around 1 and have nothing but powers, or worse, near their largest value. The amax of a
# normal tensor, about 5 of its standard deviations, at 4 to 8 puts the standard deviation near 1.
_TAPERED = 8.0

# Appendix E of the paper, with the digits of its implementation in bitsandbytes: float32 numbers.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip

FORMATS = (
    TableFormat(
        name="posit8",
        table=[posit(code, 8) for code in range(256)],
        amax_target=_TAPERED,
        source="Standard for Posit Arithmetic (2022), 8 bits, es = 2",
        note=_NEAREST,
    ),
    TableFormat(
        name="takum8",
        table=[takum(code, 8) for code in range(256)],
        amax_target=_TAPERED,
        source="arXiv 2404.18603: logarithmic takum, 8 bits",
        note=f"base sqrt(e), up to 8e51: float32 does not reach its ends; {_NEAREST}",
    ),
    TableFormat(
        name="takum_linear8",
        table=[linear_takum(code, 8) for code in range(256)],
        amax_target=_TAPERED,
        source="arXiv 2408.10594: linear takum, 8 bits",
        note=f"up to 2^239: float32 does not reach its ends; {_NEAREST}",
    ),
    TableFormat(
        name="nf4",
        table=_NF4,
        source="arXiv 2305.14314 (QLoRA), appendix E; bitsandbytes",
        note="quantiles of a normal distribution in [-1, 1]: scale by the amax of a block",
    ),
)


@hookimpl
def altgrad_register_formats(register: RegisterFormat) -> None:
    """Register the formats of this package."""
    for format in FORMATS:
        register(format)
