"""``cast`` and ``quantize``: tensors to the values of a number format, on any device, eager or compiled.

``cast`` is what training uses: it returns the grid values q with x ~ scale * q, and statistics of what the cast did.
``quantize`` multiplies the scale back and keeps the dtype, for looking at numbers.

x is multiplied by float32(1 / scale), which is exact for a power of two, in float32 (float64 for float64 input). One
scale serves the whole tensor or each block of it: then x counts as a matrix, its last dimension by the product of the
others. Three ways give the same bits:

    native    CPU, formats that float32 arithmetic rounds exactly: one pass (``cpp/cast.cpp``), in compiled code as an
              operator (``native_ops.py``)
    chunks    likewise without a C++ compiler on the machine, uncompiled, nearest even: pieces that stay in the cache
    tensors   everything else, with whole-tensor operations for the compiler or the device's allocator to deal with

In compiled code pass a ``Format``, not a name: looking a name up is nothing that a compiler can trace.

Results carry no gradient.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from altgrad_core.errors import AltgradError, unknown
from altgrad_core.numerics import native_cast, native_ops
from altgrad_core.numerics.blockwise import Block, check_scale, expand
from altgrad_core.numerics.formats import BlockFormat, FloatFormat, Format, TableFormat
from altgrad_core.numerics.kernel import grid_of, round_nearest_even
from altgrad_core.numerics.modes import ROUNDINGS, SATURATIONS, Rounding, Saturation
from altgrad_core.numerics.registry import get_format
from altgrad_core.numerics.roundings import round_to_grid
from altgrad_core.numerics.statistics import FIELDS, chunk_statistics, combine, tensor_statistics
from altgrad_core.numerics.stochastic import MAX_RANDOM_BITS, Draw, Keys
from altgrad_core.numerics.stochastic import random_bits as draw_bits
from altgrad_core.numerics.tables import round_to_table, table_overflow

# Three float32 buffers of this length fit in the second-level cache; measured best among 16 Ki to 1 Mi. A chunk gives
# each of torch's threads this much.
CHUNK = 65536


def quantize(
    x: Tensor,
    format: str | Format,
    *,
    scale: float | Tensor = 1.0,
    block: Block | None = None,
    rounding: Rounding = "nearest_even",
    saturation: Saturation = "finite",
    draw: Draw | Keys | None = None,
    random_bits: int = MAX_RANDOM_BITS,
) -> Tensor:
    """Return scale * (the value of ``format`` that x / scale rounds to), in the shape and dtype of ``x``.

    Args:
        x: floating-point tensor of 16 bits or more, of any shape and stride; not changed.
        format: a format, or its name. A block format (``mxfp8_e4m3``) finds its own scales along the last dimension;
            ``scale`` and ``block`` then stay as they are by default.
        scale: decode scale, positive: a number or a 0-d tensor, or with ``block`` one for each block, float32 [nr, nc].
            x is multiplied by float32(1 / scale).
        block: (rows, columns) that share a scale; ``x`` counts as the matrix of its last dimension and the product of
            the others. None: one scale.
        rounding: one of ``altgrad_core.numerics.modes.ROUNDINGS``.
        saturation: what becomes of values that round to beyond the largest finite value. ``finite``: they, and Inf,
            become the largest. ``propagate``: Inf stays Inf if the format has it. ``none``: they become Inf, or NaN in
            a format without Inf; a format with neither saturates.
        draw: names the random bits of ``stochastic`` rounding, which cannot do without.
        random_bits: how many of them each element uses, 1 to 32; the mean over draws is off by at most
            2^-(random_bits + 1) of the spacing.

    NaN stays NaN, also for a format without NaN. -0 and negative values that round to zero are -0 where the format has
    it. A value that the dtype of ``x`` cannot hold is rounded to it (65504, the largest of fp16, is 65536 in bfloat16);
    ``cast`` has a ``dtype`` of its own. Raises ``AltgradError`` for an unknown format or mode, a useless scale, and a
    tensor that is no dense floating-point tensor, or of 8 bits, where few results would be held.
    """
    fmt = get_format(format)
    if isinstance(fmt, BlockFormat):
        from altgrad_core.numerics.blocks import block_scale

        refuse_scales(fmt, scale, block)
        work_dtype(x)
        scale, block = block_scale(x, fmt)
        fmt = fmt.element
    work = work_dtype(x)
    if x.dtype.itemsize == 1:
        raise AltgradError(
            f"quantize() returns the dtype of the tensor, and {x.dtype} would round the result once more; pass x.float(), "
            "or take cast(), which has a dtype of its own."
        )
    scale = traceable(scale, x.device)
    values, _ = cast(
        x,
        fmt,
        scale=scale,
        block=block,
        rounding=rounding,
        saturation=saturation,
        draw=draw,
        random_bits=random_bits,
        dtype=torch.bfloat16 if x.dtype is torch.bfloat16 and fmt.fits_bfloat16 else work,
        multiplier=scale,
    )
    return values.to(x.dtype)


def cast(
    x: Tensor,
    format: str | Format,
    *,
    scale: float | Tensor = 1.0,
    block: Block | None = None,
    rounding: Rounding = "nearest_even",
    saturation: Saturation = "finite",
    draw: Draw | Keys | None = None,
    random_bits: int = MAX_RANDOM_BITS,
    dtype: torch.dtype | None = None,
    multiplier: float | Tensor = 1.0,
    statistics: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return the grid values q of ``format`` with x ~ scale * q, and the statistics vector when asked for.

    With ``multiplier`` it is multiplier * q that is returned: the scale itself puts the values back where x was, in
    the pass that writes them. In bfloat16 that is exact for powers of two only.

    Args:
        x: floating-point tensor of any shape and stride; not changed.
        format: a format, or its name; of a block format the element format, with its scales.
        scale: decode scale, positive: a number, a 0-d tensor on the device of ``x`` (or the CPU), or with ``block``
            one for each block, float32 [nr, nc].
        block: as for ``quantize``.
        rounding: as for ``quantize``.
        saturation: as for ``quantize``.
        draw: as for ``quantize``.
        random_bits: as for ``quantize``.
        dtype: what holds q: float32, float64, or bfloat16 where ``format.fits_bfloat16``. By default bfloat16 where it
            fits, else float32.
        multiplier: a number or a 0-d tensor, or with ``block`` one for each block; rounded to float32.
        statistics: whether to return the float64 vector of ``altgrad_core.numerics.statistics.FIELDS``; read it with
            ``CastStatistics.from_values(vector.tolist())``.

    Never waits for an accelerator. A scale given as a tensor, or to the compiler, is not checked: one that is zero,
    negative or NaN gives values that mean nothing. Raises ``AltgradError`` as ``quantize``, and for a dtype that cannot
    hold q.
    """
    fmt = get_format(format)
    if not isinstance(fmt, FloatFormat | TableFormat):
        raise AltgradError(
            f"cast() takes one scale from you, and '{fmt.name}' finds its own; use quantize(), or cast to its elements."
        )
    _check_modes(rounding, saturation, draw, random_bits)
    dtype = _result_dtype(fmt, dtype)
    work = work_dtype(x)
    x = x.detach()
    scale = check_scale(scale, x, block)
    if block is None or (isinstance(multiplier, Tensor) and multiplier.dim()):
        multiplier = check_scale(multiplier, x, block, "multiplier")
    if work is torch.float32 and dtype is not torch.float64:
        if native_cast.takes(x) and native_cast.casts(fmt, rounding):
            if block is None:
                _, scale, multiplier = _scalars(scale, multiplier)
            else:
                multiplier = _of_blocks(multiplier, scale)
            return native_cast.cast_matrix(
                x,
                fmt.constants,
                scale=scale,
                multiplier=multiplier,
                block=block,
                rounding=rounding,
                saturation=saturation,
                bits=native_cast.Bits.of(draw, x) if draw is not None and rounding == "stochastic" else None,
                random_bits=random_bits,
                dtype=dtype,
                statistics=statistics,
            )
        if native_cast.takes_compiled(x) and native_cast.casts(fmt, rounding):
            if block is not None:
                multiplier = _of_blocks(multiplier, scale)
            return native_ops.cast_matrix(
                x,
                fmt.constants,
                scale=_tensor(scale),
                multiplier=None if not isinstance(multiplier, Tensor) and multiplier == 1.0 else _tensor(multiplier),
                block=block,
                rounding=rounding,
                saturation=saturation,
                draw=draw if rounding == "stochastic" else None,
                random_bits=random_bits,
                dtype=dtype,
                statistics=statistics,
            )
        plain = native_cast.readable(x)
        if isinstance(fmt, FloatFormat) and fmt.fits_float32 and plain and block is None and rounding == "nearest_even":
            return _cast_in_chunks(
                x, fmt, _scalars(scale, multiplier), saturation=saturation, dtype=dtype, statistics=statistics
            )
    wide = x.to(work)
    scale = traceable(scale, x.device)
    inverse = inverse_scale(scale)
    scale = scale if isinstance(scale, Tensor) else _float32(scale)
    if block is not None:
        assert isinstance(inverse, Tensor)
        assert isinstance(scale, Tensor)
        inverse, scale = expand(inverse, x.shape, block), expand(scale, x.shape, block)
    y = wide if isinstance(inverse, float) and inverse == 1.0 else wide * inverse
    bits = draw_bits(draw, x.shape, x.device) if rounding == "stochastic" and draw is not None else None
    q, over = _round(y, wide, fmt, rounding, saturation, bits, random_bits, count=statistics)
    vector = None if over is None else tensor_statistics(wide, y, q, scale, over, fmt)
    if isinstance(multiplier, Tensor):
        factor = multiplier.detach().to(torch.float32)
        q = q * (expand(factor, x.shape, block) if block is not None and factor.dim() else factor)
    elif multiplier != 1.0:
        q = q * scale_tensor(multiplier, q.device)
    return q.to(dtype), vector


