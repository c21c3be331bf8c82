"""The native cast as operators: in code compiled for the CPU each is one node of the graph, as fast as outside of it.

The kernel makes one pass over the tensor, with the statistics in it; what the compiler makes of the tensor operations
takes about twice as long. The bits are the same.
"""

from __future__ import annotations

from typing import cast as typed

import torch
from torch import Tensor

from altgrad_core.numerics import native_cast
from altgrad_core.numerics.blockwise import Block, block_counts
from altgrad_core.numerics.modes import Rounding, Saturation
from altgrad_core.numerics.native_cast import Bits
from altgrad_core.numerics.statistics import FIELDS
from altgrad_core.numerics.stochastic import Draw, Keys, traced_keys


def cast_matrix(
    x: Tensor,
    constants: str,
    *,
    scale: Tensor,
    multiplier: Tensor | None,
    block: Block | None,
    rounding: Rounding,
    saturation: Saturation,
    draw: Draw | Keys | None,
    random_bits: int,
    dtype: torch.dtype,
    statistics: bool,
) -> tuple[Tensor, Tensor | None]:
    """Do what ``native_cast.cast_matrix`` does in compiled code, with ``scale`` and ``multiplier`` (None for 1) as float32
    tensors, 0-d or [nr, nc]."""
    keys, first, whole = None, 0, 0
    if draw is not None and x.numel():
        first, _, whole = draw.layout(x.shape)
        keys = traced_keys(draw, x.shape)
    modes = rounding, saturation, random_bits
    values, vector = _cast(
        x, constants, scale, multiplier, list(block or ()), *modes, keys, first, whole, dtype, statistics
    )
    return values, vector if statistics else None


def amax(x: Tensor, block: Block | None) -> Tensor:
    """Do what ``native_cast.amax`` does in compiled code."""
    found: Tensor = _amax(x, list(block or ()))
    return found


@torch.library.custom_op(
    "altgrad::cast",
    mutates_args=(),
    schema=(
        "(Tensor x, str constants, Tensor scale, Tensor? multiplier, SymInt[] block, str rounding, str saturation, "
        "int random_bits, Tensor? keys, SymInt first, SymInt whole, ScalarType dtype, bool statistics) "
        "-> (Tensor, Tensor)"
    ),
)
def _cast(
    x: Tensor,
    constants: str,
    scale: Tensor,
    multiplier: Tensor | None,
    block: list[int],
    rounding: str,
    saturation: str,
    random_bits: int,
    keys: Tensor | None,
    first: int,
    whole: int,
    dtype: torch.dtype,
    statistics: bool,
) -> tuple[Tensor, Tensor]:
    values, vector = native_cast.cast_matrix(
        x,
        constants,
        scale=scale if block else scale.item(),
        multiplier=1.0 if multiplier is None else multiplier if block else multiplier.item(),
        block=(block[0], block[1]) if block else None,
        rounding=typed(Rounding, rounding),
        saturation=typed(Saturation, saturation),
        bits=None if keys is None else Bits(keys.flatten().tolist(), first, whole),
        random_bits=random_bits,
        dtype=dtype,
        statistics=statistics,
    )
    return values, torch.empty(0, dtype=torch.float64) if vector is None else vector


@_cast.register_fake
def _(
    x: Tensor,
    constants: str,
    scale: Tensor,
    multiplier: Tensor | None,
    block: list[int],
    rounding: str,
    saturation: str,
    random_bits: int,
    keys: Tensor | None,
    first: int,
    whole: int,
    dtype: torch.dtype,
    statistics: bool,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(len(FIELDS) if statistics else 0, dtype=torch.float64)


@torch.library.custom_op("altgrad::amax", mutates_args=(), schema="(Tensor x, SymInt[] block) -> Tensor")
def _amax(x: Tensor, block: list[int]) -> Tensor:
    found = native_cast.amax(x, (block[0], block[1]) if block else None)
    return found.clone() if found._is_view() else found


@_amax.register_fake
def _(x: Tensor, block: list[int]) -> Tensor:
    return x.new_empty(block_counts(x.shape, (block[0], block[1])) if block else (), dtype=torch.float32)
