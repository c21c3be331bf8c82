"""The three GEMMs of a linear layer over operands that are cast: the protocol, and the emulated ones.

``EmulatedGemms`` multiply the values themselves, in BF16, FP32 or FP64, and accumulate in FP32 (FP64). What the values
are, and when they fit BF16, the text of ``altgrad_core.recipes.linear`` says.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import attrs
import torch
from torch import Tensor
from torch.nn.functional import linear


class Operand(NamedTuple):
    """An operand as a GEMM reads it."""

    values: Tensor
    """Grid values times their scale, but for the factor; in the shape of the operand. Or codes, in 8 bits."""
    factor: Tensor | None
    """What the product has to be multiplied by, 0-d float32; None for 1. Of codes the decode scale, 0-d or [nr, nc]."""


class LinearGemms(Protocol):
    """fprop, dgrad and wgrad of one layer. Results have the dtype ``result``."""

    def holder(self, operand: str) -> torch.dtype:
        """Return what holds the values of ``input``, ``weight`` or ``grad_output``."""

    def fprop(self, x: Operand, w: Operand, bias: Tensor | None, result: torch.dtype) -> Tensor:
        """Input [..., I] @ weight^T [I, O] + bias -> [..., O]."""

    def dgrad(self, g: Operand, w: Operand, result: torch.dtype) -> Tensor:
        """Gradient [..., O] @ weight [O, I] -> [..., I]."""

    def wgrad(self, g: Operand, x: Operand, result: torch.dtype) -> Tensor:
        """Gradient^T [O, N] @ input [N, I] -> [O, I]."""


@attrs.define  # compiled code makes them, and frozen ones it cannot
class EmulatedGemms:
    """GEMMs of the cast values in high precision."""

    dtype: torch.dtype
    """What holds the values and multiplies them: bfloat16, float32 or float64."""

    def holder(self, operand: str) -> torch.dtype:
        """Return the dtype of all three operands."""
        return self.dtype

    def fprop(self, x: Operand, w: Operand, bias: Tensor | None, result: torch.dtype) -> Tensor:
        """Input [..., I] @ weight^T [I, O] + bias -> [..., O]."""
        if x.factor is None and w.factor is None:
            return linear(x.values, w.values, None if bias is None else bias.to(self.dtype)).to(result)
        y = scaled(linear(x.values, w.values), x.factor, w.factor)
        return (y if bias is None else y + bias).to(result)

    def dgrad(self, g: Operand, w: Operand, result: torch.dtype) -> Tensor:
        """Gradient [..., O] @ weight [O, I] -> [..., I]."""
        return scaled(g.values @ w.values, g.factor, w.factor).to(result)

    def wgrad(self, g: Operand, x: Operand, result: torch.dtype) -> Tensor:
        """Gradient^T [O, N] @ input [N, I] -> [O, I]."""
        product = g.values.reshape(-1, g.values.shape[-1]).t() @ x.values.reshape(-1, x.values.shape[-1])
        return scaled(product, g.factor, x.factor).to(result)


def result_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype of a product of these: autocast's where it is on, else what they promote to; float64 stays as it is."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    kind = tensors[0].device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) and dtype is not torch.float64 else dtype


def scaled(product: Tensor, *factors: Tensor | None) -> Tensor:
    """Return the product of a GEMM times the factors of its operands, in FP32 at least when there are any."""
    for factor in factors:
        if factor is not None:
            product = product.to(torch.promote_types(product.dtype, torch.float32)) * factor
    return product
