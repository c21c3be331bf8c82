"""Tensors as matrices cut into blocks: shapes, and one number a block spread over its elements.

Any tensor counts as the matrix [rows, columns] that a linear layer makes of it: its last dimension, and the product of
the others (one row for 1-d and 0-d tensors). Blocks of ``(block_rows, block_columns)`` start at its first element; the
last ones may be ragged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from altgrad_core.errors import AltgradError

Block = tuple[int, int]


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return the rows and columns that a tensor of this shape counts as."""
    columns = shape[-1] if len(shape) else 1
    rows = 1
    for size in shape[:-1]:
        rows *= size
    return rows, columns


def block_counts(shape: Sequence[int], block: Block) -> tuple[int, int]:
    """Return how many blocks lie below and beside each other; raises ``AltgradError`` for a block that is none."""
    sizes = int | torch.SymInt  # the latter while a compiler traces with dynamic=True
    if not isinstance(block, tuple | list) or len(block) != 2 or not all(isinstance(n, sizes) and n > 0 for n in block):
        raise AltgradError(f"A block is (rows, columns), both at least 1, got {block!r:.60}.")
    rows, columns = matrix_shape(shape)
    return -(-rows // block[0]), -(-columns // block[1])


def check_block(scale: object, shape: Sequence[int], block: Block, what: str) -> Tensor:
    """Return the scales of blocks as a float32 tensor; raises ``AltgradError`` unless there is one for each block."""
    counts = block_counts(shape, block)
    if not isinstance(scale, Tensor) or tuple(scale.shape) != counts:
        came = f"a tensor of shape {list(scale.shape)}" if isinstance(scale, Tensor) else repr(scale)
        raise AltgradError(
            f"With blocks of {block[0]} x {block[1]} a tensor of shape {list(shape)} needs a {what} of shape "
            f"{list(counts)}, one for each block; got {came}."
        )
    return scale.detach().to(torch.float32)


def check_scale(scale: float | Tensor, x: Tensor, block: Block | None, what: str = "scale") -> float | Tensor:
    """Return the one scale of ``x`` as it came, or with ``block`` the scales of its blocks in float32.

    ``what`` is what errors call it. Raises ``AltgradError`` unless it is a number or a 0-d tensor, or one number for each
    block on the device of ``x``.
    """
    if block is not None:
        scales = check_block(scale, x.shape, block, what)
        if scales.device != x.device:
            raise AltgradError(
                f"The {what}s of blocks lie on the device of the tensor, {x.device}; got {scales.device}."
            )
        return scales
    if isinstance(scale, Tensor) and scale.dim():
        raise AltgradError(
            f"{what} is a number or a 0-d tensor unless block=(rows, columns) says what shares one; got a tensor of "
            f"shape {list(scale.shape)}."
        )
    return scale


def expand(scales: Tensor, shape: Sequence[int], block: Block) -> Tensor:
    """Spread one number a block over the elements: [nr, nc] -> a tensor of the given shape."""
    rows, columns = matrix_shape(shape)
    # By index, because torch 2.13's compiler reads the wrong elements of a repeated and then shortened row on the CPU.
    for dim, (length, size) in enumerate(((rows, block[0]), (columns, block[1]))):
        if size > 1:
            scales = scales.index_select(dim, torch.arange(length, device=scales.device) // size)
    return scales.reshape(tuple(shape))
