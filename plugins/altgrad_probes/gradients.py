"""Per parameter, of the gradient ``g`` that the optimizer will read, before clipping:

| metric | definition | unit |
| --- | --- | --- |
| ``grad_norm_l2`` | sqrt(sum g^2) | |
| ``grad_norm_linf`` | max abs(g) | |
| ``grad_snr`` | abs(mean g) / std g over the elements (population standard deviation; NaN for a constant gradient) | ratio |
| ``dead_neuron_frac`` | for matrices: rows (output neurons) whose gradient is zero throughout | fraction |
"""

from __future__ import annotations

import torch

from altgrad_core.training.probes import Probe, StepContext


class GradientsProbe(Probe):
    """The probe ``gradients``."""

    def after_backward(self, context: StepContext) -> None:
        """Measure all gradients; nothing leaves the device."""
        grads = {name: p.grad for name, p in context.parameters.items() if p.grad is not None}
        if not grads:
            return
        l2 = torch.stack(torch._foreach_norm(list(grads.values()), 2)).double()
        linf, means, matrices, dead = [], [], [], []
        for name, grad in grads.items():
            rows = grad.reshape(len(grad), -1) if grad.dim() > 1 else grad.reshape(1, -1)
            # One pass gives both extremes; an infinity norm is 18 times slower on a CPU.
            low, high = torch.aminmax(rows, dim=1)
            linf.append(torch.maximum(high.max(), -low.min()))
            means.append(grad.mean(dtype=torch.float32))
            if grad.dim() > 1:
                matrices.append(name)
                dead.append(((low == 0) & (high == 0)).double().mean())
        counts = torch.tensor([grad.numel() for grad in grads.values()], dtype=torch.float64, device=l2.device)
        mean = torch.stack(means).double()
        variance = (l2.square() / counts - mean.square()).clamp_min(0)
        names = list(grads)
        context.measurements.add_layers("grad_norm_l2", names, l2)
        context.measurements.add_layers("grad_norm_linf", names, torch.stack(linf))
        context.measurements.add_layers("grad_snr", names, mean.abs() / variance.sqrt())
        if matrices:
            context.measurements.add_layers("dead_neuron_frac", matrices, torch.stack(dead))
