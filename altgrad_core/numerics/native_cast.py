"""Calls of the native cast (``cpp/cast.cpp``) for CPU tensors: which casts it takes, and the arguments it wants."""

from __future__ import annotations

import ctypes
import math
from functools import cache, lru_cache

import torch
from torch import Tensor

from altgrad_core.numerics.blockwise import Block, block_counts, matrix_shape
from altgrad_core.numerics.formats import FloatFormat, TableFormat
from altgrad_core.numerics.kernel import Grid, grid_of, path_of
from altgrad_core.numerics.modes import ROUNDINGS, SATURATIONS, Rounding, Saturation
from altgrad_core.numerics.native import status
from altgrad_core.numerics.statistics import FIELDS
from altgrad_core.numerics.stochastic import Draw
from altgrad_core.numerics.tables import lookup

TYPES = {torch.float32: 0, torch.bfloat16: 1}
# Below this many elements a second thread costs more than it brings.
_ALONE = 65536


def takes(x: Tensor) -> bool:
    """Tell whether the native kernel may read ``x``: its memory is there to read, and the kernel is built."""
    return readable(x) and status().native


def readable(x: Tensor) -> bool:
    """Tell whether ``x`` is an ordinary CPU tensor, outside the compiler, tracers and the transforms of torch.func."""
    return (
        x.device.type == "cpu"
        and type(x) is Tensor
        and not torch.compiler.is_compiling()
        # These see operations, not memory.
        and torch._C._get_tracing_state() is None
        and torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is None
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def rounds(grid: Grid) -> bool:
    """Tell whether the native kernel rounds to the grid: where float32 or its bits do, float64 is not needed."""
    return _path(grid) is not None


def casts(format: FloatFormat | TableFormat, rounding: Rounding, saturation: Saturation) -> bool:
    """Tell whether the native kernel casts to the format: to grids it rounds to, and to tables by their buckets."""
    if isinstance(format, TableFormat):
        return lookup(format.constants, rounding, saturation) is not None
    return rounds(grid_of(format))


def _path(grid: Grid) -> int | None:
    """Return ``Path`` of lanes.h; None for what float32 arithmetic does not round exactly."""
    path = path_of(grid, torch.float32)
    if path == "integers":
        return 2
    if path == "float32":
        return 0 if grid.mantissa_bits else 1
    # By units instead of by a sum, which has no room for so many mantissa bits. First power, unit and the unit's inverse
    # are normal float32 numbers, and so is every value.
    long = grid.mantissa_bits in (22, 23) and grid.bias <= 100 and grid.beyond < 2.0**127
    return 1 if long and grid.min_positive >= 2.0**-125 else None


def cast_matrix(
    x: Tensor,
    format: FloatFormat | TableFormat,
    factors: tuple[float | Tensor, float | Tensor, float | Tensor],
    *,
    block: Block | None,
    rounding: Rounding,
    saturation: Saturation,
    draw: Draw | None,
    random_bits: int,
    dtype: torch.dtype,
    statistics: bool,
) -> tuple[Tensor, Tensor | None]:
    """Cast ``x`` (any floating type but float64) to ``multiplier * q`` in ``dtype`` (float32 or bfloat16).

    ``factors`` are inverse scale, scale and multiplier: three numbers, or with ``block`` three float32 [nr, nc].
    """
    library = status().library
    assert library is not None
    source = (x if x.dtype in TYPES else x.float()).resolve_neg().contiguous()
    result = torch.empty(source.shape, dtype=dtype, device="cpu")
    rows, columns = matrix_shape(source.shape)
    vector = torch.zeros(len(FIELDS), dtype=torch.float64, device="cpu") if statistics else None
    if rows * columns == 0:
        return result, vector
    if block is None:
        held = _Three(*(float(factor) for factor in factors))
        start = ctypes.addressof(held)
        pointers = (start, start + 4, start + 8)
    else:
        tensors = [factor.contiguous() for factor in factors if isinstance(factor, Tensor)]
        pointers = (tensors[0].data_ptr(), tensors[1].data_ptr(), tensors[2].data_ptr())
    block_rows, block_columns = block or (0, 0)
    keys, first, whole = (None, 0, 0) if draw is None else _keys(draw, source)
    library.altgrad_cast(
        *_what(format, source.dtype, dtype, rounding, saturation, random_bits),
        source.data_ptr(),
        result.data_ptr(),
        rows,
        columns,
        *pointers,
        block_rows,
        block_columns,
        keys,
        first,
        whole,
        None if vector is None else vector.data_ptr(),
        threads_for(source),
    )
    return result, vector


def amax(x: Tensor, block: Block | None) -> Tensor:
    """Return the largest magnitude of each block of ``x`` (any floating type but float64), or of all of it (0-d)."""
    library = status().library
    assert library is not None
    source = (x if x.dtype in TYPES else x.float()).resolve_neg().contiguous()
    if block is None:
        # Pieces for the threads to share out; the last step is small.
        length = source.numel()
        piece = min(max(length, 1), _ALONE)
        pieces = torch.empty(-(-length // piece), dtype=torch.float32, device="cpu")
        library.altgrad_amax(
            source.data_ptr(), TYPES[source.dtype], 1, length, 1, piece, pieces.data_ptr(), threads_for(source)
        )
        return pieces[0] if len(pieces) == 1 else pieces.amax()
    found = torch.zeros(block_counts(source.shape, block), dtype=torch.float32, device="cpu")
    if source.numel():
        rows, columns = matrix_shape(source.shape)
        sizes = min(block[0], rows), min(block[1], columns)
        library.altgrad_amax(
            source.data_ptr(), TYPES[source.dtype], rows, columns, *sizes, found.data_ptr(), threads_for(source)
        )
    return found


def threads_for(x: Tensor) -> int:
    """Return how many threads are worth their while."""
    return torch.get_num_threads() if x.numel() > _ALONE else 1


def _keys(draw: Draw, x: Tensor) -> tuple[ctypes.Array[ctypes.c_uint32], int, int]:
    """Return the keys of all pages that the tensor's elements lie on, the first number, and the whole's columns."""
    first, columns, whole = draw.layout(x.shape)
    last = first + (x.numel() // columns - 1) * whole + columns - 1
    keys = [half for page in range(first >> 32, (last >> 32) + 1) for half in draw.key(page)]
    return (ctypes.c_uint32 * len(keys))(*keys), first, whole


class _Grid(ctypes.Structure):
    """``Grid`` of lanes.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("path", "mantissa_bits", "bias", "is_signed", "has_inf", "has_nan")),
        *((name, ctypes.c_int32) for name in ("has_negative_zero", "threshold_rounds_to_max")),
        *((name, ctypes.c_float) for name in ("first_power", "min_normal", "min_positive", "max_finite")),
        *((name, ctypes.c_float) for name in ("overflow_threshold", "beyond")),
    )


class _Kind(ctypes.Structure):
    """``Kind`` of cast.cpp."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("x_type", "q_type", "rounding", "saturation", "random_bits")),
        ("grid", _Grid),
    )


class _Table(ctypes.Structure):
    """``Table`` of cast.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("first", "jump", "threshold", "thresholds", "result")),
        *((name, ctypes.c_int32) for name in ("above", "has_negative_zero")),
        *((name, ctypes.c_double) for name in ("lowest", "highest")),
    )


# Mantissa bits that say of a table what float32 sums of its errors are good for: no table of 8 bits errs by less.
_TABLE_BITS = 7


@lru_cache(maxsize=1024)
def _what(
    format: FloatFormat | TableFormat,
    x_type: torch.dtype,
    q_type: torch.dtype,
    rounding: Rounding,
    saturation: Saturation,
    random_bits: int,
) -> tuple[ctypes.c_void_p, ctypes.c_void_p | None]:
    """Return pointers to what the kernel calls a kind and a table; kept, since a conversion costs more than a small cast."""
    table = None
    if isinstance(format, TableFormat):
        found = lookup(format.constants, rounding, saturation)
        assert found is not None
        buckets = found.buckets
        tensors = (buckets.first, buckets.jump, buckets.threshold, found.thresholds, found.result)
        ends = (format.min_finite, format.max_finite)
        table = _Table(*(t.data_ptr() for t in tensors), found.above, format.has_negative_zero, *ends)
        _KEPT.append((table, tensors))
        grid = _Grid(
            1, _TABLE_BITS, 0, 1, 0, 0, 1, 1, 1.0, 0.0, format.min_positive, format.max_finite, math.inf, math.inf
        )
    else:
        grid = _native_grid(grid_of(format))
    numbers = (TYPES[x_type], TYPES[q_type], ROUNDINGS.index(rounding), SATURATIONS.index(saturation), random_bits)
    kind = _Kind(*numbers, grid)
    _KEPT.append(kind)
    pointer = None if table is None else ctypes.c_void_p(ctypes.addressof(table))
    return ctypes.c_void_p(ctypes.addressof(kind)), pointer


@cache
def grid_pointer(grid: Grid) -> ctypes.c_void_p:
    """Return a pointer to the grid as the kernels know it."""
    held = _native_grid(grid)
    _KEPT.append(held)
    return ctypes.c_void_p(ctypes.addressof(held))


def _native_grid(grid: Grid) -> _Grid:
    return _Grid(
        *(_path(grid), grid.mantissa_bits, grid.bias, grid.signed, grid.has_inf, grid.has_nan),
        *(grid.has_negative_zero, grid.threshold_rounds_to_max),
        *(2.0 ** (1 - grid.bias), grid.min_normal, grid.min_positive, grid.max_finite),
        *(grid.overflow_threshold, grid.beyond),  # of bf16 both are infinity in float32
    )


_KEPT: list[object] = []
_Three = ctypes.c_float * 3
