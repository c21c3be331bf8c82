"""Where an operand is cast: its quantizer, its name and the control of its model, for code that was compiled, too.

Compiled code runs no Python, so it cannot ask the control for a draw, nor tell it of statistics. It calls operators that
do, and a *ticket* says for which operand: a CPU tensor with a number, which ``_SITES`` turns into the site when the code
runs. A name, a seed or a step in the code would be constants of it: each step, and each block of a model that is compiled
block by block, would be compiled anew. To the compiler the operators change the ticket, so that it neither leaves one out
nor merges two.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from altgrad_core.numerics.blockwise import Block
from altgrad_core.numerics.stochastic import Draw, Keys, keys_of, pages_of
from altgrad_core.recipes.control import CastControl

if TYPE_CHECKING:
    from altgrad_core.recipes.quantizer import Quantizer

_SITES: weakref.WeakValueDictionary[int, Site] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()
_TAGS = (torch._C.Tag.cudagraph_unsafe,)  # a recorded graph would replay the kernels and not the calls


class Site:
    """The place of one operand of one layer. Copied and unpickled with its model, it is another place."""

    def __init__(self, control: CastControl, key: str, quantizer: Quantizer) -> None:
        self.control, self.key, self.quantizer = control, key, quantizer
        self._open()

    def _open(self) -> None:
        number = next(_NUMBERS)
        _SITES[number] = self
        # One for each dimension that a GEMM sums over: the forward pass changes the first, the backward pass the other.
        self.last = torch.tensor([number, -1], device="cpu")
        self.rows = torch.tensor([number, 0], device="cpu")

    def __getstate__(self) -> dict[str, Any]:
        return {"control": self.control, "key": self.key, "quantizer": self.quantizer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def draw(self, x: Tensor, axis: int) -> Draw | Keys:
        """Return what names the random bits of the next cast, of ``x``, for the GEMM that sums over ``axis``."""
        if not torch.compiler.is_compiling():
            return self._draw(axis)
        pages = len(pages_of(_WHOLE, x.shape)) if x.numel() else 1
        return Keys(keys=_draw(self.last if axis == -1 else self.rows, pages))

    def record(self, statistics: Tensor, axis: int) -> None:
        """Keep the statistics of a cast for the GEMM that sums over ``axis``."""
        if torch.compiler.is_compiling():
            _record(self.last if axis == -1 else self.rows, statistics)
        else:
            self.control.record(self.key, statistics)

    def keep(self, scale: Tensor, block: Block | None) -> None:
        """Have compiled code keep what the operand was scaled by, where ``Quantizer`` keeps it."""
        _keep(self.last, scale, list(block or ()))

    def _draw(self, axis: int) -> Draw:
        return self.control.draw(self.key if axis == -1 else f"{self.key}.axis{axis}")


_WHOLE = Draw(seed=0)


def _find(ticket: Tensor) -> tuple[Site, int]:
    number, axis = ticket.tolist()
    return _SITES[number], axis


@torch.library.custom_op(
    "altgrad::draw", mutates_args=("ticket",), schema="(Tensor(a!) ticket, SymInt pages) -> Tensor", tags=_TAGS
)
def _draw(ticket: Tensor, pages: int) -> Tensor:
    site, axis = _find(ticket)
    return keys_of(site._draw(axis), range(pages))


@_draw.register_fake
def _(ticket: Tensor, pages: int) -> Tensor:
    return ticket.new_empty((pages, 2))


@torch.library.custom_op(
    "altgrad::record", mutates_args=("ticket",), schema="(Tensor(a!) ticket, Tensor statistics) -> ()", tags=_TAGS
)
def _record(ticket: Tensor, statistics: Tensor) -> None:
    site, _ = _find(ticket)
    site.control.record(site.key, statistics.clone())


@torch.library.custom_op(
    "altgrad::keep_scale",
    mutates_args=("ticket",),
    schema="(Tensor(a!) ticket, Tensor scale, SymInt[] block) -> ()",
    tags=_TAGS,
)
def _keep(ticket: Tensor, scale: Tensor, block: list[int]) -> None:
    quantizer = _find(ticket)[0].quantizer
    quantizer.last_scale, quantizer.last_block = scale.clone(), (block[0], block[1]) if block else None


@_record.register_fake
@_keep.register_fake
def _(ticket: Tensor, *_: object) -> None:
    return None
