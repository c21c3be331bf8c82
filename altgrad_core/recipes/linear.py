"""The emulated linear layer: cast the three operands, multiply their values in high precision.

Each operand is cast once to grid values ``q`` with ``operand ~ scale * q``. The GEMM multiplies the ``q`` themselves:

* in BF16, where the surrounding precision is BF16 and both formats are exactly representable in BF16 (every format of
  8 bits with at most 7 mantissa bits), so that the tensor cores or AMX units do the work and only the casts are extra;
* else in FP32.

Both accumulate in FP32. Power-of-two scales are folded into the weight operand, which is exact and costs a pass over the
weight instead of one over the (larger) output; other scales multiply the product. The bias and its gradient are not cast.
A layer whose operands are all ``bf16`` without scaling gives the bits of ``torch.nn.functional.linear`` under autocast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from altgrad_core.numerics.cast import cast
from altgrad_core.numerics.formats import Format
from altgrad_core.numerics.registry import get_format
from altgrad_core.numerics.scaling import ScalingPolicy
from altgrad_core.plugins import installed

if TYPE_CHECKING:
    from altgrad_core.recipes.control import CastControl
    from altgrad_core.recipes.recipe import OperandCast, Recipe


class Quantizer(nn.Module):
    """Casts one operand of one layer; holds its scaling policy, so that delayed scaling's history is in ``state_dict``."""

    def __init__(self, operand: OperandCast) -> None:
        super().__init__()
        self.operand = operand
        self.format: Format = get_format(operand.format)
        choice = operand.scaling
        self.scaling: ScalingPolicy = installed().get("scaling", choice.kind).value(choice.options, self.format)

    def forward(self, x: Tensor, *, dtype: torch.dtype, statistics: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return grid values in ``dtype`` (shape of ``x``), the 0-d float32 scale, and the statistics when asked for."""
        scale = self.scaling(x)
        q, vector = cast(
            x,
            self.format,
            scale=scale,
            rounding=self.operand.rounding,
            saturation=self.operand.saturation,
            dtype=dtype,
            statistics=statistics,
        )
        return q, scale, vector

    def extra_repr(self) -> str:
        """Show the format and the scaling in ``print(model)``."""
        return f"{self.operand.format}, scaling={self.operand.scaling.kind}"


class CastLinear(nn.Linear):
    """An ``nn.Linear`` whose GEMM operands are cast. Made by ``convert``, which changes a layer's class in place."""

    cast_name: str
    cast_control: CastControl
    input_cast: Quantizer | None
    weight_cast: Quantizer | None
    grad_output_cast: Quantizer | None

    def equip(self, name: str, recipe: Recipe, control: CastControl) -> None:
        """Attach quantizers for the operands that ``recipe`` casts."""
        self.cast_name, self.cast_control = name, control
        for operand in ("input", "weight", "grad_output"):
            how = getattr(recipe, operand)
            setattr(self, f"{operand}_cast", None if how is None else Quantizer(how))
        self.train(self.training)

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        if not self.cast_control.casting:
            return linear(input, self.weight, self.bias)
        return _Function.apply(input, self.weight, self.bias, self)  # type: ignore[no-any-return, no-untyped-call]

    def cast_operand(self, operand: str, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Return the operand's values in ``dtype`` and its scale; an operand that is not cast has no scale."""
        quantizer: Quantizer | None = getattr(self, f"{operand}_cast")
        if quantizer is None:
            return x.to(dtype), None
        q, scale, statistics = quantizer(x, dtype=dtype, statistics=self.cast_control.collecting)
        if statistics is not None:
            self.cast_control.record(f"{self.cast_name}.{operand}", statistics)
        return q, scale

    def gemm_dtype(self, result: torch.dtype, *operands: str) -> torch.dtype:
        """Return the precision that holds both operands exactly: BF16 where it does and the result is BF16, else FP32."""
        if result is not torch.bfloat16:
            return torch.float32
        quantizers = [getattr(self, f"{operand}_cast") for operand in operands]
        exact = all(quantizer is None or quantizer.format.fits_bfloat16 for quantizer in quantizers)
        return torch.bfloat16 if exact else torch.float32

    def power_of_two(self, *operands: str) -> bool:
        """Tell whether every scale of these operands is a power of two."""
        quantizers = [getattr(self, f"{operand}_cast") for operand in operands]
        return all(quantizer is None or quantizer.scaling.power_of_two for quantizer in quantizers)

    def extra_repr(self) -> str:
        """Show the layer's name beside its shape in ``print(model)``."""
        return f"{super().extra_repr()}, name={self.cast_name}"


def _product(*scales: Tensor | None) -> Tensor | None:
    present = [scale for scale in scales if scale is not None]
    if not present:
        return None
    result = present[0]
    for scale in present[1:]:
        result = result * scale
    return result


class _Function(torch.autograd.Function):
    """y = x W^T + b with cast operands; casts each operand once and keeps the cast values for the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: CastLinear) -> Tensor:
        kind = x.device.type
        autocast = torch.is_autocast_enabled(kind)
        result = torch.get_autocast_dtype(kind) if autocast else torch.promote_types(x.dtype, weight.dtype)
        # One cast an operand for both of its GEMMs: they share a precision.
        dtype = layer.gemm_dtype(result, "input", "weight", "grad_output")
        with torch.autocast(kind, enabled=False):
            xq, x_scale = layer.cast_operand("input", x, dtype)
            wq, w_scale = layer.cast_operand("weight", weight, dtype)
            scale = _product(x_scale, w_scale)
            ctx.layer, ctx.dtype, ctx.x_dtype, ctx.w_dtype = layer, dtype, x.dtype, weight.dtype
            ctx.b_dtype = None if bias is None else bias.dtype
            ctx.save_for_backward(xq, wq, x_scale, w_scale)
            # [..., I] @ [I, O] -> [..., O]
            if scale is None or layer.power_of_two("input", "weight"):
                w = wq if scale is None else wq * scale.to(dtype)
                return linear(xq, w, None if bias is None else bias.to(dtype)).to(result)
            y = linear(xq, wq).float() * scale
            return (y if bias is None else y + bias).to(result)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (grad,) = grads
        layer: CastLinear = ctx.layer
        xq, wq, x_scale, w_scale = ctx.saved_tensors
        need_x, need_w, need_b, _ = ctx.needs_input_grad
        grad_x = grad_w = grad_b = None
        with torch.autocast(grad.device.type, enabled=False):
            if need_b:
                grad_b = grad.reshape(-1, grad.shape[-1]).sum(dim=0).to(ctx.b_dtype)
            if not (need_x or need_w):
                return None, None, grad_b, None
            gq, g_scale = layer.cast_operand("grad_output", grad, ctx.dtype)
            if need_x:
                scale = _product(g_scale, w_scale)
                # [..., O] @ [O, I] -> [..., I]
                if scale is None or layer.power_of_two("grad_output", "weight"):
                    grad_x = gq @ (wq if scale is None else wq * scale.to(ctx.dtype))
                else:
                    grad_x = (gq @ wq).float() * scale
                grad_x = grad_x.to(ctx.x_dtype)
            if need_w:
                scale = _product(g_scale, x_scale)
                # [O, N] @ [N, I] -> [O, I]
                grad_w = (gq.reshape(-1, gq.shape[-1]).t() @ xq.reshape(-1, xq.shape[-1])).to(ctx.w_dtype)
                if scale is not None:
                    grad_w = grad_w * scale
        return grad_x, grad_w, grad_b, None
