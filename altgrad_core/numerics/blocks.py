"""Block formats: the scales of MX and NVFP4, and a tensor's codes under them.

**MX** (OCP Microscaling Formats 1.0, section 6.3): 32 elements along the dimension that a GEMM sums over share a power
of two, an e8m0 number. How it comes from their amax is left open; ``mode`` is one of four known ways, with target the
``scale_target`` of the element format, emax its exponent, and M the mantissa bits that the format has there:

    floor    2^(floor(log2(amax)) - emax)  OCP's example; clamps elements above the largest value, which lose up to 1/8 of
                                           their size in e4m3fn, 1/4 in e2m1fn
    even     floor, of amax rounded half up to M bits first: clamps what would round to the largest value, and in e4m3fn,
                                           which ends one code early, up to 1/10
    ceil     2^(ceil(log2(amax)) - emax)   clamps nothing and loses up to a bit of the range
    rceil    2^ceil(log2(amax / target))   the smallest power of two that clamps nothing

The target is the largest value, but 8 in posits and takums, which are densest around 1: there floor and even put amax
from 8 to below 16, ceil and rceil from above 4 to 8, and nothing is clamped. Logarithmic takums have no mantissa bits; for
them even is floor.

The default is ``rceil``: floor's clamping can make a training diverge, rceil matched BF16 at 8 B parameters and 15 T
tokens (arXiv 2506.08027), and it is what Blackwell's own converter computes. Exponents are read off the bits, never off
a logarithm, which is off by one next to powers of two. Otherwise the scales are those of torchao's
``ScaleCalculationMode``.

**NVFP4**: 16 elements share an e4m3fn number, and the tensor a float32 number on top of it:

    tensor_scale = amax / (448 * 6)         block_scale = e4m3fn((block_amax / 6) / tensor_scale)

where each division rounds to float32; for other formats their ``scale_target`` stands in place of 448 and 6. A block
scale is at least 2^-9, the smallest above zero, since 0 has no inverse.

**Edges**: a block whose amax is 0, Inf or NaN has scale 1 (torchao: 2^-127, 2^-6 or NaN), and so has the tensor scale.
The last block of a row may be a shorter one.
"""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor

from altgrad_core.errors import AltgradError, unknown
from altgrad_core.numerics.amax import block_amax, tensor_amax
from altgrad_core.numerics.blockwise import Block
from altgrad_core.numerics.cast import quantize
from altgrad_core.numerics.codes import decode, encode
from altgrad_core.numerics.formats import BlockFormat, FloatFormat, Format
from altgrad_core.numerics.kernel import grid_of
from altgrad_core.numerics.modes import MX_MODES, MXMode
from altgrad_core.numerics.registry import get_format
from altgrad_core.numerics.scaling import MAX_SCALE, MIN_SCALE, power_of_two_from, scale_range, target_of, usable

E2M1 = FloatFormat(name="e2m1fn", exponent_bits=2, mantissa_bits=1, specials="none")
E4M3 = FloatFormat(name="e4m3fn", exponent_bits=4, mantissa_bits=3, specials="fn")
_SMALLEST_E8M0, _LARGEST_E8M0 = 2.0**-127, 2.0**127
_MANTISSA_64 = 52


def mx_scale(amax: Tensor, element: Format, mode: MXMode = "rceil") -> Tensor:
    """Return the MX scale of blocks with these ``amax`` (float32, any shape): powers of two, float32, same shape.

    From 2^-127 to 2^127, the range of e8m0; 1 where ``amax`` is 0, Inf or NaN. ``element`` is the format of the
    elements, ``mode`` as in the module's text. Raises ``AltgradError`` for another mode.
    """
    if mode not in MX_MODES:
        raise AltgradError(unknown("mode of MX scales", str(mode), MX_MODES))
    good = usable(amax)
    size = torch.where(good, amax, 1.0).double()
    emax = math.frexp(target_of(element))[1] - 1
    if mode == "rceil":
        scale = power_of_two_from(size / target_of(element))
    elif mode == "ceil":
        scale = power_of_two_from(size) * 2.0**-emax
    else:
        kept = _MANTISSA_64 if mode == "floor" else top_mantissa_bits(element)
        carry = 1 << (_MANTISSA_64 - 1 - kept) if kept < _MANTISSA_64 else 0
        scale = power_of_two_from(size, carry) * 2.0**-emax
    return torch.where(good, scale.clamp(2.0**-127, 2.0**127).to(torch.float32), 1.0)


def top_mantissa_bits(format: Format) -> int:
    """Return how many mantissa bits the values in the binade of ``scale_target`` have, up to 52."""
    emax = math.frexp(target_of(format))[1] - 1
    if isinstance(format, FloatFormat):
        grid = grid_of(format)  # whose numbers are constants to the compiler, too; it gets a shift by others wrong
        return grid.mantissa_bits - max(0, 1 - grid.bias - emax)
    binade = [math.ldexp(abs(v), -emax) for v in format.values() if 2.0**emax <= abs(v) < 2.0 ** (emax + 1)]
    return max([0, *(significand.as_integer_ratio()[1].bit_length() - 1 for significand in binade)])


