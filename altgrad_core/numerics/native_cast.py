"""Calls of the native cast (``cpp/cast.cpp``) for CPU tensors: which casts it takes, and the arguments it wants."""

from __future__ import annotations

import ctypes
import math
from functools import cache

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
    """Tell whether the grid's first power of two is a normal float32 number, which counting updates divides by."""
    return _path(grid) is not None and grid.bias <= 127


def casts(format: FloatFormat | TableFormat, rounding: Rounding) -> bool:
    """Tell whether the native kernel casts to the format: to grids it rounds to, and to tables by their buckets."""
    if isinstance(format, TableFormat):
        return rounding != "stochastic"
    found = _PATHS.get(format.constants, -1)
    if found == -1:
        found = _PATHS[format.constants] = _path(grid_of(format))
    return found is not None


_PATHS: dict[str, int | None] = {}
# Within these the numbers that the kernel lifts stay numbers of float32.
_LEAST_BIAS, _LEAST_MAX = -100, 2.0**-100


def _path(grid: Grid) -> int | None:
    """Return ``Path`` of rounding.h; None for grids far outside of float32."""
    path = path_of(grid, torch.float32)
    if path == "integers":
        return 1
    if path == "float32" and grid.mantissa_bits:
        return 0
    return 2 if grid.bias >= _LEAST_BIAS and grid.max_finite >= _LEAST_MAX else None


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

    ``factors`` are inverse scale, scale and multiplier: three numbers, or with ``block`` three float32 [nr, nc], of
    which the last may be the number 1.
    """
    library = status().library
    assert library is not None
    source = (x if x.dtype in TYPES else x.float()).resolve_neg().contiguous()
    result = torch.empty_like(source, dtype=dtype)
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
        pointers = (tensors[0].data_ptr(), tensors[1].data_ptr(), tensors[2].data_ptr() if len(tensors) > 2 else None)
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
    """``Grid`` of rounding.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("path", "mantissa_bits", "bias", "is_signed", "has_inf", "has_nan")),
        *((name, ctypes.c_int32) for name in ("has_negative_zero", "threshold_rounds_to_max")),
        *((name, ctypes.c_float) for name in ("first_power", "min_normal", "min_positive", "max_finite")),
        *((name, ctypes.c_float) for name in ("overflow_threshold", "beyond", "lifts_below", "lift", "lift_more")),
        ("limit", ctypes.c_double),
    )


class _Kind(ctypes.Structure):
    """``Kind`` of cast.cpp."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("x_type", "q_type", "rounding", "saturation", "random_bits")),
        ("grid", _Grid),
    )


class _Table(ctypes.Structure):
    """``Table`` of table.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("thresholds", "results", "threshold", "value", "first")),
        *((name, ctypes.c_int32) for name in ("shift", "origin", "last", "crowded", "crowded_last")),
        *((name, ctypes.c_int32) for name in ("above", "has_negative_zero")),
        *((name, ctypes.c_double) for name in ("lowest", "highest")),
    )


_Pointers = tuple[ctypes.c_void_p, ctypes.c_void_p | None]
_KINDS: dict[tuple[object, ...], _Pointers] = {}


def _what(
    format: FloatFormat | TableFormat,
    x_type: torch.dtype,
    q_type: torch.dtype,
    rounding: Rounding,
    saturation: Saturation,
    random_bits: int,
) -> _Pointers:
    """Return pointers to what the kernel calls a kind and a table; kept, since a conversion costs more than a small cast."""
    key = (format.constants, x_type, q_type, rounding, saturation, random_bits)  # the hash of text is kept, too
    found = _KINDS.get(key)
    if found is None:
        found = _KINDS[key] = _pointers(format, x_type, q_type, rounding, saturation, random_bits)
    return found


def _pointers(
    format: FloatFormat | TableFormat,
    x_type: torch.dtype,
    q_type: torch.dtype,
    rounding: Rounding,
    saturation: Saturation,
    random_bits: int,
) -> _Pointers:
    table = None
    if isinstance(format, TableFormat):
        table = _native_table(format, rounding, saturation)
        _KEPT.append(table)
        # What a grid's numbers say of a table: no subnormals, and what bfloat16 must hold.
        grid = _Grid(0, 0, 0, 1, 0, 0, 1, 1, 1.0, 0.0, format.min_positive, format.max_finite, math.inf, math.inf)
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
    first_power = 2.0 ** (1 - grid.bias)
    # What is lifted becomes 1 and above; float32's subnormals become integers where the first power is among them.
    lift = max(grid.bias - 1, 0) if grid.bias <= 127 else 149
    return _Grid(
        *(_path(grid), grid.mantissa_bits, grid.bias, grid.signed, grid.has_inf, grid.has_nan),
        *(grid.has_negative_zero, grid.threshold_rounds_to_max),
        *(first_power, grid.min_normal, grid.min_positive, grid.max_finite),
        *(grid.overflow_threshold, grid.beyond),  # of bf16 both are infinity in float32
        *(max(first_power, 2.0**-126), 2.0 ** min(lift, 126), 2.0 ** max(lift - 126, 0), grid.max_finite),
    )


# Of a table: 64 KiB of buckets, half of which stay in the first-level cache; and at most.
_FEW_BUCKETS, _MANY_BUCKETS = 1 << 13, 1 << 17
# How many float32 numbers are nearer to zero than 2^-124.
_TINY = 3 << 23


def _native_table(format: TableFormat, rounding: Rounding, saturation: Saturation) -> _Table:
    """Cut the numbers between the ends of a table into buckets of 2^shift numbers that have one threshold at most.

    The two around zero may have more, of values so small that float32 hardly tells them apart; so may all where there
    would be too many buckets. In those the kernel steps from threshold to threshold.
    """
    found = lookup(format.constants, rounding, saturation)
    assert found is not None
    edges = _order(found.thresholds[1:-1])
    origin = int(edges[0]) - 1
    apart, span = edges.unique() - origin - 1, int(edges[-1]) - origin - 1
    for shift in range(31, -1, -1):
        bucket = apart >> shift
        crowded = bucket[1:][bucket.diff() == 0].unique().tolist() or [(span >> shift) + 1]
        start, end = origin + (crowded[0] << shift), origin + (crowded[-1] + 1 << shift)
        if bucket.unique().numel() == bucket.numel() or (-_TINY <= start and end <= _TINY):
            break
    if span >> shift >= _MANY_BUCKETS:
        while span >> shift >= _FEW_BUCKETS:
            shift += 1
        crowded = [0, span >> shift]
    last = span >> shift
    starts = origin + (torch.arange(last + 2) << shift)
    place = torch.searchsorted(edges, starts, right=True) + 1
    following = (place - 1).clamp_max(len(edges) - 1)
    inside = (edges[following] > starts) & (edges[following] <= starts + (1 << shift))
    threshold = torch.where(inside, found.thresholds[following + 1], math.nan)
    thresholds = torch.cat([found.thresholds, torch.tensor([math.nan])])
    value = torch.cat([found.result[place], found.result])
    held = (thresholds, found.result, threshold, value, place.to(torch.int32))
    _KEPT.append(held)
    numbers = (shift, origin, last, crowded[0], crowded[-1], len(edges) + 1, format.has_negative_zero)
    return _Table(*(tensor.data_ptr() for tensor in held), *numbers, format.min_finite, format.max_finite)


def _order(x: Tensor) -> Tensor:
    """Return where float32 numbers other than -0 stand among all: int64, one apart for neighbours."""
    bits = (x + 0.0).view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()


_KEPT: list[object] = []
_Three = ctypes.c_float * 3
