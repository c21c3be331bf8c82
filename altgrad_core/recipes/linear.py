"""The emulated linear layer: cast the three operands, multiply their values in high precision.

Each operand is cast once, to grid values ``q`` with ``operand ~ scale * q``, and used in two GEMMs. With
``scale = 2^k * m``, 1 <= m < 2, the GEMM multiplies the values ``2^k * q``, which lie where the operand itself lies, so
that no product leaves the range that the layer has without casts:

* in BF16, where the surrounding precision is BF16 and both formats are exactly representable in BF16 (every format of
  8 bits with at most 7 mantissa bits), so that the tensor cores or AMX units do the work and only the casts are extra;
* else in FP32 (in FP64 for an FP64 layer).

Both accumulate in FP32. Powers of two (m = 1, the default) are exact and cost no pass of their own; other scales multiply
the product by the m of both operands. The bias and its gradient are not cast. A layer whose operands are all ``bf16``
without scaling gives the bits of ``torch.nn.functional.linear`` under autocast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
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
        self.last_scale: Tensor | None = None
        """The scale of the newest cast, for probes: under delayed scaling the policy has moved on since."""

    def forward(
        self, x: Tensor, *, dtype: torch.dtype, statistics: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return (values in ``dtype``, factor, statistics): x ~ factor * values; no factor means 1.

        The factor is a 0-d float32 tensor from 1 to below 2. The values have the shape of ``x``.
        """
        scale = self.last_scale = self.scaling(x)
        power, factor = (scale, None) if self.scaling.power_of_two else _split(scale)
        values, vector = cast(
            x,
            self.format,
            scale=scale,
            rounding=self.operand.rounding,
            saturation=self.operand.saturation,
            dtype=dtype,
            multiplier=power,
            statistics=statistics,
        )
        return values, factor, vector

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
        """Return the operand's values in ``dtype`` and the factor that the product lacks, None for 1."""
        quantizer: Quantizer | None = getattr(self, f"{operand}_cast")
        if quantizer is None:
            return x.to(dtype), None
        values, factor, statistics = quantizer(x, dtype=dtype, statistics=self.cast_control.collecting)
        if statistics is not None:
            self.cast_control.record(f"{self.cast_name}.{operand}", statistics)
        return values, factor

    def gemm_dtype(self, result: torch.dtype) -> torch.dtype:
        """Return the precision of the layer's GEMMs: BF16 where the result is BF16 and all formats fit, else FP32 or FP64."""
        if result is torch.float64:
            return result
        quantizers = (self.input_cast, self.weight_cast, self.grad_output_cast)
        exact = all(quantizer is None or quantizer.format.fits_bfloat16 for quantizer in quantizers)
        return torch.bfloat16 if exact and result is torch.bfloat16 else torch.float32

    def extra_repr(self) -> str:
        """Show the layer's name beside its shape in ``print(model)``."""
        return f"{super().extra_repr()}, name={self.cast_name}"


def _split(scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the power of two below a positive scale, and what is left of it, from 1 to below 2 (0-d float32 each)."""
    mantissa, exponent = torch.frexp(scale)  # mantissa from 0.5 to below 1
    return torch.ldexp(torch.ones_like(scale), exponent - 1), mantissa * 2


def _scaled(product: Tensor, *factors: Tensor | None) -> Tensor:
    """Return the product of a GEMM times the factors of its operands, in FP32 at least when there are any."""
    for factor in factors:
        if factor is not None:
            product = product.to(torch.promote_types(product.dtype, torch.float32)) * factor
    return product


class _Function(torch.autograd.Function):
    """y = x W^T + b with cast operands; casts each operand once and keeps the cast values for the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: CastLinear) -> Tensor:
        kind = x.device.type
        autocast = torch.is_autocast_enabled(kind)
        result = torch.get_autocast_dtype(kind) if autocast else torch.promote_types(x.dtype, weight.dtype)
        dtype = layer.gemm_dtype(result)
        with torch.autocast(kind, enabled=False):
            xv, x_factor = layer.cast_operand("input", x, dtype)
            wv, w_factor = layer.cast_operand("weight", weight, dtype)
            ctx.layer, ctx.dtype = layer, dtype
            ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
            ctx.save_for_backward(xv, wv, x_factor, w_factor)
            # [..., I] @ [I, O] -> [..., O]
            if x_factor is None and w_factor is None:
                return linear(xv, wv, None if bias is None else bias.to(dtype)).to(result)
            y = _scaled(linear(xv, wv), x_factor, w_factor)
            return (y if bias is None else y + bias).to(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (grad,) = grads
        layer: CastLinear = ctx.layer
        xv, wv, x_factor, w_factor = ctx.saved_tensors
        x_dtype, w_dtype, b_dtype = ctx.dtypes
        need_x, need_w, need_b, _ = ctx.needs_input_grad
        grad_x = grad_w = grad_b = None
        with torch.autocast(grad.device.type, enabled=False):
            if need_b:
                grad_b = grad.reshape(-1, grad.shape[-1]).sum(dim=0).to(b_dtype)
            if need_x or need_w:
                gv, g_factor = layer.cast_operand("grad_output", grad, ctx.dtype)
            if need_x:
                # [..., O] @ [O, I] -> [..., I]
                grad_x = _scaled(gv @ wv, g_factor, w_factor).to(x_dtype)
            if need_w:
                # [O, N] @ [N, I] -> [O, I]
                product = gv.reshape(-1, gv.shape[-1]).t() @ xv.reshape(-1, xv.shape[-1])
                grad_w = _scaled(product, g_factor, x_factor).to(w_dtype)
        return grad_x, grad_w, grad_b, None
