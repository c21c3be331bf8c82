"""``cast`` and ``quantize``: tensors to the values of a number format, on any device, eager or compiled.

``cast`` is what training uses: it returns the grid values q with x ~ scale * q, and statistics of what the cast did.
``quantize`` multiplies the scale back and keeps the dtype, for looking at numbers.

x is multiplied by float32(1 / scale), which is exact for a power of two, in float32 (float64 for float64 input). On the
CPU outside the compiler the work is done in chunks that stay in the cache, in reused memory; everywhere else as
whole-tensor operations for the compiler or the device's allocator to deal with. Both do the same arithmetic.
In compiled code pass a ``Format``, not a name: looking a name up is nothing that a compiler can trace.

Results carry no gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from altgrad_core.errors import AltgradError, unknown
from altgrad_core.numerics.formats import FloatFormat, Format
from altgrad_core.numerics.kernel import Grid, grid_of, round_nearest_even
from altgrad_core.numerics.modes import ROUNDINGS, SATURATIONS, Rounding, Saturation
from altgrad_core.numerics.registry import get_format
from altgrad_core.numerics.statistics import chunk_statistics, combine, tensor_statistics

# Three float32 buffers of this length fit in the second-level cache; measured best among 16 Ki to 1 Mi. A chunk gives
# each of torch's threads this much.
CHUNK = 65536


def quantize(
    x: Tensor,
    format: str | Format,
    *,
    scale: float | Tensor = 1.0,
    rounding: Rounding = "nearest_even",
    saturation: Saturation = "finite",
) -> Tensor:
    """Return scale * (the value of ``format`` nearest to x / scale), in the shape and dtype of ``x``.

    Args:
        x: floating-point tensor of any shape and stride; not changed.
        format: a format, or its name.
        scale: decode scale, positive, a number or a 0-d tensor. x is multiplied by float32(1 / scale).
        rounding: ``nearest_even``: to the nearest value, ties to the even code.
        saturation: what becomes of values that round to beyond the largest finite value. ``finite``: they, and Inf,
        become
            the largest. ``propagate``: Inf stays Inf if the format has it. ``none``: they become Inf, or NaN in a
            format without Inf; a format with neither saturates.

    NaN stays NaN, also for a format without NaN. -0 and negative values that round to zero are -0 where the format has
    it. A value that the dtype of ``x`` cannot hold is rounded to it (65504, the largest of fp16, is 65536 in bfloat16);
    ``cast`` has a ``dtype`` of its own. Raises ``AltgradError`` for an unknown format or mode, or a useless scale.
    """
    work = _work_dtype(x)
    scale = _traceable(scale, x)
    values, _ = cast(x, format, scale=scale, rounding=rounding, saturation=saturation, dtype=work, multiplier=scale)
    return values.to(x.dtype)


def cast(
    x: Tensor,
    format: str | Format,
    *,
    scale: float | Tensor = 1.0,
    rounding: Rounding = "nearest_even",
    saturation: Saturation = "finite",
    dtype: torch.dtype | None = None,
    multiplier: float | Tensor = 1.0,
    statistics: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return the grid values q of ``format`` with x ~ scale * q, and the statistics vector when asked for.

    With ``multiplier`` it is multiplier * q that is returned: the scale itself puts the values back where x was, in
    the pass that writes them. In bfloat16 that is exact for powers of two only.

    Args:
        x: floating-point tensor of any shape and stride; not changed.
        format: a format, or its name.
        scale: decode scale, positive, a number or a 0-d tensor on the device of ``x`` (or the CPU).
        rounding: as for ``quantize``.
        saturation: as for ``quantize``.
        dtype: what holds q: float32, float64, or bfloat16 where ``format.fits_bfloat16``. By default bfloat16 where it
            fits, else float32.
        multiplier: a number or a 0-d tensor, rounded to float32.
        statistics: whether to return the float64 vector of ``altgrad_core.numerics.statistics.FIELDS``; read it with
            ``CastStatistics.from_values(vector.tolist())``.

    Never waits for an accelerator. A scale given as a tensor, or to the compiler, is not checked: one that is zero,
    negative or NaN gives values that mean nothing. Raises ``AltgradError`` as ``quantize``, and for a dtype that cannot
    hold q.
    """
    fmt = get_format(format)
    if not isinstance(fmt, FloatFormat):
        raise AltgradError(f"cast() handles float formats; '{fmt.name}' is a {type(fmt).__name__}.")
    if rounding not in ROUNDINGS:
        raise AltgradError(unknown("rounding", str(rounding), ROUNDINGS))
    if saturation not in SATURATIONS:
        raise AltgradError(unknown("saturation", str(saturation), SATURATIONS))
    dtype = _result_dtype(fmt, dtype)
    work = _work_dtype(x)
    grid = grid_of(fmt)
    x = x.detach()
    if work is torch.float32 and x.device.type == "cpu" and not torch.compiler.is_compiling() and type(x) is Tensor:
        return _cast_in_chunks(
            x, grid, scale=scale, saturation=saturation, dtype=dtype, multiplier=multiplier, statistics=statistics
        )
    scale = _traceable(scale, x)
    inverse = inverse_scale(scale)
    wide = x.to(work)
    y = wide if isinstance(inverse, float) and inverse == 1.0 else wide * inverse
    q = round_nearest_even(y, grid, saturation)
    vector = tensor_statistics(wide, y, q, scale, grid) if statistics else None
    if isinstance(multiplier, Tensor):
        q = q * multiplier.detach().to(torch.float32)
    elif multiplier != 1.0:
        q = q * torch.full((), multiplier, dtype=torch.float32, device=q.device)
    return q.to(dtype), vector


