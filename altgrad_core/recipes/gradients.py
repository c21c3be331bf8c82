"""Cast of parameter gradients before the optimizer reads them, as a recipe's ``gradient`` says."""

from __future__ import annotations

import torch
from torch import nn

from altgrad_core.recipes.control import CastControl
from altgrad_core.recipes.quantizer import Quantizer
from altgrad_core.recipes.recipe import OperandCast


class GradientCast(nn.Module):
    """Casts every parameter's gradient in place; scaling state is in ``state_dict`` under the parameter's number."""

    def __init__(self, model: nn.Module, operand: OperandCast) -> None:
        super().__init__()
        self.cast_control = CastControl()
        self._parameters_by_name = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.quantizers = nn.ModuleList(Quantizer(operand) for _ in self._parameters_by_name)

    def forward(self) -> None:
        """Replace each gradient by ``scale * cast(gradient / scale)``, in the gradient's own dtype."""
        for (name, parameter), quantizer in zip(self._parameters_by_name, self.quantizers, strict=True):
            if parameter.grad is None:
                continue
            grad = parameter.grad
            wide = torch.promote_types(grad.dtype, torch.float32)
            values, factor, statistics = quantizer(grad, dtype=wide, statistics=self.cast_control.collecting)
            parameter.grad = (values if factor is None else values * factor).to(grad.dtype)
            if statistics is not None:
                self.cast_control.record(f"{name}.gradient", statistics)
