"""What autograd keeps for the backward pass in low precision, as a recipe's ``saved_activations`` says.

Hooks on the tensors that autograd saves replace each by codes and scales, which take the memory that the format says;
the backward pass reads the values back. So the forward pass computes as ever, and only gradients feel the cast.

Covered is every floating-point tensor that an operation of the model saves: inputs of linear layers (with an ``input``
cast: the cast values), of norms and activation functions, queries, keys and values, outputs that a derivative needs,
dropout masks where they are numbers. Kept as they are:

* parameters, buffers, their views, and copies of them in another precision: they are no activations;
* a linear layer's cast weight, which the recipe's ``weight`` has cast already;
* the further results of an operation, such as a norm's mean and deviation or attention's logsumexp: a number a row,
  whose error would be in every element of it;
* integers, booleans, and 0-d tensors;
* what the loss saves, which is computed outside the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from altgrad_core.errors import AltgradError
from altgrad_core.recipes.control import CastControl
from altgrad_core.recipes.kept import Kept
from altgrad_core.recipes.linear import CastLayer
from altgrad_core.recipes.recipe import OperandCast
from altgrad_core.recipes.revert import of_altgrad
from altgrad_core.recipes.tensor_cast import TensorCast

_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.clone.default)


class SavedActivations:
    """Casts what ``model`` saves for the backward pass; statistics stand under ``<module>.saved_activations``.

    Raises ``AltgradError`` for a scaling that has a history: what autograd saves has no name to keep one under.
    """

    def __init__(self, model: nn.Module, how: OperandCast, control: CastControl) -> None:
        self._model, self._control = model, control
        self._cast = TensorCast(how)
        if self._cast.state_dict():
            raise AltgradError(
                f"saved_activations cannot be scaled by '{how.scaling.kind}': it goes by the tensors before, and the "
                "tensors that autograd saves cannot be told apart; use 'current' or a scaling by blocks."
            )
        self._exempt: _Exempt | None = None
        self._modules: list[str] = []
        for name, module in model.named_modules():
            key = f"{name}.saved_activations" if name else "saved_activations"
            module.register_forward_pre_hook(of_altgrad(self._entering(key)))
            module.register_forward_hook(of_altgrad(self._leaving()), always_call=True)
            weight_cast = module.quantizers().get("weight") if isinstance(module, CastLayer) else None
            if weight_cast is not None:
                weight_cast.register_forward_hook(of_altgrad(self._spare()))

    @contextmanager
    def around(self) -> Iterator[None]:
        """Cast what a forward pass within the context saves, unless casts are off or there is nothing to save."""
        if not self._control.casting or not torch.is_grad_enabled():
            yield
            return
        self._modules = ["saved_activations"]
        self._exempt = _Exempt(self._model)
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack), self._exempt:
                yield
        finally:
            self._exempt = None

    def _pack(self, x: Tensor) -> Tensor | Kept:
        assert self._exempt is not None
        if not x.is_floating_point() or x.dim() == 0 or x.numel() == 0 or self._exempt.has(x):
            return x
        if x.element_size() == 1:
            raise AltgradError(
                f"'{self._modules[-1].removesuffix('.saved_activations')}' keeps FP8 codes for its native GEMMs, which "
                "saved_activations cannot cast: give convert() the recipe that StepCasts has, and it keeps values instead."
            )
        q, scale, block = self._cast.grid_values(x, self._control, self._modules[-1])
        return Kept.of(q, scale, block, self._cast.element, x.dtype)

    @staticmethod
    def _unpack(kept: Tensor | Kept) -> Tensor:
        return kept.restore() if isinstance(kept, Kept) else kept

    def _entering(self, key: str) -> Callable[[nn.Module, Any], None]:
        def entering(module: nn.Module, inputs: Any) -> None:
            if self._exempt is not None:
                self._modules.append(key)

        return entering

    # Functions and no methods: of a copy of the model the hooks would take a copy of all this along.

    def _leaving(self) -> Callable[[nn.Module, Any, Any], None]:
        def leaving(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._exempt is not None:
                self._modules.pop()

        return leaving

    def _spare(self) -> Callable[[nn.Module, Any, Any], None]:
        def spare(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._exempt is not None:
                self._exempt.add(output)

        return spare


class _Exempt(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches the forward pass for tensors that are no activations, and knows them by their memory.

    What autograd saves comes without its history, so that a BF16 copy of a weight could not be told from an activation
    afterwards. Every such tensor's memory is held while the mode lasts: an address means nothing once it is free.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages: dict[int, torch.UntypedStorage] = {}
        self.add((*model.parameters(), *model.buffers()))

    def add(self, tensors: Any) -> None:
        """Exempt a tensor, or those among the items of a tuple."""
        for tensor in tensors if isinstance(tensors, tuple) else (tensors,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._storages[storage.data_ptr()] = storage

    def has(self, tensor: Tensor) -> bool:
        """Tell whether the tensor lies in the memory of an exempt one."""
        return tensor.untyped_storage().data_ptr() in self._storages

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _COPIES:
            if self.has(args[0]):
                self.add(result)
        elif len(func._schema.returns) > 1:
            self.add(tuple(result[1:]))
        return result
