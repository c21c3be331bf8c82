"""What a cast did, as one vector a cast: it stays on the device and is read once a step.

In the units of x, the tensor that was cast:

    elements      how many
    overflow      finite elements whose rounded value is beyond the largest finite one: clamped (or made Inf, NaN); also
                  those whose quotient x / scale leaves the range of float32 (of float64 for such input)
    underflow     non-zero elements whose result is +0 or -0
    subnormal     elements whose result is subnormal in the format; always 0 for fixed point (E = 0), which has no
    normals nan, inf      elements that were NaN, or infinite, before the cast
    amax, amin    largest and smallest non-zero magnitude of the finite elements; 0 when there is none
    signal_power  sum of x^2 over the finite elements
    error_power   sum of (scale * q - x)^2 over the finite elements; q of an overflow counts as the largest finite value

The vector is float64: counts are exact to 2^53, and squares of float32 numbers do not overflow. Within pieces of a tensor
the squares of numbers of ordinary size are added up in float32, so that the two powers are good to about five digits; the
errors themselves are rounded once, whatever the scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from altgrad_core.numerics.formats import FloatFormat, TableFormat
from altgrad_core.numerics.kernel import grid_of
from altgrad_core.numerics.modes import Saturation
from altgrad_core.numerics.roundings import nearest_overflows

FIELDS = (
    "elements",
    "overflow",
    "underflow",
    "subnormal",
    "nan",
    "inf",
    "amax",
    "amin",
    "signal_power",
    "error_power",
)

_AMAX, _AMIN = FIELDS.index("amax"), FIELDS.index("amin")
# Within these magnitudes float32 squares neither overflow nor lose an error that matters (2^-24 of the largest
# element).
_SQUARES_FROM, _SQUARES_TO = 1e-8, 1e15
_NEVER = 1e38
# A sum of squares from which on it does not matter what was too small for a square.
_SQUARES_COUNT = 1e-29
# From here on the parts of a product with the scale are normal numbers.
_TINY = 1e-28
# Mantissa bits up to which the scale can be split so that the error of an element is good to 2^-17 of itself.
_SHORT = 5


@attrs.frozen(kw_only=True)
class CastStatistics:
    """A statistics vector on the host, with the rates made of it."""

    elements: float
    """Number of elements cast."""
    overflow: float
    """Finite elements that rounded to beyond the largest finite value."""
    underflow: float
    """Non-zero elements that became zero."""
    subnormal: float
    """Elements whose result is subnormal."""
    nan: float
    """Elements that were NaN."""
    inf: float
    """Elements that were infinite."""
    amax: float
    """Largest finite magnitude, in units of x."""
    amin: float
    """Smallest non-zero magnitude, in units of x; 0 when there is none."""
    signal_power: float
    """Sum of squares of the finite elements."""
    error_power: float
    """Sum of squares of the cast's error over the finite elements."""

    @classmethod
    def from_values(cls, values: Sequence[float]) -> CastStatistics:
        """Make it from the numbers of a vector (``vector.tolist()``), in the order of ``FIELDS``."""
        return cls(**dict(zip(FIELDS, values, strict=True)))

    @property
    def overflow_rate(self) -> float:
        """Fraction of the elements that overflowed; NaN for an empty tensor."""
        return self.overflow / self.elements if self.elements else math.nan

    @property
    def underflow_rate(self) -> float:
        """Fraction of the elements that became zero; NaN for an empty tensor."""
        return self.underflow / self.elements if self.elements else math.nan

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization-noise ratio in dB: Inf for an exact cast, NaN when nothing but zeros was cast."""
        if self.signal_power == 0.0:
            return math.nan
        return 10 * math.log10(self.signal_power / self.error_power) if self.error_power else math.inf


def combine(vectors: Tensor) -> Tensor:
    """Return the statistics [10] of several casts taken as one, from their vectors [k, 10], k >= 1."""
    combined = vectors.sum(dim=0)
    combined[_AMAX] = vectors[:, _AMAX].amax()
    smallest = vectors[:, _AMIN]
    smallest = torch.where(smallest > 0, smallest, math.inf).amin()
    combined[_AMIN] = torch.where(smallest.isinf(), 0.0, smallest)
    return combined


def tensor_statistics(
    x: Tensor, y: Tensor, q: Tensor, scale: float | Tensor, over: Tensor, format: FloatFormat | TableFormat
) -> Tensor:
    """Return the vector for x (float32 or float64), y = x / scale and the result q, all of one shape. No host sync.

    ``scale`` is one for all or one an element; ``over`` tells which finite elements overflowed.
    """
    finite = torch.isfinite(x)
    magnitude = torch.where(finite, x.abs(), 0.0).double()
    non_zero = magnitude > 0
    if magnitude.numel():
        amax = magnitude.amax()
        amin = torch.where(non_zero, magnitude, math.inf).amin()
        amin = torch.where(amin.isinf(), 0.0, amin)
    else:
        amax = amin = magnitude.sum()
    zero = q == 0
    if isinstance(format, FloatFormat):
        grid = grid_of(format)  # whose numbers are constants to the compiler, too
        min_normal, low, high = grid.min_normal, (-grid.max_finite if grid.signed else 0.0), grid.max_finite
    else:
        min_normal, low, high = 0.0, format.min_finite, format.max_finite
    subnormal = (q.abs() < min_normal) & ~zero
    limit = torch.where(torch.signbit(y), torch.full_like(y, low, dtype=torch.float64), high)
    clamped = torch.where(torch.isfinite(q), q.double(), limit)
    wide_scale = scale.detach().double() if isinstance(scale, Tensor) else scale
    error = torch.where(finite, clamped * wide_scale - x.double(), 0.0)
    counts = [over, zero & non_zero, subnormal, torch.isnan(x), torch.isinf(x)]
    fields = [count.sum().double() for count in counts]
    fields += [amax, amin, magnitude.square().sum(), error.square().sum()]
    return torch.stack([torch.full_like(amax, x.numel()), *fields])


def chunk_statistics(
    x: Tensor, y: Tensor, q: Tensor, *, scale: float, format: FloatFormat, saturation: Saturation, scratch: Tensor
) -> list[float]:
    """Return the vector's numbers for a 1-D chunk on the CPU, where reading a number does not wait for anything.

    The usual chunk, finite and of ordinary magnitude, takes few passes: a mask written as float32 and summed is three
    times as fast as counting booleans, and what the largest magnitude rules out is not counted. Any other chunk goes
    the plain way. Chunks are well below 2^24 elements, so that float32 sums of masks are exact.
    """
    grid = grid_of(format)
    if scale == 0.0:  # a tensor's value, which the caller did not check
        return tensor_statistics(x, y, q, scale, nearest_overflows(y, x, grid), format).tolist()
    torch.abs(x, out=scratch)
    amax, amin = scratch.amax().item(), scratch.amin().item()
    scaled_amax = amax / scale
    exact_scale = math.frexp(scale)[0] == 0.5
    usual = _SQUARES_FROM < scaled_amax < _SQUARES_TO and _TINY < amax < _NEVER and grid.signed and x.numel() < 2**24
    if not usual or not (exact_scale or grid.mantissa_bits <= _SHORT):
        return tensor_statistics(x, y, q, scale, nearest_overflows(y, x, grid), format).tolist()
    overflow = 0.0
    if scaled_amax >= grid.max_finite:
        torch.abs(y, out=scratch)
        compare = torch.gt if grid.threshold_rounds_to_max else torch.ge
        overflow = compare(scratch, grid.overflow_threshold, out=scratch).sum().item()
        if overflow and saturation == "none":  # Inf or NaN in q
            return tensor_statistics(x, y, q, scale, nearest_overflows(y, x, grid), format).tolist()
    zeros = 0.0
    if amin == 0.0:
        zeros = torch.eq(x, 0.0, out=scratch).sum().item()
        amin = scratch.mul_(_NEVER).add_(x.abs()).amin().item()
    zero_results, subnormal = zeros, 0.0
    if amin / scale < 2 * max(grid.min_normal, grid.min_positive):
        zero_results = torch.eq(q, 0.0, out=scratch).sum().item()
        if grid.min_normal and grid.mantissa_bits:
            torch.abs(q, out=scratch)
            subnormal = torch.lt(scratch, grid.min_normal, out=scratch).sum().item() - zero_results
    signal = torch.dot(y, y).item()
    if exact_scale:
        error = torch.sub(q, y, out=scratch)
    else:  # y is rounded, so go by x: the product with the first bits of the scale is exact, and so is the difference
        high = _first_bits(scale, 23 - grid.mantissa_bits)
        error = torch.mul(q, high, out=scratch).sub_(x).add_(q, alpha=scale - high).div_(scale)
    noise = torch.dot(error, error).item()
    if noise < _SQUARES_COUNT:  # some may have been too small for a square
        return tensor_statistics(x, y, q, scale, nearest_overflows(y, x, grid), format).tolist()
    powers = [signal * scale * scale, noise * scale * scale]
    return [float(x.numel()), overflow, zero_results - zeros, subnormal, 0.0, 0.0, amax, amin, *powers]


def _first_bits(value: float, bits: int) -> float:
    """Return a positive number cut to its first ``bits`` significant bits."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(math.floor(math.ldexp(mantissa, bits)), exponent - bits)
