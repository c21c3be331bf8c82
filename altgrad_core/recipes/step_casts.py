"""All that a recipe casts outside the linear layers, at its moment in a training step.

A training loop of your own calls it like this::

    casts = altgrad.StepCasts(model, optimizer, recipe, seed=0)      # after altgrad.convert(model, recipe)
    for step in range(1, steps + 1):
        casts.begin_step(step)
        with casts.forward_pass():
            output = model(batch)
        loss(output).backward()
        casts.after_backward()
        optimizer.step()
        casts.after_update()
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from altgrad_core.recipes.activations import SavedActivations
from altgrad_core.recipes.control import CastControl, control_of
from altgrad_core.recipes.gradients import GradientCast
from altgrad_core.recipes.optimizer_state import OptimizerStateCast
from altgrad_core.recipes.recipe import Recipe
from altgrad_core.recipes.resolve import resolve_recipe
from altgrad_core.recipes.weights import WeightStorage


def load_matching(module: nn.Module, state: Mapping[str, Any]) -> bool:
    """Load the entries of ``state`` that ``module`` has in the same shape; returns whether it has all of its own now."""
    own = module.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    module.load_state_dict({**own, **fitting})
    return len(fitting) == len(own)


def check_step_casts(model: nn.Module, recipe: Recipe) -> None:
    """Raise the ``AltgradError`` that ``StepCasts`` would raise for scalings that do not go with what they scale."""
    WeightStorage(model, recipe, CastControl())
    if recipe.saved_activations is not None:
        SavedActivations(model, recipe.saved_activations, CastControl())


class StepCasts:
    """The casts of gradients, weights, optimizer state and saved activations, as far as the recipe has them.

    Weights are cast for the first time here, so that no training step sees what their format cannot hold. ``recipe`` is
    what ``convert`` takes: a name, a table or a ``Recipe``; ``seed`` is that of stochastic rounding's random bits. Raises
    ``AltgradError`` when the recipe does not exist or a scaling does not go with what it scales.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: str | Mapping[str, Any] | Recipe, *, seed: int
    ) -> None:
        recipe = resolve_recipe(recipe)
        control = control_of(model)
        if control is None:
            control = CastControl()
            model.cast_control = control  # type: ignore[assignment]  # where probes and the shadow look for it
        self.control = control
        """The switches and random bits of all casts of the model, those of its layers included."""
        control.seed = seed
        control.begin_step(0)
        self._parts: dict[str, GradientCast | WeightStorage | OptimizerStateCast] = {}
        if recipe.gradient is not None:
            self._parts["gradient"] = GradientCast(model, recipe.gradient, control)
        if recipe.optimizer_state is not None:
            self._parts["optimizer_state"] = OptimizerStateCast(model, optimizer, recipe.optimizer_state, control)
        if recipe.weight_storage is not None or any(o.recipe.weight_storage is not None for o in recipe.overrides):
            self._parts["weight_storage"] = WeightStorage(model, recipe, control)
        control.casts_after_update = bool(self._parts.keys() & {"optimizer_state", "weight_storage"})
        saved = recipe.saved_activations
        self._saved_activations = None if saved is None else SavedActivations(model, saved, control)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        for part in self._parts.values():
            part.to(device)
        stored = self._parts.get("weight_storage")
        self._unused = {} if stored is None else copy.deepcopy(stored.state_dict())
        self._run("weight_storage")

    def begin_step(self, step: int) -> None:
        """Draw from now on the random bits of this step."""
        self.control.begin_step(step)

    def forward_pass(self) -> AbstractContextManager[None]:
        """Return the context around the model's forward pass."""
        return nullcontext() if self._saved_activations is None else self._saved_activations.around()

    def after_backward(self) -> None:
        """Cast the gradients."""
        self._run("gradient")

    def after_update(self) -> None:
        """Cast the optimizer's state, then the weights."""
        self._run("optimizer_state")
        self._run("weight_storage")
        for told in self.control.updated:
            told()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all scalings."""
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back ``state_dict``; model and optimizer have their state back already."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])

    def adopt_state_dict(self, state: Mapping[str, Any], *, recast: bool) -> bool:
        """Take from the state of another training what has a place here; returns whether nothing is missing.

        For casts that have done no step yet. With ``recast``, for a training with another recipe, optimizer state and
        weights, which were stored as that recipe said, are cast as this one says.
        """
        whole = True
        for name, part in self._parts.items():
            if isinstance(part, OptimizerStateCast):
                part.make_casts()
            elif isinstance(part, WeightStorage):
                # The weights that were cast before these came are nobody's: their magnitudes say nothing of these.
                part.load_state_dict(self._unused)
            whole &= load_matching(part, state.get(name, {}))
        if recast:
            self.after_update()
        return whole

    @torch.no_grad()
    def _run(self, name: str) -> None:
        if name in self._parts:
            self._parts[name]()
