"""The rounding modes other than nearest even, and saturation, for the grid of a ``FloatFormat``, with tensor operations.

The magnitude is divided by its unit, the spacing of the grid there, which is a power of two, so that nothing is rounded;
the whole part is the lower neighbour, and the fraction decides whether the upper one is taken. All of it is exact in
float32 for the formats whose nearest-even kernel is, and in float64 for all.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from altgrad_core.numerics.kernel import Grid, path_of, power_of_two, round_nearest_even
from altgrad_core.numerics.modes import Rounding, Saturation


def round_unsaturated(
    y: Tensor, grid: Grid, rounding: Rounding, bits: Tensor | None = None, random_bits: int = 32
) -> Tensor:
    """Round ``y`` (float32 or float64, any shape) on the grid that goes on for one value beyond ``max_finite``.

    ``bits`` are int64 numbers below 2^32, one an element, for ``stochastic``, which uses the top ``random_bits`` of
    each. NaN stays NaN, the sign stays (also that of zero), Inf becomes ``grid.beyond``. Exact where the float32 path
    of ``kernel.py`` is, but for ``stochastic``; else give it float64.
    """
    z = y.abs().clamp_max(min(grid.beyond, torch.finfo(y.dtype).max))
    power = power_of_two(z, grid)
    # Once, by the unit's inverse: dividing by the power first would round float32's subnormals. Where the unit has no
    # inverse in float64, whoever is that small is a float64 number that rounds to zero or one unit all the same.
    size = 2.0**grid.mantissa_bits
    units = z * (size / power) if grid.min_positive >= 2.0**-1000 else z / power * size
    # A number so small that the product is zero is above zero all the same.
    units = torch.where(z > 0, units.clamp_min(2.0**-40), units)
    whole = units.floor()
    up = _goes_up(units - whole, whole, power, torch.signbit(y), grid, rounding, bits, random_bits)
    q = (whole + up) * (power * 2.0**-grid.mantissa_bits)
    q = torch.where(torch.isinf(y), grid.beyond, q)
    return torch.copysign(q, y)


def _goes_up(
    fraction: Tensor,
    whole: Tensor,
    power: Tensor,
    negative: Tensor,
    grid: Grid,
    rounding: Rounding,
    bits: Tensor | None,
    random_bits: int,
) -> Tensor:
    if rounding == "nearest_even":
        # The code is whole plus a multiple of 2^M; with M = 0 it is the exponent field, or 0.
        if grid.mantissa_bits:
            odd = whole.remainder(2.0) == 1.0
        else:
            field = torch.frexp(power)[1] - 1 + grid.bias
            odd = (whole > 0) & (field.remainder(2) == 1)
        return (fraction > 0.5) | ((fraction == 0.5) & odd)
    if rounding == "nearest_away":
        return fraction >= 0.5
    if rounding == "up":
        return (fraction > 0) & ~negative
    if rounding == "down":
        return (fraction > 0) & negative
    if rounding == "toward_zero":
        return torch.zeros_like(fraction, dtype=torch.bool)
    assert bits is not None
    return carries(fraction, bits, random_bits)


def carries(fraction: Tensor, bits: Tensor, random_bits: int) -> Tensor:
    """Tell where stochastic rounding goes up: fraction * 2^N, rounded to even, plus the top N bits reaches 2^N.

    ``fraction`` is float64 from 0 to below 1; exactly 0 never goes up.
    """
    threshold = torch.round(fraction * 2.0**random_bits)
    return threshold + (bits >> (32 - random_bits)).double() >= 2.0**random_bits


def overflows(r: Tensor, x: Tensor, grid: Grid) -> Tensor:
    """Tell which finite elements of ``x`` rounded to something beyond the grid; ``r`` is ``round_unsaturated``'s."""
    over = r.abs() > grid.max_finite
    if not grid.signed:
        over = over | (r < 0)
    return over & torch.isfinite(x)


def saturate(r: Tensor, y: Tensor, x: Tensor, grid: Grid, rounding: Rounding, saturation: Saturation) -> Tensor:
    """Return ``r``, which ``round_unsaturated`` made of ``y``, with what is beyond the grid put where it belongs.

    ``x`` tells infinities from finite elements whose quotient ``y`` is none.
    """
    over = r.abs() > grid.max_finite
    negative = torch.signbit(y)
    limit = torch.full_like(r, grid.max_finite)
    if not grid.signed:
        over = over | (r < 0)
        limit = torch.where(negative, 0.0, limit)
    specials = grid.has_inf or grid.has_nan
    if saturation == "none" and specials:
        outside = torch.full_like(r, math.inf if grid.has_inf else math.nan)
        if not grid.signed:
            outside = torch.where(negative, math.nan, outside)
        inwards = torch.isfinite(x)
        if rounding == "up":
            inwards = inwards & negative
        elif rounding == "down":
            inwards = inwards & ~negative
        elif rounding != "toward_zero":
            inwards = torch.zeros_like(inwards)
        beyond = torch.where(inwards, limit, outside)
    elif saturation == "propagate" and grid.has_inf:
        kept = torch.isinf(x) if grid.signed else x == math.inf
        beyond = torch.where(kept, math.inf, limit)
    else:
        beyond = limit
    size = torch.where(over, beyond, r.abs())
    if not grid.signed:
        return size
    q = torch.copysign(size, y)
    return q if grid.has_negative_zero else q + 0.0


def round_to_grid(
    y: Tensor,
    grid: Grid,
    rounding: Rounding,
    saturation: Saturation,
    bits: Tensor | None = None,
    random_bits: int = 32,
    *,
    x: Tensor | None = None,
    count: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return what ``y`` (float32 or float64) rounds to, in its dtype, and which finite elements overflowed if asked.

    ``x`` is what ``y`` was before it was scaled: a finite element that became infinite overflows as a finite one.
    """
    x = y if x is None else x
    # Next to the end of float64 the sum that rounds would overflow.
    if rounding == "nearest_even" and grid.beyond * 2.0 ** (53 - grid.mantissa_bits) < math.inf:
        return round_nearest_even(y, grid, saturation, x=x), nearest_overflows(y, x, grid) if count else None
    wide = y.double() if rounding == "stochastic" or path_of(grid, y.dtype) != "float32" else y
    r = round_unsaturated(wide, grid, rounding, bits, random_bits)
    over = overflows(r, x, grid) if count else None
    return saturate(r, wide, x, grid, rounding, saturation).to(y.dtype), over


def nearest_overflows(y: Tensor, x: Tensor, grid: Grid) -> Tensor:
    """Tell which finite elements of ``x`` round, as ``y`` and to nearest even, to something beyond the grid."""
    threshold = grid.overflow_threshold
    size = y.abs().double()
    over = size > threshold if grid.threshold_rounds_to_max else size >= threshold
    if not grid.signed:
        over = torch.where(y < 0, size > grid.min_positive / 2, over)
    return over & torch.isfinite(x)
