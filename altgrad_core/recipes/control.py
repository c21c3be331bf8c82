"""What all converted layers of one model share: casting on or off, statistics collected or not, random bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from altgrad_core.numerics.statistics import combine
from altgrad_core.numerics.stochastic import Draw


class CastControl:
    """One per converted model. Layers read it at every call; probes and the shadow switch it.

    Stochastic rounding draws bits that are a function of ``seed``, the step, the name of what is cast, how often it was
    cast in this step (a micro-batch each, in a training with accumulation) and the element. A training that calls
    ``begin_step`` draws the same bits when it is run again or resumed. One that does not draws new bits at each cast
    all the same.
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

    def begin_step(self, step: int) -> None:
        """Draw from now on what belongs to this training step."""
        self._step = step
        self._occurrences = {}

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
    for module in model.modules():
        control = getattr(module, "cast_control", None)
        if isinstance(control, CastControl):
            return control
    return None


@contextmanager
def casts_off(model: nn.Module) -> Iterator[None]:
    """Within the context the model computes as it did before ``convert``: no casts, no statistics, no scaling state."""
    control = control_of(model)
    if control is None:
        yield
        return
    before = control.casting
    control.casting = False
    try:
        yield
    finally:
        control.casting = before
