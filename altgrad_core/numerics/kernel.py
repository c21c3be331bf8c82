"""Rounding to the nearest value of a ``FloatFormat``: one parametric kernel of operations that torch has on every device.

The other rounding modes are in ``roundings.py``; ``cpp/cast.cpp`` is all of this for the CPU in one pass.

Adding and then subtracting c = 1.5 * 2^(23-M) * 2^e, with e the exponent of the value (not below that of the smallest
normal), makes float32's own addition do the rounding: the sum has a spacing of exactly one unit of the format, and ties
go to the even sum, which is the even code. Where every value has the same spacing (E <= 1) c is one constant.

    float32   formats whose c is finite and whose smallest unit is well above the float32 subnormals, so that devices
              that flush those give the same result: E <= 7 and M <= 21 in practice
    integers  formats whose subnormals start where float32's do (bf16, tf32, fp32, e8m*): nearest even on the bits
    float64   the rest (other biases, M of 22 or 23), and every float64 input, so that nothing is rounded twice

The last step restores the sign of results that became zero. Tried and slower: ``where`` (50 times a clamp), ``frexp``.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from altgrad_core.numerics.formats import FloatFormat
from altgrad_core.numerics.modes import Saturation

_FLOAT32_EXPONENT = 0x7F800000
_FLOAT64_EXPONENT = 0x7FF0000000000000


class Grid(NamedTuple):
    """The constants of a ``FloatFormat`` that the kernels compute with.

    A tracing compiler makes symbols of the numbers it finds in an object (and compiles code that is nine times slower,
    or none at all) but constants of text, so a format carries these as text.
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int
    signed: bool
    has_inf: bool
    has_nan: bool
    has_negative_zero: bool
    threshold_rounds_to_max: bool
    min_normal: float
    """0 for fixed point, which has no normals."""
    min_positive: float
    max_finite: float
    overflow_threshold: float
    beyond: float

    @classmethod
    def parse(cls, constants: str) -> Grid:
        """Read ``FloatFormat.constants``."""
        words = constants.split(" ")
        exponent_bits, mantissa_bits, bias = int(words[0]), int(words[1]), int(words[2])
        signed, has_inf, has_nan = words[3] == "1", words[4] == "1", words[5] == "1"
        has_negative_zero, threshold_rounds_to_max = words[6] == "1", words[7] == "1"
        min_normal, min_positive, max_finite = float(words[8]), float(words[9]), float(words[10])
        return cls(
            exponent_bits,
            mantissa_bits,
            bias,
            signed,
            has_inf,
            has_nan,
            has_negative_zero,
            threshold_rounds_to_max,
            min_normal,
            min_positive,
            max_finite,
            float(words[11]),
            float(words[12]),
        )


_GRIDS: dict[str, Grid] = {}


def grid_of(format: FloatFormat) -> Grid:
    """Return the constants of a format; under the compiler they are constants of the graph."""
    if torch.compiler.is_compiling():
        return Grid.parse(format.constants)
    grid = _GRIDS.get(format.constants)
    if grid is None:
        grid = _GRIDS[format.constants] = Grid.parse(format.constants)
    return grid


def path_of(grid: Grid, dtype: torch.dtype) -> Literal["float32", "integers", "float64"]:
    """Return which of the module's three ways rounds a tensor of ``dtype`` (float32 or float64) to the grid."""
    if dtype is torch.float64:
        return "float64"
    if grid.max_finite >= 2.0**128:
        return "float64"
    top = math.frexp(grid.beyond)[1] - 1
    # Half of the smallest unit is a normal float32, so that a flushed subnormal would have become zero anyway.
    if grid.mantissa_bits <= 21 and top + 24 - grid.mantissa_bits <= 127 and grid.min_positive >= 2.0**-125:
        return "float32"
    return "integers" if (1 - grid.bias) == -126 else "float64"


