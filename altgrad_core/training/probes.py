"""Probes: what measures. Each sees a step at four moments and adds values to the step's measurements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from torch import Tensor, nn

from altgrad_core.recipes.control import CastControl
from altgrad_core.recipes.recipe import Compute, Recipe
from altgrad_core.training.metrics import Measurements

Batch = tuple[Tensor, Tensor]


@attrs.define(kw_only=True)
class StepContext:
    """What probes see of a step."""

    step: int
    """Number of the step, from 1."""
    model: nn.Module
    """The model, before or after the update as the moment says."""
    recipe: Recipe
    """The run's recipe."""
    parameters: dict[str, nn.Parameter]
    """Trainable parameters by name; a tied one appears once."""
    batches: list[Batch]
    """The step's micro-batches: inputs and targets, both int64 [B, T], on the device."""
    controls: list[CastControl]
    """The switches of the run's casts; one serves them all."""
    backward: Callable[[Compute], Tensor]
    """Runs forward and backward over ``batches`` in the given precision, adds to ``.grad``, returns the mean loss (0-d)."""
    measurements: Measurements
    """Where values go."""
    loss: Tensor | None = None
    """Mean training loss of the step (0-d), from ``after_backward`` on."""


class Probe:
    """Base class of probes; override the moments you need. State that outlives a step goes through ``state_dict``."""

    def __init__(self, every: int) -> None:
        self.every = every

    def due(self, step: int) -> bool:
        """Tell whether the probe runs: at the first step and at every multiple of ``every``."""
        return step == 1 or step % self.every == 0

    def before_forward(self, context: StepContext) -> None:
        """Before the forward pass."""

    def after_backward(self, context: StepContext) -> None:
        """With the step's gradients in ``.grad``, cast as the recipe says, before clipping."""

    def before_update(self, context: StepContext) -> None:
        """Before the optimizer's step; not called when a non-finite gradient makes the step be skipped."""

    def after_update(self, context: StepContext) -> None:
        """After the optimizer's step, with weights and optimizer state cast, and the same gradients, clipped."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs (tensors and JSON types)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back ``state_dict``."""
