"""Per parameter, of the gradient ``g`` that the optimizer will read, before clipping:

| metric | definition | unit |
| --- | --- | --- |
| ``grad_norm_l2`` | sqrt(sum g^2) | |
| ``grad_norm_linf`` | max abs(g) | |
| ``grad_snr`` | abs(mean g) / std g over the elements (population) | ratio |
| ``dead_neuron_frac`` | weights of linear layers: rows (output neurons) whose gradient is zero throughout | fraction |
"""

from __future__ import annotations

import torch
from torch import nn

from altgrad_core.numerics.sums import moments
from altgrad_core.training.probes import Probe, StepContext


class GradientsProbe(Probe):
    """The probe ``gradients``."""

    def after_backward(self, context: StepContext) -> None:
        """Measure all gradients; nothing leaves the device."""
        grads = {name: p.grad for name, p in context.parameters.items() if p.grad is not None}
        if not grads:
            return
        # A row of an embedding whose token did not occur has no gradient and is not dead.
        neurons = {id(m.weight) for m in context.model.modules() if isinstance(m, nn.Linear)}
        names = list(grads)
        layers = [index for index, name in enumerate(names) if id(context.parameters[name]) in neurons]
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
            add("dead_neuron_frac", [names[index] for index in layers], zero_rows[layers] / rows)