def nvfp4_scales(
    block_amax: Tensor,
    tensor_amax: Tensor,
    *,
    element: Format = E2M1,
    scale_format: Format = E4M3,
    power_of_two: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return (block scales, values of ``scale_format`` in the shape of ``block_amax``; tensor scale, 0-d), float32.

    With ``power_of_two`` the tensor scale is the smallest power of two that leaves no block scale above the largest.
    The products of the two lie between 2^-126 and 2^126. Raises ``AltgradError`` for a scale format that alone spans more.
    """
    check_two_levels(scale_format)
    known = usable(tensor_amax)
    ratio = torch.where(known, tensor_amax, 1.0).double() / (target_of(scale_format) * target_of(element))
    if power_of_two:
        ratio = power_of_two_from(ratio)
    smallest, largest = scale_range()
    ends = grid_of(scale_format) if isinstance(scale_format, FloatFormat) else scale_format
    least, most = smallest / ends.min_positive, largest / ends.max_finite
    tensor_scale = torch.where(known, ratio.clamp(least, most).to(torch.float32), 1.0)
    # A float64 quotient of float32 numbers, rounded to float32, is the float32 quotient, on every device and compiled.
    share = (block_amax.double() / target_of(element)).to(torch.float32)
    block_scale = quantize((share.double() / tensor_scale.double()).to(torch.float32), scale_format)
    block_scale = block_scale.clamp_min(ends.min_positive)
    return torch.where(usable(block_amax), block_scale, 1.0), tensor_scale


def nvfp4_scale(block_amax: Tensor, tensor_amax: Tensor) -> Tensor:
    """Return the decode scales of NVFP4: block scale times tensor scale, rounded to float32, shape of ``block_amax``."""
    block_scale, tensor_scale = nvfp4_scales(block_amax, tensor_amax)
    return block_scale * tensor_scale


def block_of(format: BlockFormat, axis: int = -1) -> Block:
    """Return the rows and columns of a block: along the last dimension (axis -1), or along the others (axis 0)."""
    return (1, format.block) if axis == -1 else (format.block, 1)


def block_scale(x: Tensor, format: BlockFormat, *, axis: int = -1, mode: MXMode = "rceil") -> tuple[Tensor, Block]:
    """Return (decode scales, float32 [nr, nc]; rows and columns of a block) of ``x`` in a block format.

    ``x`` is looked at as a matrix [rows, columns]: its last dimension, and the product of the others. ``mode`` is that
    of MX scales; a format with a tensor scale has none.
    """
    block = block_of(format, axis)
    scale, tensor_scale = _scales(x, format, block, mode)
    return scale if tensor_scale is None else scale * tensor_scale, block


def check_mx(format: BlockFormat) -> None:
    """Raise ``AltgradError`` unless the format's scales can be all that ``mx_scale`` returns."""
    scales = format.scale_format
    if scales.min_positive > _SMALLEST_E8M0 or scales.max_finite < _LARGEST_E8M0:
        raise AltgradError(
            f"The scales of '{format.name}' are MX scales, powers of two from 2^-127 to 2^127, which its scale format "
            f"'{scales.name}' cannot hold; give it 'e8m0fnu', or the two levels of NVFP4 with tensor_scale=True."
        )


def check_two_levels(scales: Format) -> None:
    """Raise ``AltgradError`` for a format of block scales that leaves nothing to a scale of the tensor beside them."""
    if scales.max_finite / scales.min_positive > MAX_SCALE / MIN_SCALE:
        raise AltgradError(
            f"'{scales.name}' spans the range of scales by itself: a scale of the tensor beside block scales in it adds "
            "nothing. Leave tensor_scale out, or take a narrower format for the block scales, such as 'e4m3fn'."
        )


def _scales(x: Tensor, format: BlockFormat, block: Block, mode: MXMode) -> tuple[Tensor, Tensor | None]:
    amax = block_amax(x, block)
    if not format.tensor_scale:
        check_mx(format)
        return mx_scale(amax, format.element, mode), None
    return nvfp4_scales(amax, tensor_amax(x), element=format.element, scale_format=format.scale_format)


@attrs.frozen(kw_only=True)
class Encoded:
    """A tensor as a block format stores it; ``decode_blocks`` reads it."""

    codes: Tensor
    """Code of each element, int64, in the shape of the tensor."""
    scale_codes: Tensor
    """Code of each block's scale in the scale format, int64 [nr, nc]."""
    tensor_scale: Tensor | None
    """The scale of the tensor on top, 0-d float32; None for a format without."""
    block: Block
    """Rows and columns of the matrix that share a scale."""


def encode_blocks(
    x: Tensor, format: str | BlockFormat, *, axis: int = -1, mode: MXMode = "rceil", nan_code: int | None = None
) -> Encoded:
    """Return the codes of ``x`` and of its scales, rounded to nearest, ties to the even code.

    NaN gets ``nan_code``, as for ``altgrad_core.numerics.codes.encode``: without one, NaN in a tensor whose element
    format has no code for it raises ``AltgradError``.
    """
    found = _block_format(format)
    block = block_of(found, axis)
    scale, tensor_scale = _scales(x, found, block, mode)
    decode_scale = scale if tensor_scale is None else scale * tensor_scale
    return Encoded(
        codes=encode(x, found.element, scale=decode_scale, block=block, nan_code=nan_code),
        scale_codes=encode(scale, found.scale_format),
        tensor_scale=tensor_scale,
        block=block,
    )


def decode_blocks(encoded: Encoded, format: str | BlockFormat) -> Tensor:
    """Return scale * value of each code, float32, in the shape of ``encoded.codes``: what ``quantize`` returns."""
    found = _block_format(format)
    scale = decode(encoded.scale_codes, found.scale_format)
    if encoded.tensor_scale is not None:
        scale = scale * encoded.tensor_scale
    return decode(encoded.codes, found.element, scale=scale, block=encoded.block)


def _block_format(format: str | BlockFormat) -> BlockFormat:
    found = get_format(format)
    if not isinstance(found, BlockFormat):
        raise AltgradError(f"'{found.name}' is no block format; encode() and decode() are for {type(found).__name__}s.")
    return found
