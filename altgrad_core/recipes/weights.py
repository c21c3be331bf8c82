"""Weights without a high-precision master copy, as a recipe's ``weight_storage`` says.

After each update every trainable matrix (weights of linear layers, embeddings: two dimensions or more) is replaced by
its cast value, so that what the next step reads, and a checkpoint holds, is ``scale * q`` and nothing else. Vectors
(biases, gains of norms) stay as they are: they are few, and 2 or 3 mantissa bits next to 1.0 are no gain to train.
The tensor that holds the values keeps its dtype; the emulation saves no memory, it shows what the storage does.

With rounding to nearest an update below half a spacing is lost for good; stochastic rounding keeps it on average.
``docs/decisions/0005-weights-without-a-master-copy.md`` says why the scales must be powers of two.
"""

from __future__ import annotations

import torch
from torch import nn

from altgrad_core.errors import AltgradError
from altgrad_core.recipes.control import CastControl
from altgrad_core.recipes.recipe import OperandCast, Recipe
from altgrad_core.recipes.revert import original_class, size_of
from altgrad_core.recipes.tensor_cast import TensorCast


class WeightStorage(nn.Module):
    """Casts the weights in place; scaling state is in ``state_dict`` under the number of the model's parameter.

    The recipe of the first override that matches a layer holds for its weights: ``bf16`` leaves them as they are. A
    weight that layers share is cast as the first of them, in the order of overrides, says. Statistics stand under
    ``<parameter>.weight_storage``.

    Raises ``AltgradError`` for a scaling whose scales are no powers of two.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, control: CastControl) -> None:
        super().__init__()
        self._control = control
        self._weights: list[tuple[str, nn.Parameter]] = []
        self.casts = nn.ModuleDict()
        owners = _owners(model)
        for number, (name, parameter) in enumerate(model.named_parameters()):
            how = _storage(recipe, owners[id(parameter)])
            if how is None or not parameter.requires_grad or parameter.dim() < 2:
                continue
            cast = TensorCast(how)
            if not cast.scaling.power_of_two:
                raise AltgradError(
                    f"weight_storage of '{name}' needs scales that are powers of two, or each step would move the grid "
                    f"under weights that have no other copy; scaling '{how.scaling.kind}' as given has others: use "
                    "'current' with power_of_two = true, or 'mx'."
                )
            self._weights.append((name, parameter))
            self.casts[str(number)] = cast

    @torch.no_grad()
    def forward(self) -> None:
        """Replace each weight by its cast value, in place."""
        for (name, parameter), cast in zip(self._weights, self.casts.values(), strict=True):
            parameter.copy_(cast(parameter, self._control, f"{name}.weight_storage"))


def _owners(model: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    """Return the layers that have a parameter, by the parameter's id."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((name, module))
    return owners


def _storage(recipe: Recipe, layers: list[tuple[str, nn.Module]]) -> OperandCast | None:
    for override in recipe.overrides:
        for name, module in layers:
            if override.matches([name], original_class(module).__name__, size_of(module)):
                return override.recipe.weight_storage
    return recipe.weight_storage
