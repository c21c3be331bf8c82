"""Calls of the native cast (``cpp/cast.cpp``) for CPU tensors: which casts it takes, and the arguments it wants."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad_core.numerics.blockwise import Block, block_counts, matrix_shape
from altgrad_core.numerics.formats import FloatFormat, TableFormat
from altgrad_core.numerics.kernel import Grid, grid_of
from altgrad_core.numerics.modes import Rounding, Saturation
from altgrad_core.numerics.native import status
from altgrad_core.numerics.native_kinds import TYPES, kind_pointers, path_in_kernel
from altgrad_core.numerics.statistics import FIELDS
from altgrad_core.numerics.stochastic import Draw, Keys, pages_of


class Bits(NamedTuple):
    """Which random bits the elements of a tensor draw."""

    keys: Sequence[int]
    """The two halves of the key of each page that they lie on."""
    first: int
    """Number of the first element."""
    whole: int
    """Columns of the whole that the tensor is a part of."""

    @classmethod
    def of(cls, draw: Draw | Keys, x: Tensor) -> Bits | None:
        """Return those of a draw; None for an empty tensor."""
        first, _, whole = draw.layout(x.shape)
        if not x.numel():
            return None
        if isinstance(draw, Keys):
            return cls(draw.keys.flatten().tolist(), first, whole)
        return cls([half for page in pages_of(draw, x.shape) for half in draw.key(page)], first, whole)


_Two = ctypes.c_float * 2
_PATHS: dict[str, int | None] = {}
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
    """Tell whether updates on the grid can be counted: its first power of two is one of float32's, and so is the last."""
    return path_in_kernel(grid) is not None and grid.bias <= 127 and grid.max_finite < 2.0**128


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _built() -> bool:
    return status().native


def takes_compiled(x: Tensor) -> bool:
    """Tell whether compiled code leaves ``x`` to the operators of ``native_ops``: a CPU tensor, and the kernel is built.

    On other devices the compiler fuses the tensor operations with what is before and after them.
    """
    compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return compiling and x.device.type == "cpu" and _built()


def casts(format: FloatFormat | TableFormat, rounding: Rounding) -> bool:
    """Tell whether the native kernel casts to the format: to grids it rounds to, and to tables by their buckets."""
    if isinstance(format, TableFormat):
        return rounding != "stochastic" and not format.rounds_itself(rounding)
    if torch.compiler.is_compiling():
        return path_in_kernel(grid_of(format)) is not None
    found = _PATHS.get(format.constants, -1)
    if found == -1:
        found = _PATHS[format.constants] = path_in_kernel(grid_of(format))
    return found is not None


def cast_matrix(
    x: Tensor,
    constants: str,
    *,
    scale: float | Tensor,
    multiplier: float | Tensor,
    block: Block | None,
    rounding: Rounding,
    saturation: Saturation,
    bits: Bits | None,
    random_bits: int,
    dtype: torch.dtype,
    statistics: bool,
) -> tuple[Tensor, Tensor | None]:
    """Cast ``x`` (any floating type but float64) to ``multiplier * q`` in ``dtype`` (float32 or bfloat16).

    ``constants`` are those of the format. ``scale`` and ``multiplier`` are numbers, or with ``block`` float32 [nr, nc],
    of which the second may be the number 1. ``bits`` are what ``stochastic`` rounding draws.
    """
    library = status().library
    assert library is not None
    source = (x if x.dtype in TYPES else x.float()).resolve_neg().contiguous()
    result = torch.empty_like(source, dtype=dtype)
    rows, columns = matrix_shape(source.shape)
    vector = torch.zeros(len(FIELDS), dtype=torch.float64, device="cpu") if statistics else None
    if rows * columns == 0:
        return result, vector
    if isinstance(scale, Tensor):
        factors = [factor.contiguous() for factor in (scale, multiplier) if isinstance(factor, Tensor)]
        pointers: tuple[int, int | None] = (factors[0].data_ptr(), factors[1].data_ptr() if factors[1:] else None)
    else:
        held = _Two(scale, float(multiplier))
        start = ctypes.addressof(held)
        pointers = (start, start + 4)
    block_rows, block_columns = block or (0, 0)
    keys = None if bits is None else (ctypes.c_uint32 * len(bits.keys))(*bits.keys)
    library.altgrad_cast(
        *kind_pointers(constants, source.dtype, dtype, rounding, saturation, random_bits),
        source.data_ptr(),
        result.data_ptr(),
        rows,
        columns,
        *pointers,
        block_rows,
        block_columns,
        keys,
        0 if bits is None else bits.first,
        0 if bits is None else bits.whole,
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
