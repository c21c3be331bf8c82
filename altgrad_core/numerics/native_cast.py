"""Calls of the native kernel (``cast.cpp``) for CPU tensors: which casts it takes, and the arguments it wants."""

from __future__ import annotations

import ctypes
import math
from functools import cache

import torch
from torch import Tensor

from altgrad_core.numerics.blockwise import Block, block_counts, matrix_shape
from altgrad_core.numerics.kernel import Grid, path_of
from altgrad_core.numerics.modes import ROUNDINGS, SATURATIONS, Rounding, Saturation
from altgrad_core.numerics.native import status
from altgrad_core.numerics.statistics import FIELDS
from altgrad_core.numerics.stochastic import Draw

_TYPES = {torch.float32: 0, torch.bfloat16: 1}
# Below this many elements a second thread costs more than it brings.
_ALONE = 65536


def takes(x: Tensor) -> bool:
    """Tell whether the native kernel may read ``x``: an ordinary CPU tensor, outside the compiler, and it is built."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and type(x) is Tensor and status().native


def rounds(grid: Grid) -> bool:
    """Tell whether the native kernel rounds to the grid: where float32 or its bits do, float64 is not needed."""
    return path_of(grid, torch.float32) != "float64"


def cast_matrix(
    x: Tensor,
    grid: Grid,
    factors: tuple[float, float, float] | tuple[Tensor, Tensor, Tensor],
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
    source = (x if x.dtype in _TYPES else x.float()).contiguous()
    result = torch.empty(source.shape, dtype=dtype)
    rows, columns = matrix_shape(source.shape)
    vector = torch.zeros(len(FIELDS), dtype=torch.float64) if statistics else None
    if rows * columns == 0:
        return result, vector
    numbers, lengths = _constants(grid)
    exact = True
    if block is None:
        held = (ctypes.c_float * 3)(*factors)  # type: ignore[arg-type]
        start = ctypes.addressof(held)
        pointers = (start, start + 4, start + 8)
        exact = math.frexp(held[1])[0] == 0.5
    else:
        tensors = [factor.contiguous() for factor in factors]  # type: ignore[union-attr]
        pointers = (tensors[0].data_ptr(), tensors[1].data_ptr(), tensors[2].data_ptr())
        if statistics:
            exact = bool((torch.frexp(tensors[1])[0] == 0.5).all())
    keys, first, whole = _keys(draw, source)
    library.altgrad_cast(
        source.data_ptr(),
        _TYPES[source.dtype],
        result.data_ptr(),
        _TYPES[dtype],
        rows,
        columns,
        numbers,
        lengths,
        *pointers,
        *(block or (0, 0)),
        exact,
        ROUNDINGS.index(rounding),
        SATURATIONS.index(saturation),
        keys,
        first,
        whole,
        random_bits,
        vector.data_ptr() if vector is not None else None,
        _threads(source),
    )
    return result, vector


def amax(x: Tensor, block: Block | None) -> Tensor:
    """Return the largest magnitude of each block of ``x`` (any floating type but float64), or of all of it (0-d)."""
    library = status().library
    assert library is not None
    source = (x if x.dtype in _TYPES else x.float()).contiguous()
    if block is None:
        # Pieces for the threads to share out; the last step is small.
        length = source.numel()
        piece = min(max(length, 1), _ALONE)
        pieces = torch.empty(-(-length // piece), dtype=torch.float32)
        library.altgrad_amax(
            source.data_ptr(), _TYPES[source.dtype], 1, length, 1, piece, pieces.data_ptr(), _threads(source)
        )
        return pieces[0] if len(pieces) == 1 else pieces.amax()
    found = torch.zeros(block_counts(source.shape, block), dtype=torch.float32)
    if source.numel():
        rows, columns = matrix_shape(source.shape)
        sizes = min(block[0], rows), min(block[1], columns)
        library.altgrad_amax(
            source.data_ptr(), _TYPES[source.dtype], rows, columns, *sizes, found.data_ptr(), _threads(source)
        )
    return found


def _threads(x: Tensor) -> int:
    return torch.get_num_threads() if x.numel() > _ALONE else 1


def _keys(draw: Draw | None, x: Tensor) -> tuple[ctypes.Array[ctypes.c_uint32] | None, int, int]:
    """Return the keys of all pages that the tensor's elements lie on, the first number, and the whole's columns."""
    if draw is None:
        return None, 0, 0
    first, columns, whole = draw.layout(x.shape)
    last = first + (x.numel() // columns - 1) * whole + columns - 1
    keys = [half for page in range(first >> 32, (last >> 32) + 1) for half in draw.key(page)]
    return (ctypes.c_uint32 * len(keys))(*keys), first, whole


@cache
def _constants(grid: Grid) -> tuple[ctypes.Array[ctypes.c_int32], ctypes.Array[ctypes.c_float]]:
    """Return what the kernel calls ``numbers`` and ``lengths``."""
    path = 2 if path_of(grid, torch.float32) == "integers" else (0 if grid.mantissa_bits else 1)
    flags = (grid.signed, grid.has_inf, grid.has_nan, grid.has_negative_zero)
    numbers = (path, grid.mantissa_bits, grid.bias, *(int(flag) for flag in flags))
    lengths = (2.0 ** (1 - grid.bias), grid.min_normal, grid.min_positive, grid.max_finite)
    # The value beyond bf16's largest is 2^128, which float32 calls infinity.
    beyond = grid.beyond if grid.beyond < 2.0**128 else float("inf")
    return (ctypes.c_int32 * len(numbers))(*numbers), (ctypes.c_float * 5)(*lengths, beyond)