def round_nearest_even(
    y: Tensor,
    grid: Grid,
    saturation: Saturation = "finite",
    *,
    x: Tensor | None = None,
    out: Tensor | None = None,
    scratch: Tensor | None = None,
) -> Tensor:
    """Return the values of the grid nearest to ``y`` (float32 or float64, any shape), ties to the even code.

    ``y`` is not changed. NaN stays NaN. ``x`` is what ``y`` was before it was scaled: only its infinities are
    infinities, others are finite elements beyond the grid; None: ``y`` itself. ``out`` and ``scratch``, both contiguous,
    of the shape and dtype of ``y`` and distinct from it, save allocations; the result is then ``out``.
    """
    if path_of(grid, y.dtype) == "float64" and y.dtype is not torch.float64:
        return _copy(round_nearest_even(y.double(), grid, saturation, x=x).to(y.dtype), out)
    saturates = saturation != "none" or not (grid.has_inf or grid.has_nan)
    # With no saturation the grid goes on for one value, so that overflow is decided after rounding.
    bound = grid.max_finite if saturates else grid.beyond
    if bound >= 2.0**128 and y.dtype is torch.float32:
        bound = math.inf  # the sum on the bits carries to it
    lowest = 0.0 if saturates and not grid.signed else -bound
    z = torch.clamp(y, lowest, bound, out=out)
    if path_of(grid, y.dtype) == "integers":
        q = _copy(_round_bits(z, grid.mantissa_bits), out)
    elif grid.exponent_bits <= 1:
        unit_sum = math.ldexp(1.5, _significand(y.dtype) - grid.mantissa_bits + 1 - grid.bias)
        q = torch.sub(torch.add(z, unit_sum, out=out), unit_sum, out=out)
    elif grid.mantissa_bits == 0:
        constant = _even_code_constant(z, grid)
        q = torch.sub(torch.add(z, constant, out=out), constant, out=out)
    else:
        power = power_of_two(z, grid, scratch)
        c = math.ldexp(1.5, _significand(y.dtype) - grid.mantissa_bits)
        q = torch.sub(torch.add(z, power, alpha=c, out=out), power, alpha=c, out=out)
    if saturation != "finite":
        q = _copy(_specials(q, y if x is None else x, grid, saturation), out)
    return torch.copysign(q, y, out=out) if grid.has_negative_zero else torch.add(q, 0.0, out=out)


def _copy(result: Tensor, out: Tensor | None) -> Tensor:
    return result if out is None else out.copy_(result)


def _significand(dtype: torch.dtype) -> int:
    return 52 if dtype is torch.float64 else 23


def power_of_two(z: Tensor, grid: Grid, scratch: Tensor | None = None) -> Tensor:
    """Return 2^floor(log2 abs(z)), at least the smallest normal of the grid, from the exponent bits."""
    wide = z.dtype is torch.float64
    integer = torch.int64 if wide else torch.int32
    bits = torch.bitwise_and(
        z.view(integer),
        _FLOAT64_EXPONENT if wide else _FLOAT32_EXPONENT,
        out=None if scratch is None else scratch.view(integer),
    )
    return torch.clamp_min(bits.view(z.dtype), 2.0 ** (1 - grid.bias), out=scratch)


def _even_code_constant(z: Tensor, grid: Grid) -> Tensor:
    """Return c for M = 0, where the parity of the code is that of the exponent field and so depends on the bias.

    c is an even multiple of the unit, so that a tie goes up, as it should from an odd code; from an even code c becomes
    an odd multiple, which makes the tie go down. float32's and float64's own biases are odd.
    """
    power = power_of_two(z, grid)
    wide = z.dtype is torch.float64
    integer = torch.int64 if wide else torch.int32
    significand = _significand(z.dtype)
    even_field = (power.view(integer) >> significand) & 1
    even_code = (even_field ^ 1) if grid.bias % 2 else even_field
    return ((power * math.ldexp(1.5, significand)).view(integer) | even_code).view(z.dtype)


def _round_bits(z: Tensor, mantissa_bits: int) -> Tensor:
    """Round float32 values to ``mantissa_bits`` on their bits; subnormals need no care, overflow carries to Inf."""
    drop = 23 - mantissa_bits
    if drop == 0:
        return z.clone()
    bits = z.view(torch.int32)
    rounded = (bits + (((bits >> drop) & 1) + (2 ** (drop - 1) - 1))) & -(2**drop)
    return torch.where(torch.isnan(z), z, rounded.view(torch.float32))  # a NaN's payload may carry into the sign


def _specials(q: Tensor, x: Tensor, grid: Grid, saturation: Saturation) -> Tensor:
    """Put Inf and NaN where ``propagate`` and ``none`` want them; for formats that have neither nothing changes."""
    if saturation == "propagate":
        if not grid.has_inf:
            return q
        kept = torch.isinf(x) if grid.signed else x == math.inf
        return torch.where(kept, x, q)
    if not (grid.has_inf or grid.has_nan):
        return q
    overflow = q.abs() > grid.max_finite if grid.signed else q > grid.max_finite
    q = torch.where(overflow, q * math.inf if grid.has_inf else math.nan, q)
    return q if grid.signed else torch.where(q < 0, math.nan, q)
