"""Activation checkpointing: a layer that is computed a second time casts as it did the first time.

``torch.utils.checkpoint`` drops what a part of the model keeps for the backward pass and runs its forward pass again when
the backward pass comes to it. The gradients are those of the function that the first pass computed only if the second
has its bits: the same scales, though delayed scaling has moved on, and the same random bits. And what is cast twice is one
tensor of the training: it is counted once, and remembered once.

A forward pass that runs within a backward pass is such a repetition. Which of a layer's calls it repeats is clear where
the layer was called once; where it was called more often (a shared layer, several micro-batches before one backward) the
call with the same input is taken, found by a checksum. Layers whose casts depend on nothing but their operands (scaling by
the current amax or by blocks, rounding to nearest) have nothing to remember and are only not counted twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import attrs
import torch
from torch import Tensor

from altgrad_core.errors import AltgradError
from altgrad_core.numerics.scaling import Scale
from altgrad_core.numerics.stochastic import Draw

_T = TypeVar("_T")
_KEPT = 64  # calls of one layer that wait for their repetition
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def recomputing() -> bool:
    """Tell whether the backward pass is running in this thread, so that a forward pass is a repetition."""
    return torch._C._current_graph_task_id() != -1  # there is no public way to ask


def may_be_recomputed() -> bool:
    """Tell whether the forward pass at hand may belong to a checkpoint: it keeps nothing, or through hooks."""
    hooks: object = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None or not torch.is_grad_enabled()


@attrs.define
class Call:
    """One call of one layer: the scales and the random bits of its casts, in their order."""

    checksum: Tensor | None
    """Of the layer's input, int64 0-d on its device; None where there is nothing to remember."""
    again: bool = False
    """Whether the call is being repeated."""
    repeated: bool = False
    """Whether it was repeated already."""
    scales: dict[str, list[Scale]] = attrs.field(factory=dict)
    """``layer.operand`` -> its scales, of the policies that have a state: one for each cast of it in the call."""
    draws: dict[str, list[Draw]] = attrs.field(factory=dict)
    """``layer.operand`` -> the names of its random bits."""
    _done: dict[tuple[str, str], int] = attrs.field(factory=dict)
    """How many of them the repetition at hand has had."""

    def repeat(self) -> None:
        """Give from now on what the first time had, from its beginning."""
        self.again, self._done = True, {}

    def scale(self, key: str, make: Callable[[], Scale]) -> Scale:
        """Return the scale of the first time, which ``make`` makes."""
        return self._kept(self.scales, "scale", key, make)

    def draw(self, key: str, make: Callable[[], Draw]) -> Draw:
        """Return the random bits of the first time, which ``make`` names."""
        return self._kept(self.draws, "draw", key, make)

    def _kept(self, all_kept: dict[str, list[_T]], what: str, key: str, make: Callable[[], _T]) -> _T:
        kept = all_kept.setdefault(key, [])
        if not self.again:
            kept.append(make())
            return kept[-1]
        number = self._done.get((what, key), 0)
        self._done[what, key] = number + 1
        return kept[number]


class Calls:
    """The calls of a model's layers that may be repeated."""

    def __init__(self) -> None:
        self.current: Call | None = None
        """The call that is being done, where it matters."""
        self._by_layer: dict[str, deque[Call]] = {}

    def clear(self) -> None:
        """Forget them: a new step begins."""
        self._by_layer = {}

    @contextmanager
    def doing(self, layer: str, x: Tensor, *, remembers: bool) -> Iterator[None]:
        """Within the context the layer casts for the input ``x``, the first time or once more.

        Raises ``AltgradError`` for a repetition of a call that is not known.
        """
        before, again = self.current, recomputing()
        if again:
            call = self._find(layer, x) if remembers else Call(None)
            call.repeat()
        else:
            call = Call(_checksum(x))
            waiting = self._by_layer.setdefault(layer, deque(maxlen=_KEPT))
            if all(one.repeated for one in waiting):
                waiting.clear()
            waiting.append(call)
        self.current = call
        try:
            yield
        finally:
            self.current = before
            call.repeated |= again

    def _find(self, layer: str, x: Tensor) -> Call:
        waiting = self._by_layer.get(layer, deque())
        if len(waiting) == 1:
            return waiting[0]
        if waiting:  # the one time that the host has to wait for the device
            checksum = _checksum(x)
            same = torch.stack([one.checksum == checksum for one in waiting if one.checksum is not None]).tolist()
            found = [one for one, it_is in zip(waiting, same, strict=True) if it_is]
            if found:
                return next((one for one in reversed(found) if not one.repeated), found[-1])
        raise AltgradError(
            f"The layer '{layer}' is computed again in the backward pass, on an input that it has not had in this step, so "
            "that its scales and random bits are not known. Do the backward pass before the next step begins and before "
            f"{_KEPT} more forward passes, or use a scaling without a history and rounding to nearest."
        )


def _checksum(x: Tensor) -> Tensor:
    """Return a number (int64, 0-d, on the device of ``x``) that other values, or others' order of rows, do not have."""
    bits = x.detach()
    if bits.is_floating_point():
        bits = bits.view(_BITS[bits.element_size()])
    rows = bits.reshape(-1, bits.size(-1) if bits.dim() else 1).sum(dim=-1, dtype=torch.int64)
    return (rows * torch.arange(1, len(rows) + 1, device=x.device)).sum()
