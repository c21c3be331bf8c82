"""The cast of a layer's value that no GEMM of its own reads: an output, a looked-up embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from altgrad_core.recipes.linear import CastLayer


def cast_value(layer: CastLayer, operand: str, x: Tensor) -> Tensor:
    """Return ``x`` cast as the layer's ``operand``, ``scale * q`` in its own dtype; its gradient passes as it is.

    Blocks of a scaling lie along the last dimension. A dtype that cannot hold ``scale * q`` rounds it.
    """
    return _Value.apply(x, layer, operand)  # type: ignore[no-any-return, no-untyped-call]


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: CastLayer, operand: str) -> Tensor:
        values, factor = layer.cast_operand(operand, x, torch.promote_types(x.dtype, torch.float32))
        return (values if factor is None else values * factor).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None
