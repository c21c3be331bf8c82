"""Cast of parameter gradients before the optimizer reads them, as a recipe's ``gradient`` says."""

from __future__ import annotations

from torch import nn

from altgrad_core.recipes.control import CastControl
from altgrad_core.recipes.recipe import OperandCast
from altgrad_core.recipes.tensor_cast import TensorCast


class GradientCast(nn.Module):
    """Casts every parameter's gradient; scaling state is in ``state_dict`` under the parameter's number.

    Statistics stand under ``<parameter>.gradient``.
    """

    def __init__(self, model: nn.Module, how: OperandCast, control: CastControl) -> None:
        super().__init__()
        self._control = control
        self._parameters_by_name = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.casts = nn.ModuleList(TensorCast(how) for _ in self._parameters_by_name)

    def forward(self) -> None:
        """Replace each gradient by ``scale * cast(gradient / scale)``, in the gradient's own dtype."""
        for (name, parameter), cast in zip(self._parameters_by_name, self.casts, strict=True):
            if parameter.grad is not None:
                parameter.grad = cast(parameter.grad, self._control, f"{name}.gradient")
