"""What all converted layers of one model share: casting on or off, statistics collected or not, random bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from altgrad_core.numerics.statistics import combine
from altgrad_core.numerics.stochastic import Draw
from altgrad_core.recipes.recompute import Call, Calls, may_be_recomputed, recomputing

_ALONE = nullcontext()


class CastControl:
    """One per converted model. Layers read it at every call; probes and the shadow switch it.

    Stochastic rounding draws bits that are a function of ``seed``, the step, the name of what is cast, how often it was
    cast in this step (a micro-batch each, in a training with accumulation) and the element. A training that calls
    ``begin_step`` draws the same bits when it is run again or resumed. One that does not draws new bits at each cast
    all the same. Of a layer that activation checkpointing computes twice, see ``recompute``.

    A copy, as ``copy.deepcopy`` of a model makes it, draws the same bits as the original would, and shares nothing with it.
    """

    def __init__(self) -> None:
        self.casting = True
        self.collecting = False
        self.listener: Callable[[str, torch.Tensor], None] | None = None
        """Is told of every cast that is counted, in order: ``layer.operand`` and its statistics vector."""
        self.seed = 0
        self._step = 0
        self._occurrences: dict[str, int] = {}
        self._collected: dict[str, list[torch.Tensor]] = {}
        self._calls = Calls()
        self.handles: list[torch.utils.hooks.RemovableHandle] = []
        """Hooks that casts have hung on other objects than the model's modules; ``revert`` removes them."""
        self.casts_after_update = False
        """Whether something is cast after the optimizer's step: its state, or stored weights."""
        self.updated: list[Callable[[], None]] = []
        """Are called when that has been done."""

    def __deepcopy__(self, memo: dict[int, Any]) -> CastControl:
        copied = CastControl()
        copied.casting, copied.seed, copied._step = self.casting, self.seed, self._step
        copied._occurrences = dict(self._occurrences)
        return copied

    @property
    def repeating(self) -> bool:
        """Whether the cast at hand repeats an earlier one, as activation checkpointing does, and counts no second time."""
        return self.call is not None and self.call.again

    @property
    def call(self) -> Call | None:
        """The call of a layer that is being done, where activation checkpointing may have to do with it."""
        return self._calls.current

    def calling(self, layer: str, x: torch.Tensor, *, remembers: bool) -> AbstractContextManager[None]:
        """Return the context for the casts of one forward pass of a layer on ``x``.

        ``remembers``: whether they depend on more than their operands, on a history or on random bits.
        """
        if torch.compiler.is_compiling():
            return _ALONE
        if recomputing() or (remembers and may_be_recomputed()):
            return self._calls.doing(layer, x, remembers=remembers)
        return _ALONE

    def begin_step(self, step: int) -> None:
        """Draw from now on what belongs to this training step."""
        self._step = step
        self._occurrences = {}
        self._calls.clear()

    @contextmanager
    def again(self, step: int) -> Iterator[None]:
        """Within the context draw the bits of this step from its beginning; after it go on as if that had not been."""
        now = self._step, self._occurrences
        self.begin_step(step)
        try:
            yield
        finally:
            self._step, self._occurrences = now

    def draw(self, key: str) -> Draw:
        """Return the name of the random bits for the next cast of ``key`` (``layer.operand``)."""
        if self.call is not None:
            return self.call.draw(key, lambda: self._next_draw(key))
        return self._next_draw(key)

    def _next_draw(self, key: str) -> Draw:
        occurrence = self._occurrences.get(key, 0)
        self._occurrences[key] = occurrence + 1
        return Draw(seed=self.seed, step=self._step, name=f"{key}#{occurrence}")

    def record(self, key: str, statistics: torch.Tensor) -> None:
        """Keep a statistics vector under ``layer.operand``; stays on its device."""
        if self.listener is not None:
            self.listener(key, statistics)
        self._collected.setdefault(key, []).append(statistics)

    def take(self) -> dict[str, torch.Tensor]:
        """Return ``layer.operand`` -> statistics over everything cast since the last call, and forget it."""
        taken = {key: combine(torch.stack(vectors)) for key, vectors in self._collected.items()}
        self._collected = {}
        return taken


def control_of(model: nn.Module) -> CastControl | None:
    """Return the control of a converted model, None when nothing in it is converted."""
    return next(iter(controls_of(model)), None)


def controls_of(model: nn.Module) -> list[CastControl]:
    """Return every control in a model: more than one where converted models, or copies of their layers, are parts of it."""
    found = (module.__dict__.get("cast_control") for module in model.modules())
    return list(dict.fromkeys(control for control in found if isinstance(control, CastControl)))


@contextmanager
def casts_off(model: nn.Module) -> Iterator[None]:
    """Within the context the model computes as it did before ``convert``: no casts, no statistics, no scaling state."""
    before = {control: control.casting for control in controls_of(model)}
    for control in before:
        control.casting = False
    try:
        yield
    finally:
        for control, casting in before.items():
            control.casting = casting
