"""Which layers read a weight in a GEMM, converted or not, and how it lies: what probes of weights and neurons go by."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from altgrad_core.recipes.revert import original_class
from altgrad_core.recipes.transposed import is_transposed_linear

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def linear_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the linear layers, those of transformers' ``Conv1D`` among them; each has ``weight``."""
    for module in model.modules():
        if isinstance(module, nn.Linear) or is_transposed_linear(original_class(module)):
            yield module


def gemm_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the linear layers, then the convolutions."""
    yield from linear_layers(model)
    for module in model.modules():
        if isinstance(module, _CONVOLUTIONS):
            yield module


def neurons(layer: nn.Module, x: Tensor) -> Tensor:
    """Return ``x``, of the shape of a linear layer's weight, as [outputs, inputs]."""
    return x.t() if is_transposed_linear(original_class(layer)) else x
