"""Registers the optimizer ``adamw``: ``torch.optim.AdamW`` (fused), weight decay on matrices only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from altgrad_core.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    import torch

_fraction = [attrs.validators.ge(0), attrs.validators.lt(1)]


@attrs.frozen(kw_only=True)
class AdamWOptions:
    """``optimizer = { kind = "adamw", ... }``."""

    beta1: float = attrs.field(default=0.9, validator=_fraction)
    """Decay of the first moment."""
    beta2: float = attrs.field(default=0.95, validator=_fraction)
    """Decay of the second moment."""
    eps: float = attrs.field(default=1e-8, validator=attrs.validators.gt(0))
    """Added to the root of the second moment."""


def build(
    options: AdamWOptions, model: torch.nn.Module, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Build the optimizer: parameters of two or more dimensions decay; biases and norms do not."""
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=learning_rate, betas=(options.beta1, options.beta2), eps=options.eps, fused=True
    )


@hookimpl
def altgrad_register_optimizers(register: Register) -> None:
    """Register ``adamw``."""
    register("adamw", build, AdamWOptions)
