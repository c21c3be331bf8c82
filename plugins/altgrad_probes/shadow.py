"""Gradients against an FP32 shadow: forward and backward with all casts off, no autocast, at the same weights, on the same
batch, with the same dropout masks. The model itself does it; no second copy of the weights exists.

Per parameter, with ``g`` the gradient under test (before clipping) and ``s`` the shadow's:

| metric | definition | unit |
| --- | --- | --- |
| ``grad_cos_sim`` | (g . s) / (norm g * norm s); NaN when either is zero | -1 to 1 |
| ``shadow_grad_snr_db`` | 20 log10(norm s / norm (g - s)) | dB |
| ``shadow_loss``, ``shadow_loss_diff`` | the shadow's loss; training loss minus it | nats |
"""

from __future__ import annotations

import torch
from torch import Tensor

from altgrad_core.recipes.control import casts_off
from altgrad_core.training import rng
from altgrad_core.training.probes import Probe, StepContext


class ShadowProbe(Probe):
    """The probe ``shadow``."""

    def __init__(self, every: int) -> None:
        super().__init__(every)
        self._before: tuple[Tensor, list[Tensor]] | None = None

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
        names = [name for name in grads if grads[name] is not None and shadow[name] is not None]
        g = [grads[name] for name in names]
        s = [shadow[name] for name in names]
        g_norm, s_norm = (torch.stack(torch._foreach_norm(tensors, 2)).double() for tensors in (g, s))
        torch._foreach_sub_(s, g)  # the shadow's gradients are not needed any more
        error = torch.stack(torch._foreach_norm(s, 2)).double()
        # By the law of cosines: one pass less than a dot product, and exact where g and s are equal.
        cosine = (g_norm.square() + s_norm.square() - error.square()) / (2 * g_norm * s_norm)
        context.measurements.add_layers("grad_cos_sim", names, cosine)
        context.measurements.add_layers("shadow_grad_snr_db", names, 20 * torch.log10(s_norm / error))
        context.measurements.add("shadow_loss", loss)
        context.measurements.add("shadow_loss_diff", context.loss - loss)
