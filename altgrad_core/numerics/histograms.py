"""Which codes a cast used, and which exponents a tensor has: what a mean hides, on demand and not in every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from altgrad_core.errors import AltgradError
from altgrad_core.numerics.blockwise import Block, expand
from altgrad_core.numerics.cast import refuse_scales
from altgrad_core.numerics.codes import encode
from altgrad_core.numerics.formats import BlockFormat, FloatFormat, Format
from altgrad_core.numerics.modes import Rounding, Saturation
from altgrad_core.numerics.registry import get_format
from altgrad_core.numerics.stochastic import MAX_RANDOM_BITS, Draw

_LISTED_BITS = 16
_CHUNK = 2**17  # elements: on a CPU what is made of so many stays in its caches
# Exponents of float32 and bfloat16: those of the subnormals reach down to that of 2^-149.
LOWEST_EXPONENT, HIGHEST_EXPONENT = -149, 127
_MANTISSA_BITS, _TOP_FIELD = 23, 255  # of float32


def code_histogram(
    x: Tensor,
    format: str | Format,
    *,
    scale: float | Tensor = 1.0,
    block: Block | None = None,
    rounding: Rounding = "nearest_even",
    saturation: Saturation = "finite",
    draw: Draw | None = None,
    random_bits: int = MAX_RANDOM_BITS,
) -> Tensor:
    """Return how many elements of ``x`` got each code, int64 [2^bits], in code order; the arguments are ``quantize``'s.

    A block format finds its own scales, and the codes are those of its elements; ``scale`` and ``block`` then stay as
    they are by default. NaN elements count under the format's
    code for NaN; a format without one leaves them out, so that the sum is below ``x.numel()``. Formats of up to 16 bits;
    raises ``AltgradError`` for a wider one.
    """
    fmt = get_format(format)
    if isinstance(fmt, BlockFormat):
        from altgrad_core.numerics.blocks import block_scale

        refuse_scales(fmt, scale, block)
        scale, block = block_scale(x, fmt)
        fmt = fmt.element
    if fmt.bits > _LISTED_BITS:
        raise AltgradError(
            f"A histogram of codes takes formats of up to {_LISTED_BITS} bits; '{fmt.name}' has {fmt.bits}. "
            "exponent_histogram() shows where its values lie."
        )
    how: dict[str, Any] = {"rounding": rounding, "saturation": saturation, "draw": draw, "random_bits": random_bits}
    nan_code = fmt.nan_code if fmt.has_nan else 0
    codes = encode(x, fmt, scale=scale, block=block, nan_code=nan_code, **how)
    if not fmt.has_nan:
        codes = codes[~torch.isnan(x)]
    return torch.bincount(codes.reshape(-1), minlength=2**fmt.bits)


def exponent_histogram(x: Tensor) -> Tensor:
    """Return how many elements have each binary exponent floor(log2(abs(x))), int64 [277], from 2^-149 to 2^127.

    Zeros, infinities and NaN have none and are left out. float64 elements beyond float32's exponents count at the ends.
    """
    if x.dtype is torch.float64:
        return _by_frexp(x)
    # By the exponent's bits, a twentieth of the time: field 0 has zero and the subnormals, 255 infinities and NaN.
    bits = x.detach().to(torch.float32).reshape(-1).contiguous().view(torch.int32)
    field = (bits >> _MANTISSA_BITS).bitwise_and_(_TOP_FIELD)
    counts = torch.bincount(field, minlength=_TOP_FIELD + 1)
    below = counts.new_zeros(_MANTISSA_BITS)
    if counts[0].item():
        subnormals = (bits[field == 0] & (2**_MANTISSA_BITS - 1)).double()  # in units of 2^-149
        below = _by_frexp(subnormals)[-LOWEST_EXPONENT:][:_MANTISSA_BITS]
    return torch.cat([below, counts[1:_TOP_FIELD]])


def _by_frexp(x: Tensor) -> Tensor:
    magnitude = x.detach().double().abs().reshape(-1)
    magnitude = magnitude[torch.isfinite(magnitude) & (magnitude > 0)]
    exponent = torch.frexp(magnitude)[1].long() - 1
    place = exponent.clamp(LOWEST_EXPONENT, HIGHEST_EXPONENT) - LOWEST_EXPONENT
    return torch.bincount(place, minlength=HIGHEST_EXPONENT - LOWEST_EXPONENT + 1)


def binade_histogram(x: Tensor, *, scale: Tensor, block: Block | None = None) -> Tensor:
    """Return ``exponent_histogram`` of ``x / scale``, int64 [277]: how many elements lie in each binade of the format's grid.

    ``scale`` is the decode scale, 0-d, or with ``block`` one a block. Quotients beyond float32 are left out.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    if block is not None:
        return exponent_histogram(x.detach().to(wide) / expand(scale, x.shape, block))
    counts = torch.zeros(HIGHEST_EXPONENT - LOWEST_EXPONENT + 1, dtype=torch.int64, device=x.device)
    for part in _parts(x):
        counts += exponent_histogram(part.to(wide) / scale)
    return counts


def used_numbers(q: Tensor, format: Format) -> Tensor:
    """Tell which finite numbers of a format ``q`` holds, as a bool tensor of one size for a format; its sum says how many.

    ``q`` are results of a cast to ``format``, undivided by any scale, in a floating-point dtype; the format
    ``fits_bfloat16``. Zero counts with either sign, as it has a code for each. A tenth of the time of
    ``code_histogram``, which rounds.
    """
    assert format.fits_bfloat16
    # Two numbers of the format differ in these bits of bfloat16.
    kept = 9 + format.mantissa_bits if isinstance(format, FloatFormat) else _LISTED_BITS
    shift, half = _LISTED_BITS - kept, 2 ** (kept - 1)
    counts = torch.zeros(2 * half, dtype=torch.int64, device=q.device)
    for part in _parts(q):
        bits = part.to(torch.bfloat16).view(torch.int16)
        counts += torch.bincount((bits >> shift).to(torch.int32).add_(half), minlength=2 * half)
    held = (torch.arange(-half, half, device=q.device) << shift).to(torch.int16).view(torch.bfloat16)
    return (counts > 0) & held.isfinite()


def _parts(x: Tensor) -> Iterator[Tensor]:
    """Yield the elements in order, [n]: on a CPU in chunks, elsewhere all."""
    flat = x.detach().reshape(-1)
    size = _CHUNK if x.device.type == "cpu" else max(flat.numel(), 1)
    for start in range(0, flat.numel(), size):
        yield flat[start : start + size]
