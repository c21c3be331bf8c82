"""Per parameter, of the gradient ``g`` that the optimizer will read, before clipping:

| metric | definition | unit |
| --- | --- | --- |
| ``grad_norm_l2`` | sqrt(sum g^2) | |
| ``grad_norm_linf`` | max abs(g) | |
| ``grad_snr`` | abs(mean g) / std g over the elements (population) | ratio |
| ``dead_neuron_frac`` | weights of linear layers: rows (output neurons) whose gradient is zero throughout | fraction |
| ``dead_neuron_window_frac`` | the same, of the rows that were dead in each of the last ``window`` measurements | fraction |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from altgrad_core.numerics.sums import moments
from altgrad_core.recipes.readers import linear_layers, neurons
from altgrad_core.training.probes import Probe, StepContext


class GradientsProbe(Probe):
    """The probe ``gradients``.

    A neuron without a gradient on one batch is common (a ReLU that was off, a small value that underflowed); one that has
    none on ``window`` batches no longer learns. So each row's measurements without a gradient, in a row up to now, are
    counted; the counts are part of the checkpoint. The window's fraction is there from its ``window``-th measurement on.
    """

    def __init__(self, every: int, window: int = 5) -> None:
        super().__init__(every)
        self.window = window
        self._measured = 0
        self._dead_for: dict[str, Tensor] = {}  # weight -> int32 [rows]

    def after_backward(self, context: StepContext) -> None:
        """Measure all gradients; nothing leaves the device."""
        grads = {name: p.grad for name, p in context.parameters.items() if p.grad is not None}
        if not grads:
            return
        # A row of an embedding whose token did not occur has no gradient and is not dead.
        readers = {id(layer.weight): layer for layer in linear_layers(context.model)}
        names = list(grads)
        layers = [index for index, name in enumerate(names) if id(context.parameters[name]) in readers]
        for name in (names[index] for index in layers):
            grads[name] = neurons(readers[id(context.parameters[name])], grads[name])
        # [parameters] each
        sums, squares, linf, zero_rows = torch.stack([moments(grad) for grad in grads.values()]).unbind(dim=1)
        counts = torch.tensor([grad.numel() for grad in grads.values()], dtype=torch.float64, device=sums.device)
        mean = sums / counts
        deviation = (squares / counts - mean.square()).clamp_min(0).sqrt()
        add = context.measurements.add_layers
        add("grad_norm_l2", names, squares.sqrt())
        add("grad_norm_linf", names, linf)
        add("grad_snr", names, mean.abs() / deviation)
        if layers:
            rows = torch.tensor([len(grads[names[index]]) for index in layers], device=sums.device)
            weights = [names[index] for index in layers]
            add("dead_neuron_frac", weights, zero_rows[layers] / rows)
            self._measured += 1
            # Read on the CPU only: elsewhere it would wait for the device, and a second pass over the gradient costs less.
            some = zero_rows[layers].tolist() if zero_rows.device.type == "cpu" else [1.0] * len(layers)
            dead = [self._dead_in_window(name, grads[name], dies > 0) for name, dies in zip(weights, some, strict=True)]
            if self._measured >= self.window:
                add("dead_neuron_window_frac", weights, torch.stack(dead).double() / rows)

    def state_dict(self) -> dict[str, Any]:
        """Return how long each neuron has been without a gradient."""
        return {"measured": self._measured, "dead_for": dict(self._dead_for)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back ``state_dict``."""
        self._measured, self._dead_for = state["measured"], dict(state["dead_for"])

    def _dead_in_window(self, name: str, grad: Tensor, some_dead: bool) -> Tensor:
        """Count one more measurement of a weight; return its rows that were dead throughout the window (0-d)."""
        if not some_dead or name not in self._dead_for:
            self._dead_for[name] = torch.zeros(len(grad), dtype=torch.int32, device=grad.device)
        if some_dead:
            alive = grad.any(dim=1)  # a NaN is a gradient
            self._dead_for[name] = torch.where(alive, 0, self._dead_for[name].to(grad.device) + 1)
        return (self._dead_for[name] >= self.window).sum()
