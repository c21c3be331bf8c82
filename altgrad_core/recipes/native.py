"""``NativeGemms``: a linear layer's GEMMs on the device's FP8 units, over codes and decode scales.

The codes are those of the emulated layer; only the sums differ (``docs/native.md``). With N samples, I inputs and
O outputs, and the right operand given transposed, as ``scaled_mm`` takes it::

    fprop   input [N, I]          x  weight [O, I]        codes as they were cast
    dgrad   grad_output [N, O]    x  weight^T [I, O]      one transposed copy of the weight's codes
    wgrad   grad_output^T [O, N]  x  input^T [I, N]       one transposed copy of each

Each copy is made once a pass, of one byte an element. Products have the dtype of the layer's output, as an emulated
layer's have. A GEMM that the units do not have (e5m2 x e5m2, an operand that is not cast) multiplies the cast values in
BF16 or FP32.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor
from torch.nn.functional import linear

from altgrad_core.recipes.gemm import Operand, scaled
from altgrad_core.recipes.scaled_mm import Granularity, dense, scaled_mm


@attrs.frozen(kw_only=True)
class NativeGemm:
    """How one of the GEMMs is done on FP8 units."""

    left: Granularity
    """What shares a scale in the left operand."""
    right: Granularity
    """What shares a scale in the right operand."""
    fast: bool
    """Whether sums may stay in the units' own registers."""


@attrs.define(kw_only=True)  # compiled code makes them, and frozen ones it cannot
class NativeGemms:
    """GEMMs of codes; those that are None multiply values."""

    fprop_how: NativeGemm | None
    """Input by weight."""
    dgrad_how: NativeGemm | None
    """Gradient of the output by weight."""
    wgrad_how: NativeGemm | None
    """Gradient of the output by input."""
    holders: dict[str, torch.dtype]
    """Operand -> the FP8 dtype of its codes; of others values are taken."""
    product: torch.dtype
    """What the FP8 units round a product to: bfloat16 or float32."""
    wide: torch.dtype
    """What multiplies values where there is no FP8 GEMM: bfloat16 or float32."""

    def holder(self, operand: str) -> torch.dtype:
        """Return what holds the codes, or the values, of ``input``, ``weight`` or ``grad_output``."""
        return self.holders.get(operand, self.wide)

    def fprop(self, x: Operand, w: Operand, bias: Tensor | None, result: torch.dtype) -> Tensor:
        """Input [..., I] @ weight^T [I, O] + bias -> [..., O]."""
        how = self.fprop_how
        if how is None:
            y = self._by_values(linear(self._wide(x), self._wide(w)), x, w)
            return (y if bias is None else y + bias).to(result)
        y = self._multiply(how, _matrix(x), w, bias)
        return y.view(*x.values.shape[:-1], y.shape[-1]).to(result)

    def dgrad(self, g: Operand, w: Operand, result: torch.dtype) -> Tensor:
        """Gradient [..., O] @ weight [O, I] -> [..., I]."""
        how = self.dgrad_how
        if how is None:
            return self._by_values(self._wide(g) @ self._wide(w), g, w).to(result)
        y = self._multiply(how, _matrix(g), _turned(w))
        return y.view(*g.values.shape[:-1], y.shape[-1]).to(result)

    def wgrad(self, g: Operand, x: Operand, result: torch.dtype) -> Tensor:
        """Gradient^T [O, N] @ input [N, I] -> [O, I]."""
        how = self.wgrad_how
        if how is None:
            product = _rows(self._wide(g)).t() @ _rows(self._wide(x))
            return self._by_values(product, g, x).to(result)
        return self._multiply(how, _turned(_matrix(g)), _turned(_matrix(x))).to(result)

    def _multiply(self, how: NativeGemm, left: Operand, right: Operand, bias: Tensor | None = None) -> Tensor:
        assert left.factor is not None
        assert right.factor is not None
        product = scaled_mm(
            left.values, right.values, left.factor, right.factor, how.left, how.right,
            out=self.product, bias=bias, fast=how.fast,
        )  # fmt: skip
        return dense(product)  # where the padding was cut off

    def _wide(self, operand: Operand) -> Tensor:
        return operand.values.to(self.wide)

    @staticmethod
    def _by_values(product: Tensor, *operands: Operand) -> Tensor:
        return scaled(product, *(operand.factor for operand in operands))


def _rows(x: Tensor) -> Tensor:
    """Return the matrix [rows, columns] that a linear layer makes of a tensor."""
    return x.reshape(-1, x.shape[-1])


def _matrix(operand: Operand) -> Operand:
    """Return codes as a matrix, row by row in memory."""
    return Operand(dense(_rows(operand.values)), operand.factor)


def _turned(operand: Operand) -> Operand:
    """Return the transposed codes, row by row in memory, and their scales."""
    scale = operand.factor
    return Operand(dense(operand.values.t()), scale.t() if scale is not None and scale.dim() else scale)
