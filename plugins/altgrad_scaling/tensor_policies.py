"""The four policies with one scale a tensor: none, static, current, delayed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from altgrad_core.numerics.amax import tensor_amax
from altgrad_core.numerics.cast import scale_tensor
from altgrad_core.numerics.formats import Format
from altgrad_core.numerics.scaling import ScalingPolicy, scale_for, usable


class StaticScaling(ScalingPolicy):
    """The same scale for every tensor; ``none`` is the scale 1."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = repr(scale)  # as text a constant to the compiler
        self.power_of_two = math.frexp(scale)[0] == 0.5

    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        """Return the scale."""
        return scale_tensor(float(self.scale), x.device)


class CurrentScaling(ScalingPolicy):
    """The scale that fits the tensor at hand: 1 when its largest magnitude is 0, Inf or NaN, or it is empty.

    A tensor with an Inf or a NaN in it thus falls back to scale 1 as a whole; the cast's statistics count both.
    """

    def __init__(self, format: Format, *, power_of_two: bool, margin: int) -> None:
        super().__init__()
        self.format, self.power_of_two, self.margin = format, power_of_two, margin

    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        """Return the scale for ``x``."""
        return scale_for(tensor_amax(x), self.format, power_of_two=self.power_of_two, margin=self.margin)


class DelayedScaling(ScalingPolicy):
    """The scale that would have fitted the tensors before this one.

    ``amax_history``, newest first, is rolled after each tensor seen in training mode. A tensor whose largest magnitude
    is 0, Inf or NaN leaves it as it is, and so keeps the old scale. While the history is empty the tensor's own
    magnitude is used (and scale 1 if that is no use), since a first step at scale 1 would round most gradients to zero.
    """

    amax_history: Tensor

    def __init__(self, format: Format, *, history: int, algorithm: str, power_of_two: bool, margin: int) -> None:
        super().__init__()
        self.format, self.algorithm, self.power_of_two, self.margin = format, algorithm, power_of_two, margin
        self.register_buffer("amax_history", torch.zeros(history, dtype=torch.float32))

    @torch.no_grad()
    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        """Return the scale for ``x`` and, in training mode, remember its largest magnitude."""
        amax = tensor_amax(x)
        history = self.amax_history.float()
        known = history.amax() if self.algorithm == "max" else history[0]
        scale = scale_for(
            torch.where(known > 0, known, amax), self.format, power_of_two=self.power_of_two, margin=self.margin
        )
        if self.training:
            rolled = torch.cat([amax.reshape(1), history[:-1]])
            self.amax_history.copy_(torch.where(usable(amax), rolled, history))
        return scale
