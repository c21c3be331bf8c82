"""Codes of a format: ``encode``, ``decode``, their order, neighbouring values and their distance, all values, packing.

For storage, for counting what moved by how many steps, and for tests; a cast itself never makes codes. A ``FloatFormat``
is computed with, a ``TableFormat`` looked up. The elements of a ``BlockFormat`` have codes together with their scales:
see ``altgrad_core.numerics.blocks``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from altgrad_core.errors import AltgradError
from altgrad_core.numerics.blockwise import Block, check_scale, expand
from altgrad_core.numerics.cast import cast, inverse_scale, scale_tensor, traceable, work_dtype
from altgrad_core.numerics.encodings import (
    NAN_ORDINAL,
    codes_of,
    exponent_and_fraction,
    table_places,
    table_spacing,
    times_power,
    value_at,
    values_of,
)
from altgrad_core.numerics.formats import FloatFormat, Format, TableFormat
from altgrad_core.numerics.kernel import grid_of
from altgrad_core.numerics.modes import Rounding, Saturation
from altgrad_core.numerics.registry import get_format
from altgrad_core.numerics.stochastic import MAX_RANDOM_BITS, Draw

__all__ = [
    "NAN_ORDINAL", "all_values", "decode", "encode", "neighbours", "ordinal", "pack", "ulp", "unpack",
]  # fmt: skip

_LISTED_BITS = 20


def encode(
    x: Tensor,
    format: str | Format,
    *,
    scale: float | Tensor = 1.0,
    block: Block | None = None,
    rounding: Rounding = "nearest_even",
    saturation: Saturation = "finite",
    draw: Draw | None = None,
    random_bits: int = MAX_RANDOM_BITS,
    nan_code: int | None = None,
) -> Tensor:
    """Return the codes (int64, shape of ``x``) of the values that x / scale rounds to, as ``quantize`` rounds.

    All other arguments are ``quantize``'s.
    NaN gets ``nan_code``, by default ``format.nan_code``. For a format without a NaN code ``nan_code`` must be given
    where ``x`` may hold NaN: otherwise the tensor is searched (which waits for an accelerator) and a NaN raises
    ``AltgradError``.
    """
    fmt = _with_codes(format)
    work = work_dtype(x)
    if nan_code is None:
        nan_code = fmt.nan_code
        if nan_code is None:
            if bool(torch.isnan(x).any()):
                raise AltgradError(
                    f"'{fmt.name}' has no code for NaN and the tensor holds NaN; say which code it gets: nan_code=..."
                )
            nan_code = 0
    elif not isinstance(nan_code, int) or not 0 <= nan_code < 2**fmt.bits:
        raise AltgradError(f"nan_code for '{fmt.name}' is 0 to {2**fmt.bits - 1}, got {nan_code!r:.60}.")
    if work is torch.float32 and not fmt.fits_float32:
        # The values take float64, but x is divided as quantize() divides it, in float32, where a finite quotient is kept.
        y = x.detach().float() * _inverse_and_scale(scale, x, block)[0]
        largest = torch.finfo(torch.float32).max
        x, scale, block = torch.where(torch.isinf(x), y, y.clamp(-largest, largest)).double(), 1.0, None
        work = torch.float64
    q, _ = cast(
        x,
        fmt,
        scale=scale,
        block=block,
        rounding=rounding,
        saturation=saturation,
        draw=draw,
        random_bits=random_bits,
        dtype=work,
    )
    codes: Tensor = torch.where(torch.isnan(q), nan_code, codes_of(q, fmt))
    return codes


def decode(codes: Tensor, format: str | Format, *, scale: float | Tensor = 1.0, block: Block | None = None) -> Tensor:
    """Return scale * value of each code, in the shape of ``codes`` (any integer dtype; higher bits are not read).

    ``scale`` and ``block`` are ``quantize``'s. float32, or float64 for a format that float32 does not hold
    (``fits_float32``).
    """
    fmt = _with_codes(format)
    value = values_of(_own_bits(codes, fmt), fmt)
    return value.to(_holder(fmt)) * _inverse_and_scale(scale, codes, block)[1]


def ordinal(codes: Tensor, format: str | Format) -> Tensor:
    """Return the place of each code in the order of values, int64: 0 for zero, +-1 for its neighbours, and so on.

    Both zeros have place 0, Inf comes one after the largest finite value, NaN is ``NAN_ORDINAL``. In a table without
    zero the smallest positive value has place 0.
    """
    fmt = _with_codes(format)
    codes = _own_bits(codes, fmt)
    if isinstance(fmt, TableFormat):
        return table_places(codes, fmt)
    grid = grid_of(fmt)
    magnitude = codes & (2 ** (grid.exponent_bits + grid.mantissa_bits) - 1)
    negative = (codes & fmt.sign_bit) != 0
    nan = magnitude > (fmt.max_code if fmt.inf_code is None else fmt.inf_code)
    if fmt.nan_is_negative_zero:
        nan = nan | (codes == fmt.sign_bit)
    return torch.where(nan, NAN_ORDINAL, torch.where(negative, -magnitude, magnitude))


def neighbours(x: Tensor, format: str | Format) -> tuple[Tensor, Tensor]:
    """Return the largest value of the format below each element of ``x`` and the smallest above, in the shape of ``x``.

    A value of the format has its neighbours in the order of values on either side; zero, be it one code or two, is one
    value. Past the last finite value there is Inf where the format has it, else NaN, as for NaN itself. float32, or
    float64 for a format that float32 does not hold.
    """
    fmt = _with_codes(format)
    work_dtype(x)
    wide = x.detach().double()
    number = torch.where(torch.isnan(wide), 1.0, wide)
    code = encode(number, fmt, nan_code=0)  # there is none
    nearest, place = values_of(code, fmt), ordinal(code, fmt)
    below = torch.where(nearest < number, nearest, value_at(place - 1, fmt))
    above = torch.where(nearest > number, nearest, value_at(place + 1, fmt))
    below = torch.where(torch.isnan(wide) | (wide == -math.inf), math.nan, below)
    above = torch.where(torch.isnan(wide) | (wide == math.inf), math.nan, above)
    return below.to(_holder(fmt)), above.to(_holder(fmt))


def ulp(x: Tensor, format: str | Format, *, scale: float | Tensor = 1.0, block: Block | None = None) -> Tensor:
    """Return the distance between neighbouring values of the format around ``x``, in units of x and its shape.

    ``scale`` and ``block`` are ``quantize``'s.

    Around a value it is the distance to the next one away from zero. Below the smallest normal it is that of the
    subnormals, beyond the largest finite value that of the largest; a table's last two on that side count. NaN for NaN.
    float32, or float64 for a format that float32 does not hold.
    """
    fmt = _with_codes(format)
    work_dtype(x)
    inverse, factor = _inverse_and_scale(scale, x, block)
    y = x.detach().double() * inverse
    if isinstance(fmt, TableFormat):
        spacing = table_spacing(y, fmt)
    else:
        size = torch.where(torch.isfinite(y), y.abs(), fmt.max_finite)
        grid = grid_of(fmt)
        lowest = 1 - grid.bias
        exponent = exponent_and_fraction(size)[0].clamp(lowest, max(lowest, math.frexp(grid.max_finite)[1] - 1))
        spacing = times_power(torch.ones_like(size), exponent - grid.mantissa_bits)
    return torch.where(torch.isnan(x), math.nan, spacing.to(_holder(fmt)) * factor)


def all_values(format: str | Format) -> Tensor:
    """Return the values of the format in ascending order, infinities too, zero once, NaN not: float64 [n].

    For formats of up to 20 bits.
    """
    fmt = _with_codes(format)
    if fmt.bits > _LISTED_BITS:
        raise AltgradError(f"'{fmt.name}' has 2^{fmt.bits} codes; values are listed for up to {_LISTED_BITS} bits.")
    values = values_of(torch.arange(2**fmt.bits, device="cpu"), fmt)
    listed: Tensor = torch.unique(values[~torch.isnan(values)] + 0.0)
    return listed


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return codes of 1 to 8 bits without gaps: uint8 [ceil(n * bits / 8)] for ``codes`` of n elements, any shape.

    Little-endian: code i has the bits i * bits and following, and bit k is bit k % 8, from the lowest, of byte k // 8.
    So of two 4-bit codes the first has the low half of the byte. Left-over bits are 0; higher bits of codes are not
    read.
    """
    _check_width(bits)
    _check_integers(codes)
    if bits == 8:
        return codes.detach().reshape(-1).to(torch.uint8)
    if bits == 4:  # the usual case, without the wide words
        halves = codes.detach().reshape(-1).to(torch.uint8) & 15
        halves = torch.nn.functional.pad(halves, (0, halves.numel() % 2))
        return halves[0::2] | halves[1::2] << 4
    flat = codes.detach().reshape(-1).to(torch.int64) & (2**bits - 1)
    count = flat.numel()
    # Eight codes are as many bytes as a code has bits.
    groups = torch.nn.functional.pad(flat, (0, -count % 8)).view(-1, 8)
    words = (groups << (bits * torch.arange(8, device=codes.device))).sum(dim=1)
    packed = (words[:, None] >> (8 * torch.arange(bits, device=codes.device))) & 255
    return packed.to(torch.uint8).reshape(-1)[: (count * bits + 7) // 8]


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the first ``count`` codes (int64 [count]) that ``pack`` packed; raises ``AltgradError`` for fewer bytes."""
    _check_width(bits)
    if packed.dtype is not torch.uint8 or count < 0:
        raise AltgradError(
            f"Packed codes are bytes, torch.uint8, of which 0 codes or more are wanted; got {packed.dtype} and count {count}."
        )
    need = (count * bits + 7) // 8
    if packed.numel() < need:
        raise AltgradError(f"{count} codes of {bits} bits take {need} bytes, got {packed.numel()}.")
    if bits == 8:
        return packed.detach().reshape(-1)[:need].to(torch.int64)
    if bits == 4:
        whole = packed.detach().reshape(-1)[:need]
        halves: Tensor = torch.stack([whole & 15, whole >> 4], dim=1).reshape(-1)[:count].to(torch.int64)
        return halves
    flat = packed.detach().reshape(-1)[:need].to(torch.int64)
    groups = torch.nn.functional.pad(flat, (0, -need % bits)).view(-1, bits)
    words = (groups << (8 * torch.arange(bits, device=packed.device))).sum(dim=1)
    codes = (words[:, None] >> (bits * torch.arange(8, device=packed.device))) & (2**bits - 1)
    first: Tensor = codes.reshape(-1)[:count]
    return first


def _check_width(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise AltgradError(f"Codes are packed at 1 to 8 bits, got {bits}; wider ones fit integer dtypes.")


def _own_bits(codes: Tensor, format: Format) -> Tensor:
    """Return the bits of codes that the format has, int64."""
    _check_integers(codes)
    own: Tensor = codes.to(torch.int64) & (2**format.bits - 1)
    return own


def _check_integers(codes: Tensor) -> None:
    if codes.is_floating_point() or codes.is_complex() or codes.dtype is torch.bool:
        raise AltgradError(f"Codes are integers, got a tensor of {codes.dtype}; encode() makes codes of values.")


def _with_codes(format: str | Format) -> FloatFormat | TableFormat:
    found = get_format(format)
    if isinstance(found, FloatFormat | TableFormat):
        return found
    raise AltgradError(
        f"'{found.name}' is a {type(found).__name__}, whose elements have codes together with their scales: see "
        "altgrad_core.numerics.blocks."
    )


def _inverse_and_scale(scale: float | Tensor, x: Tensor, block: Block | None) -> tuple[float | Tensor, Tensor]:
    """Return float32(1 / scale) and the scale, float32, each 0-d or with ``block`` one an element of ``x``."""
    scale = traceable(check_scale(scale, x, block), x.device)
    inverse = inverse_scale(scale)
    scale = scale.detach().to(torch.float32) if isinstance(scale, Tensor) else scale_tensor(scale, x.device)
    if block is None:
        return inverse, scale
    assert isinstance(inverse, Tensor)
    return expand(inverse, x.shape, block), expand(scale, x.shape, block)


def _holder(format: Format) -> torch.dtype:
    return torch.float32 if format.fits_float32 else torch.float64
