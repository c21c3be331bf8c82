"""Where an operand is cast: its quantizer, its name and the control of its model, for code that was compiled, too.

Compiled code runs no Python, so it cannot ask the control for a draw, nor tell it of statistics. It calls operators that
do, and a *ticket* says for which operand: a CPU tensor with a number, which ``_SITES`` turns into the site when the code
runs. A name, a seed or a step in the code would be constants of it: each step, and each block of a model that is compiled
block by block, would be compiled anew. To the compiler the operators change the ticket, so that it neither leaves one out
nor merges two.

The compiler may compute a part of the forward pass again in the backward pass rather than keep it, from a history that
has moved on by then, and without a word (torch 2.13). Scales with a history go through an operator, whose result is kept. Under
activation checkpointing the operators themselves run again; then those that depend on more than their operands refuse.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from altgrad_core.errors import AltgradError
from altgrad_core.numerics.blockwise import Block
from altgrad_core.numerics.scaling import Scale
from altgrad_core.numerics.stochastic import Draw, Keys, keys_of, pages_of
from altgrad_core.recipes.control import CastControl
from altgrad_core.recipes.recompute import recomputing

if TYPE_CHECKING:
    from altgrad_core.recipes.quantizer import Quantizer

_SITES: weakref.WeakValueDictionary[int, Site] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()
_TAGS = (torch._C.Tag.cudagraph_unsafe,)  # a recorded graph would replay the kernels and not the calls


class Site:
    """The place of one operand of one layer. Copied and unpickled with its model, it is another place."""

    def __init__(self, control: CastControl, key: str, quantizer: Quantizer, *, forward: bool) -> None:
        self.control, self.key, self.quantizer = control, key, quantizer
        self.forward = forward
        """Whether the operand is cast in the forward pass first."""
        self._open()

    def _open(self) -> None:
        number = next(_NUMBERS)
        _SITES[number] = self
        # One for each pass and each dimension that a GEMM sums over: what one pass changes the other one leaves alone.
        self._tickets = [torch.tensor([number, axis, late], device="cpu") for late in (0, 1) for axis in (-1, 0)]

    def _ticket(self, axis: int, *, late: bool) -> Tensor:
        return self._tickets[2 * late + (axis == 0)]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_tickets"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def draw(self, x: Tensor, axis: int, after: Tensor | None = None) -> Draw | Keys:
        """Return what names the random bits of the next cast, of ``x``, for the GEMM that sums over ``axis``.

        ``after`` is the gradient, where the backward pass casts an operand of the forward pass.
        """
        if not torch.compiler.is_compiling():
            return self._draw(axis)
        late = not self.forward or after is not None
        assert late or axis == -1, "after=the gradient is missing"
        pages = len(pages_of(_WHOLE, x.shape)) if x.numel() else 1
        return Keys(keys=_draw(self._ticket(axis, late=late), pages, after))

    def record(self, statistics: Tensor, axis: int) -> None:
        """Keep the statistics of a cast for the GEMM that sums over ``axis``."""
        if torch.compiler.is_compiling():
            _record(self._ticket(axis, late=not self.forward), statistics)
        else:
            self.control.record(self.key, statistics)

    def settled(self, scale: Scale) -> Scale:
        """Return, in compiled code, a scale that depends on what was cast before, as one that is computed once."""
        if not self.forward:
            return scale  # what the backward pass computes is not computed again
        decode, inside, factor = _settle(self._ticket(-1, late=False), *scale)
        return Scale(decode, inside, None if scale.factor is None else factor)

    def keep(self, scale: Tensor, block: Block | None) -> None:
        """Have compiled code keep what the operand was scaled by, where ``Quantizer`` keeps it."""
        _keep(self._ticket(-1, late=not self.forward), scale, list(block or ()))

    def _draw(self, axis: int) -> Draw:
        return self.control.draw(self.key if axis == -1 else f"{self.key}.axis{axis}")


_WHOLE = Draw(seed=0)


def _find(ticket: Tensor) -> tuple[Site, int, bool]:
    """Return the site, the axis, and whether the forward pass is being computed again, within the backward pass."""
    number, axis, late = ticket.tolist()
    again = not late and recomputing()
    return _SITES[number], axis, again


def _refuse_again(site: Site, again: bool) -> None:
    if again:
        raise AltgradError(
            f"'{site.key}' is computed again in the backward pass, by activation checkpointing of compiled code, where its "
            "random bits and the scales of a history cannot be had a second time. Leave what is checkpointed uncompiled, "
            "or use a scaling without a history and rounding to nearest."
        )


@torch.library.custom_op(
    "altgrad::draw",
    mutates_args=("ticket",),
    schema="(Tensor(a!) ticket, SymInt pages, Tensor? after) -> Tensor",
    tags=_TAGS,
)
def _draw(ticket: Tensor, pages: int, after: Tensor | None) -> Tensor:
    site, axis, again = _find(ticket)
    _refuse_again(site, again)
    return keys_of(site._draw(axis), range(pages))


@_draw.register_fake
def _(ticket: Tensor, pages: int, after: Tensor | None) -> Tensor:
    return ticket.new_empty((pages, 2))


@torch.library.custom_op(
    "altgrad::settle",
    mutates_args=("ticket",),
    schema="(Tensor(a!) ticket, Tensor decode, Tensor inside, Tensor? factor) -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
def _settle(ticket: Tensor, decode: Tensor, inside: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    site, _, again = _find(ticket)
    _refuse_again(site, again)
    return decode.clone(), inside.clone(), decode.new_empty(()) if factor is None else factor.clone()


@_settle.register_fake
def _(ticket: Tensor, decode: Tensor, inside: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(decode), torch.empty_like(inside), decode.new_empty(())


@torch.library.custom_op(
    "altgrad::record", mutates_args=("ticket",), schema="(Tensor(a!) ticket, Tensor statistics) -> ()", tags=_TAGS
)
def _record(ticket: Tensor, statistics: Tensor) -> None:
    site, _, again = _find(ticket)
    if not again:  # an element counts once
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
