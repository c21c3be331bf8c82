"""Optimizer state in low precision, as a recipe's ``optimizer_state`` says.

After each update every tensor of the optimizer's state that has the shape of its parameter (both moments of Adam, the
momentum of SGD) is replaced by its cast value. Counters and factored moments have another shape and stay as they are,
the latter with a warning.

The second moment is what an update divides by. Where it rounds to zero and the first moment does not, the update is
``m / eps``; where it is rounded to nearest and decays by less than half a spacing a step, it never decays. See
``docs/decisions/0006-optimizer-state.md`` for what was measured.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from altgrad_core.errors import AltgradError, unknown
from altgrad_core.recipes.control import CastControl
from altgrad_core.recipes.recipe import OptimizerStateCasts
from altgrad_core.recipes.tensor_cast import TensorCast


class OptimizerStateCast(nn.Module):
    """Casts the optimizer's tensors in place; statistics stand under ``<parameter>.<state>``, as ``....exp_avg``.

    An optimizer makes its tensors at its first step, so casts are made as tensors appear. Their scaling state is in
    ``state_dict`` under the parameter's number and the tensor's name; load it after the optimizer's own.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, how: OptimizerStateCasts, control: CastControl
    ) -> None:
        super().__init__()
        self._optimizer, self._how, self._control = optimizer, how, control
        self._parameters_by_name = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.casts = nn.ModuleDict()
        self._updated = self._warned = False
        control.handles.append(optimizer.register_step_post_hook(self._notice_update))

    def forward(self) -> None:
        """Replace each tensor by its cast value, in place.

        Raises ``AltgradError`` when the recipe names a tensor that the optimizer does not have in the shape of its
        parameters, or when the optimizer has updated parameters and keeps none at all.
        """
        for key, name, state, tensor in self._tensors():
            cast = self._cast(key, state)
            if cast is not None:
                tensor.copy_(cast(tensor, self._control, f"{name}.{state}"))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take back ``state_dict``; the optimizer has its state back already."""
        self.make_casts()
        return super().load_state_dict(state_dict, strict, assign)

    def make_casts(self) -> None:
        """Make the casts of the tensors that the optimizer has by now."""
        for key, _, state, _ in self._tensors():
            self._cast(key, state)

    def _tensors(self) -> Iterator[tuple[str, str, str, Tensor]]:
        """Yield (key of the cast, parameter's name, state's name, tensor) for every tensor that may be cast."""
        found: set[str] = set()
        others: set[str] = set()
        for number, (name, parameter) in enumerate(self._parameters_by_name):
            for state, tensor in self._optimizer.state.get(parameter, {}).items():
                if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                    continue
                if tensor.dim() and tensor.shape == parameter.shape:  # without dimensions it is a counter
                    found.add(state)
                    yield f"{number}-{state}", name, state, tensor
                elif tensor.dim():
                    others.add(state)
        self._check(found, others - found)

    def _check(self, found: set[str], others: set[str]) -> None:
        """Say what the recipe asks for in vain: ``others`` are tensors of another shape than their parameter's."""
        optimizer = type(self._optimizer).__name__
        missing = [named.state for named in self._how.named if named.state not in found]
        if missing and missing[0] in others:
            raise AltgradError(
                f"recipe.optimizer_state names '{missing[0]}', which {optimizer} does not keep in the shape of its "
                "parameters; only tensors of that shape are cast. Leave it out."
            )
        if missing and found:
            raise AltgradError(unknown(f"tensor of {optimizer} for recipe.optimizer_state", missing[0], found))
        if self._updated and not found:
            raise AltgradError(
                f"recipe.optimizer_state has nothing to cast: {optimizer} keeps no tensor in the shape of its parameters. "
                "Leave optimizer_state out, or train with an optimizer that has moments."
            )
        if others and self._how.every is not None and not self._warned:
            self._warned = True
            warnings.warn(
                f"recipe.optimizer_state casts tensors in the shape of their parameters; {optimizer} keeps others, which "
                f"stay as they are: {', '.join(sorted(others))}.",
                stacklevel=2,
            )

    def _notice_update(self, *_: object) -> None:
        """After each step of the optimizer: with gradients it has made whatever it keeps."""
        self._updated = self._updated or any(p.grad is not None for _, p in self._parameters_by_name)

    def _cast(self, key: str, state: str) -> TensorCast | None:
        how = self._how.of(state)
        if how is None:
            return None
        if key not in self.casts:
            device = next(p for _, p in self._parameters_by_name).device
            self.casts[key] = TensorCast(how).to(device)
        return self.casts[key]  # type: ignore[return-value]