def _round(
    y: Tensor,
    x: Tensor,
    format: FloatFormat | TableFormat,
    rounding: Rounding,
    saturation: Saturation,
    bits: Tensor | None,
    random_bits: int,
    *,
    count: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the rounded values of y = x / scale, and which finite elements of ``x`` overflowed if asked."""
    if isinstance(format, TableFormat):
        # The quotient of a finite element is finite.
        last = torch.finfo(y.dtype).max
        y = y if y is x else torch.where(torch.isinf(x), y, y.clamp(-last, last))
        over = table_overflow(y, format, rounding, bits, random_bits) if count else None
        q = round_to_table(y, format, rounding, saturation, bits, random_bits)
        return (_rounded_by_itself(y, q, format) if format.rounds_itself(rounding) else q), over
    return round_to_grid(y, grid_of(format), rounding, saturation, bits, random_bits, x=x, count=count)


def _rounded_by_itself(y: Tensor, q: Tensor, format: TableFormat) -> Tensor:
    """Return ``q``, the table's own rounding of ``y``, with what the format makes of the numbers between its ends."""
    assert format.nearest is not None
    within = (y >= format.min_finite) & (y <= format.max_finite)
    own = format.nearest(torch.where(within, y, format.min_positive))  # a new tensor, since y may be the caller's
    if own.shape != y.shape or own.dtype != y.dtype:
        raise AltgradError(
            f"Format '{format.name}': nearest() returns a tensor of its argument's shape and dtype, {list(y.shape)} and "
            f"{y.dtype}; it returned {list(own.shape)} and {own.dtype}."
        )
    if format.has_negative_zero:
        own = torch.where((own == 0) & torch.signbit(y), -0.0, own)
    return torch.where(within, own, q)


def refuse_scales(format: BlockFormat, scale: float | Tensor, block: Block | None) -> None:
    """Raise ``AltgradError`` for scales of the caller's where a block format finds its own."""
    if block is not None or isinstance(scale, Tensor) or scale != 1.0:
        raise AltgradError(
            f"'{format.name}' finds its own block scales; leave out scale and block, or cast to '{format.element.name}'."
        )


def _check_modes(rounding: Rounding, saturation: Saturation, draw: Draw | Keys | None, random_bits: int) -> None:
    if rounding not in ROUNDINGS:
        raise AltgradError(unknown("rounding", str(rounding), ROUNDINGS))
    if saturation not in SATURATIONS:
        raise AltgradError(unknown("saturation", str(saturation), SATURATIONS))
    if rounding != "stochastic":
        return
    if draw is None:
        raise AltgradError(
            "Stochastic rounding needs to know which random bits to draw, so that they can be drawn again: pass "
            "draw=Draw(seed=..., step=..., name=...)."
        )
    if not isinstance(draw, Draw | Keys):
        raise AltgradError(
            f"draw is a Draw, which names the random bits, got {draw!r:.60}; pass draw=Draw(seed=..., step=..., name=...)."
        )
    if not isinstance(random_bits, int) or not 1 <= random_bits <= MAX_RANDOM_BITS:
        raise AltgradError(f"random_bits is an integer from 1 to {MAX_RANDOM_BITS}, got {random_bits!r:.60}.")


def _scalars(scale: float | Tensor, multiplier: float | Tensor) -> tuple[float, float, float]:
    """Return inverse, scale and multiplier as float32 numbers; of a CPU tensor's value nothing is checked."""
    if isinstance(scale, Tensor):
        # The same numbers as inverse_scale's, without its five small tensors.
        value = _float32(scale.item())
        inverse = _float32(1.0 / value) if value else math.inf
    else:
        checked = inverse_scale(scale)
        assert isinstance(checked, float)
        inverse, value = checked, _float32(scale)
    return inverse, value, _float32(multiplier.item() if isinstance(multiplier, Tensor) else multiplier)


def _tensor(scale: float | Tensor) -> Tensor:
    """Return a scale as a float32 tensor on the CPU."""
    if isinstance(scale, Tensor):
        return scale.detach().to(torch.float32)
    return scale_tensor(scale, torch.device("cpu"))


def _of_blocks(multiplier: float | Tensor, scale: float | Tensor) -> float | Tensor:
    """Return the multiplier as float32 of the shape of the scales, or the number 1."""
    assert isinstance(scale, Tensor)
    if not isinstance(multiplier, Tensor):
        return torch.full_like(scale, multiplier) if multiplier != 1.0 else multiplier
    return multiplier.detach().to(torch.float32).expand(scale.shape)


def traceable(scale: float | Tensor, device: torch.device) -> float | Tensor:
    """Under the compiler make a number a 0-d tensor: tracing turns numbers into symbols, which cannot be checked."""
    if isinstance(scale, Tensor) or not torch.compiler.is_compiling():
        return scale
    return scale_tensor(scale, device)


def scale_tensor(scale: float, device: torch.device) -> Tensor:
    """Return a number as a 0-d float32 tensor.

    By a conversion: what the compiler fills in as float32 it may go on to multiply float64 numbers with unrounded.
    """
    return torch.full((), scale, dtype=torch.float64, device=device).to(torch.float32)


def inverse_scale(scale: float | Tensor) -> float | Tensor:
    """Return float32(1 / scale): of a number as a number, of a tensor as a float32 tensor on its device."""
    if isinstance(scale, Tensor):
        return (1.0 / scale.detach().to(torch.float32).double()).float()
    # The scale itself is a float32 number: what multiplies the result back is what divided x.
    try:
        rounded = _float32(scale)
    except (TypeError, OverflowError):  # no number, or an integer beyond float64
        rounded = math.nan
    if not (0.0 < rounded < math.inf) or not (0.0 < (inverse := _float32(1.0 / rounded)) < math.inf):
        raise AltgradError(
            f"scale is a positive number that, like its inverse, float32 can hold (about 3e-39 to 3e38), got {scale!r}."
        )
    return inverse


def _float32(value: float) -> float:
    """Round a number to float32, ties to even; some microseconds faster than by a tensor."""
    return ctypes.c_float(value).value


def work_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that ``x`` is cast in; raises ``AltgradError`` unless it is a dense floating-point tensor."""
    if not isinstance(x, Tensor):
        raise AltgradError(f"A cast takes a tensor, got {type(x).__name__}; make one with torch.tensor(...).")
    if not x.is_floating_point():
        raise AltgradError(f"A cast takes a floating-point tensor, got {x.dtype}; convert it with .float() first.")
    # In a backward pass the compiler does not tell; a sparse tensor it refuses itself.
    if not torch.compiler.is_compiling() and x.layout is not torch.strided:
        raise AltgradError(f"A cast takes a dense tensor, got a tensor of layout {x.layout}; .to_dense() makes one.")
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _result_dtype(format: Format, dtype: torch.dtype | None) -> torch.dtype:
    if dtype is None:
        return torch.bfloat16 if format.fits_bfloat16 else torch.float32
    if dtype in (torch.float32, torch.float64) or (dtype is torch.bfloat16 and format.fits_bfloat16):
        return dtype
    holders = "bfloat16, float32 or float64" if format.fits_bfloat16 else "float32 or float64"
    raise AltgradError(f"The values of '{format.name}' are held in {holders}, got dtype={dtype}.")


def _cast_in_chunks(
    x: Tensor,
    format: FloatFormat,
    factors: tuple[float, float, float],
    *,
    saturation: Saturation,
    dtype: torch.dtype,
    statistics: bool,
) -> tuple[Tensor, Tensor | None]:
    """CPU only: the arithmetic of the plain way, chunk by chunk in reused buffers."""
    inverse, scale, multiplier = factors
    grid = grid_of(format)
    result = torch.empty(x.shape, dtype=dtype, device="cpu")
    flat, flat_result = x.reshape(-1), result.view(-1)
    total = flat.numel()
    size = min(total, CHUNK * torch.get_num_threads())
    scaled, rounded, scratch = (torch.empty(size, dtype=torch.float32, device="cpu") for _ in range(3))
    vectors = []
    for start in range(0, total, max(size, 1)):
        part = flat[start : start + size]
        length = part.numel()
        if length < size:
            scaled, rounded, scratch = scaled[:length], rounded[:length], scratch[:length]
        if inverse != 1.0:
            wide = part if part.dtype is torch.float32 else part.float()
            y = torch.mul(wide, inverse, out=scaled)
        elif part.dtype is not torch.float32:
            wide = y = scaled.copy_(part)
        else:
            wide = y = part
        target = flat_result[start : start + length]
        out = target if dtype is torch.float32 else rounded
        q = round_nearest_even(y, grid, saturation, x=wide, out=out, scratch=scratch)
        if statistics:
            vectors.append(
                chunk_statistics(wide, y, q, scale=scale, format=format, saturation=saturation, scratch=scratch)
            )
        if multiplier != 1.0:
            torch.mul(q, multiplier, out=target)
        elif dtype is not torch.float32:
            target.copy_(q)
    if not statistics:
        return result, None
    if not vectors:
        return result, torch.zeros(len(FIELDS), dtype=torch.float64, device="cpu")
    return result, combine(torch.tensor(vectors, dtype=torch.float64, device="cpu"))
