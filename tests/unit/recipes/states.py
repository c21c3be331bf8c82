"""A small training with ``StepCasts``, for the tests of what it casts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import altgrad_core as altgrad
from altgrad_core.recipes.resolve import resolve_recipe
from altgrad_core.recipes.step_casts import StepCasts

STOCHASTIC = {"rounding": "stochastic"}


class Small:
    """Linear regression of a random map by a two-layer network in FP32, unless the recipe says otherwise."""

    def __init__(self, recipe: Any, *, seed: int = 0, rate: float = 1e-3, optimizer: type = torch.optim.Adam) -> None:
        torch.manual_seed(1)
        self.recipe = resolve_recipe({"compute": "fp32", **recipe} if isinstance(recipe, dict) else recipe)
        self.target = torch.randn(16, 4)
        self.model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 4))
        altgrad.convert(self.model, self.recipe)
        self.optimizer = optimizer(self.model.parameters(), lr=rate)
        self.casts = StepCasts(self.model, self.optimizer, self.recipe, seed=seed)
        self.step_number = 0

    def step(self) -> float:
        self.step_number += 1
        self.casts.begin_step(self.step_number)
        generator = torch.Generator().manual_seed(self.step_number)
        x = torch.randn(64, 16, generator=generator)
        self.optimizer.zero_grad()
        with self.casts.forward_pass():
            y = self.model(x)
        loss = (y - x @ self.target / 4).square().mean()
        loss.backward()
        self.casts.after_backward()
        self.optimizer.step()
        self.casts.after_update()
        return loss.item()

    def train(self, steps: int) -> float:
        """Return the mean loss of the last quarter of the steps."""
        losses = [self.step() for _ in range(steps)]
        return sum(losses[-(steps // 4) :]) / (steps // 4)

    def states(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        for name, parameter in self.model.named_parameters():
            for state, tensor in self.optimizer.state[parameter].items():
                yield name, state, tensor
