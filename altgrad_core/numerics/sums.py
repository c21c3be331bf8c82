"""What probes ask of whole tensors: moments, products, what an update moved. One pass each, sums in FP64.

FP32 sums of 10 M elements are off in the third digit, and the squares of small gradients underflow. On the CPU the native
kernels (``cpp/measure.cpp``) read each number once; elsewhere it is tensor operations on pieces. Results stay on the
tensor's device and nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from altgrad_core.errors import AltgradError
from altgrad_core.numerics import native_cast
from altgrad_core.numerics.blockwise import Block
from altgrad_core.numerics.cast import cast, inverse_scale
from altgrad_core.numerics.codes import ulp
from altgrad_core.numerics.formats import FloatFormat, Format
from altgrad_core.numerics.kernel import grid_of
from altgrad_core.numerics.native import status
from altgrad_core.numerics.native_kinds import TYPES, grid_pointer

_CHUNK = 1 << 17  # elements; a few float64 copies stay in the second-level cache


def moments(x: Tensor) -> Tensor:
    """Return [sum, sum of squares, largest magnitude, zero rows] of ``x``, float64 [4].

    A row is what one index of the first dimension selects, all of it for a tensor of one dimension; a zero row holds
    nothing but zeros. NaN and Inf go into sums and magnitude as they are.
    """
    x = x.detach()
    rows = x.reshape(len(x), -1) if x.dim() > 1 else x.reshape(1, -1)
    if rows.numel() and x.dtype in TYPES and native_cast.takes(x):
        library = status().library
        assert library is not None
        rows = rows.resolve_neg().contiguous()
        out = torch.empty(4, dtype=torch.float64, device="cpu")
        library.altgrad_moments(
            rows.data_ptr(), TYPES[x.dtype], *rows.shape, out.data_ptr(), native_cast.threads_for(rows)
        )
        return out
    out = torch.zeros(4, dtype=torch.float64, device=x.device)
    if not rows.numel():
        return out
    for (piece,) in _pieces(x):
        out[:2] += torch.stack([piece.sum(), piece @ piece])
    low, high = torch.aminmax(rows, dim=1)  # both extremes in one pass; an infinity norm is 18 times slower
    out[2] = torch.maximum(high.max(), -low.min())
    out[3] = ((low == 0) & (high == 0)).sum()
    return out


def products(g: Tensor, s: Tensor) -> Tensor:
    """Return [g . g, s . s, g . s, (g - s) . (g - s)] of two tensors of one shape, float64 [4]."""
    g, s = g.detach(), s.detach()
    _check_shapes(g, s)
    if g.dtype is torch.float32 and s.dtype is torch.float32 and native_cast.takes(g) and native_cast.takes(s):
        library = status().library
        assert library is not None
        g, s = g.resolve_neg().contiguous(), s.resolve_neg().contiguous()
        out = torch.empty(4, dtype=torch.float64, device="cpu")
        library.altgrad_products(g.data_ptr(), s.data_ptr(), g.numel(), out.data_ptr(), native_cast.threads_for(g))
        return out
    out = torch.zeros(4, dtype=torch.float64, device=g.device)
    for x, y in _pieces(g, s):
        error = x - y
        out += torch.stack([x @ x, y @ y, x @ y, error @ error])
    return out


def update_counts(
    before: Tensor, after: Tensor, gradient: Tensor, format: Format, scale: Tensor, block: Block | None = None
) -> Tensor:
    """Return what an update moved, float64 [5], from a weight before and after it and its gradient, of one shape.

    [elements whose number is the same, elements with a non-zero gradient, of those the ones whose value in ``format``
    (at ``scale``, nearest even, clamped) is the same, all elements whose value is the same, and the sum of
    abs(after - before) / ulp of the format at ``before``].
    """
    before, after, gradient = before.detach(), after.detach(), gradient.detach()
    tensors = (before, after, gradient)
    _check_shapes(*tensors)
    if (
        isinstance(format, FloatFormat)
        and format.signed
        and block is None
        and all(t.dtype is torch.float32 and native_cast.takes(t) for t in tensors)
        and native_cast.rounds(grid_of(format))
    ):
        library = status().library
        assert library is not None
        held = [t.resolve_neg().contiguous() for t in tensors]
        out = torch.empty(5, dtype=torch.float64, device="cpu")
        inverse = inverse_scale(scale)
        library.altgrad_updates(
            *(t.data_ptr() for t in held),
            before.numel(),
            grid_pointer(grid_of(format)),
            float(inverse),
            max(2.0**format.min_exponent, 2.0**format.max_exponent),
            out.data_ptr(),
            native_cast.threads_for(before),
        )
        return out
    dtype = torch.bfloat16 if format.fits_bfloat16 else torch.float32
    old, new = (cast(t, format, scale=scale, block=block, dtype=dtype)[0] for t in (before, after))
    same, wanted = old == new, gradient != 0
    spacing = ulp(before, format, scale=scale, block=block)
    moved = ((after - before).abs() / spacing).double().sum()
    counts = [before == after, wanted, same & wanted, same]
    return torch.stack([*(count.sum().double() for count in counts), moved])


def _check_shapes(*tensors: Tensor) -> None:
    shapes = [list(tensor.shape) for tensor in tensors]
    if any(shape != shapes[0] for shape in shapes):
        raise AltgradError(f"Tensors of one shape are compared element by element; got the shapes {shapes}.")


def _pieces(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """Yield matching pieces of tensors of one shape, flat, in float64."""
    for pieces in zip(*(torch.split(tensor.reshape(-1), _CHUNK) for tensor in tensors), strict=True):
        yield [piece.double() for piece in pieces]