def _traceable(scale: float | Tensor, x: Tensor) -> float | Tensor:
    """Under the compiler make a number a 0-d tensor: tracing turns numbers into symbols, which cannot be checked."""
    if isinstance(scale, Tensor) or not torch.compiler.is_compiling():
        return scale
    return torch.full((), scale, dtype=torch.float32, device=x.device)


def inverse_scale(scale: float | Tensor) -> float | Tensor:
    """Return float32(1 / scale): of a number as a number, of a 0-d tensor as a 0-d float32 tensor on its device."""
    if isinstance(scale, Tensor):
        if scale.dim() != 0:
            raise AltgradError(f"scale is a number or a 0-d tensor, got a tensor of shape {list(scale.shape)}.")
        return (1.0 / scale.detach().to(torch.float32).double()).float()
    # The scale itself is a float32 number: what multiplies the result back is what divided x.
    rounded = _float32(scale)
    if not (0.0 < rounded < math.inf) or not (0.0 < (inverse := _float32(1.0 / rounded)) < math.inf):
        raise AltgradError(
            f"scale is a positive number that, like its inverse, float32 can hold (about 3e-39 to 3e38), got {scale!r}."
        )
    return inverse


def _float32(value: float) -> float:
    """Round a number to float32, ties to even; in plain Python, some microseconds faster than by a tensor."""
    if value == 0.0 or not math.isfinite(value):
        return value
    shift = 24 - max(math.frexp(value)[1], -125)
    rounded = math.ldexp(round(math.ldexp(value, shift)), -shift)
    return rounded if abs(rounded) < 2.0**128 else math.copysign(math.inf, value)


def _work_dtype(x: Tensor) -> torch.dtype:
    if not isinstance(x, Tensor):
        raise AltgradError(f"A cast takes a tensor, got {type(x).__name__}; make one with torch.tensor(...).")
    if not x.is_floating_point():
        raise AltgradError(f"A cast takes a floating-point tensor, got {x.dtype}; convert it with .float() first.")
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _result_dtype(format: FloatFormat, dtype: torch.dtype | None) -> torch.dtype:
    if dtype is None:
        return torch.bfloat16 if format.fits_bfloat16 else torch.float32
    if dtype in (torch.float32, torch.float64) or (dtype is torch.bfloat16 and format.fits_bfloat16):
        return dtype
    holders = "bfloat16, float32 or float64" if format.fits_bfloat16 else "float32 or float64"
    raise AltgradError(f"The values of '{format.name}' are held in {holders}, got dtype={dtype}.")


def _cast_in_chunks(
    x: Tensor,
    grid: Grid,
    *,
    scale: float | Tensor,
    saturation: Saturation,
    dtype: torch.dtype,
    multiplier: float | Tensor,
    statistics: bool,
) -> tuple[Tensor, Tensor | None]:
    """CPU only: the arithmetic of the plain way, chunk by chunk in reused buffers."""
    if isinstance(scale, Tensor) and scale.dim() == 0:
        # The same numbers as inverse_scale's, without its five small tensors.
        scale = _float32(scale.item())
        factor = _float32(1.0 / scale) if scale else math.inf
    else:
        inverse = inverse_scale(scale)
        assert isinstance(inverse, float)
        assert not isinstance(scale, Tensor)
        factor, scale = inverse, _float32(scale)
    multiplier = _float32(multiplier.item() if isinstance(multiplier, Tensor) else multiplier)
    result = torch.empty(x.shape, dtype=dtype)
    flat, flat_result = x.reshape(-1), result.view(-1)
    total = flat.numel()
    size = min(total, CHUNK * torch.get_num_threads())
    scaled, rounded, scratch = (torch.empty(size, dtype=torch.float32) for _ in range(3))
    vectors = []
    for start in range(0, total, max(size, 1)):
        part = flat[start : start + size]
        length = part.numel()
        if length < size:
            scaled, rounded, scratch = scaled[:length], rounded[:length], scratch[:length]
        if factor != 1.0:
            wide = part if part.dtype is torch.float32 else part.float()
            y = torch.mul(wide, factor, out=scaled)
        elif part.dtype is not torch.float32:
            wide = y = scaled.copy_(part)
        else:
            wide = y = part
        target = flat_result[start : start + length]
        q = round_nearest_even(y, grid, saturation, out=target if dtype is torch.float32 else rounded, scratch=scratch)
        if statistics:
            vectors.append(chunk_statistics(wide, y, q, scale=scale, grid=grid, saturation=saturation, scratch=scratch))
        if multiplier != 1.0:
            torch.mul(q, multiplier, out=target)
        elif dtype is not torch.float32:
            target.copy_(q)
    if not statistics:
        return result, None
    if not vectors:
        return result, tensor_statistics(x.float(), x.float(), x.float(), scale, grid)
    return result, combine(torch.tensor(vectors, dtype=torch.float64))
