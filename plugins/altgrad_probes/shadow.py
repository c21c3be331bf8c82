"""Gradients against an FP32 shadow: forward and backward with all casts off and no autocast, at the same weights, on the
same batch, with the same dropout masks. The model itself does it; no second copy of the weights exists.

Per parameter, with ``g`` the gradient under test (before clipping) and ``s`` the shadow's, sums in FP64:

| metric | definition | unit |
| --- | --- | --- |
| ``grad_cos_sim`` | (g . s) / (norm g * norm s) | -1 to 1 |
| ``shadow_grad_snr_db`` | 20 log10(norm s / norm (g - s)) | dB |
| ``shadow_loss``, ``shadow_loss_diff`` | the shadow's loss; training loss minus it | nats |

A gradient that is zero, or not finite, where the shadow's is neither has lost its direction: its cosine is 0, so that a
layer that a format destroys counts in the mean. Where the shadow's own gradient is zero there is nothing to compare: NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from altgrad_core.numerics.sums import products
from altgrad_core.recipes.control import casts_off
from altgrad_core.training import rng
from altgrad_core.training.probes import Probe, StepContext


class ShadowProbe(Probe):
    """The probe ``shadow``."""

    def __init__(self, every: int) -> None:
        super().__init__(every)
        self._before: tuple[Tensor, Tensor | None] | None = None

    def before_forward(self, context: StepContext) -> None:
        """Remember the generators, so that the shadow draws the same dropout masks."""
        self._before = rng.torch_state()

    def after_backward(self, context: StepContext) -> None:
        """Run the shadow, compare, and leave gradients and generators as they were."""
        assert self._before is not None
        assert context.loss is not None
        after = rng.torch_state()
        rng.restore_torch(self._before)
        grads = {name: p.grad for name, p in context.parameters.items()}
        for parameter in context.parameters.values():
            parameter.grad = None
        try:
            with casts_off(context.model):
                loss = context.backward("fp32")
            shadow = {name: p.grad for name, p in context.parameters.items()}
        finally:
            for name, parameter in context.parameters.items():
                parameter.grad = grads[name]
            rng.restore_torch(after)
        pairs = {n: (g, s) for n, g in grads.items() if g is not None and (s := shadow[n]) is not None}
        # [parameters] each
        gg, ss, gs, ee = torch.stack([products(g, s) for g, s in pairs.values()]).unbind(dim=1)
        cosine = (gs / (gg.sqrt() * ss.sqrt())).clamp(-1.0, 1.0)
        lost = (ss > 0) & ((gg == 0) | ~torch.isfinite(gg))
        add = context.measurements.add_layers
        add("grad_cos_sim", list(pairs), torch.where(lost, 0.0, cosine))
        add("shadow_grad_snr_db", list(pairs), 10 * torch.log10(ss / ee))
        context.measurements.add("shadow_loss", loss)
        context.measurements.add("shadow_loss_diff", context.loss - loss)
