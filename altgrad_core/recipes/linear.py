"""The emulated linear layer: cast the three operands, multiply their values in high precision.

With N samples, I inputs and O outputs the layer's GEMMs, and the dimension that each sums over, are::

    fprop   input [N, I]           @ weight^T [I, O]   -> output [N, O]              over I
    dgrad   grad_output [N, O]     @ weight [O, I]     -> gradient of input [N, I]   over O
    wgrad   grad_output^T [O, N]   @ input [N, I]      -> gradient of weight [O, I]  over N

An operand with one scale, or with square blocks, is cast once and its values are used in both of its GEMMs. Where the
scales follow the dimension that is summed over (rowwise, 1 x 128, mx, nvfp4: *directional* scaling) each GEMM gets a
cast of its own, as hardware does it: of the input along I for fprop and along N for wgrad, of the weight along I and
along O, of the gradient along O and along N. The forward then keeps the input itself, as a plain linear layer does, and
the backward casts it: nothing more is kept, the values are not rounded twice, and no cast is made that no GEMM needs.
Statistics count an operand's elements once, in its first cast: the one along the last dimension, wherever there is one.

The GEMMs multiply values that lie where the operand itself lies (``Quantizer`` says how), so that no product leaves the
range that the layer has without casts:

* in BF16, where the surrounding precision is BF16 and the values of all operands are exactly representable in BF16
  (every format of 8 bits with at most 7 mantissa bits, under powers of two, one scale a tensor, or nvfp4), so that the
  tensor cores or AMX units do the work and only the casts are extra;
* else in FP32 (in FP64 for an FP64 layer).

Both accumulate in FP32. The bias and its gradient are not cast. A layer whose operands are all ``bf16`` without scaling
gives the bits of ``torch.nn.functional.linear`` under autocast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from altgrad_core.recipes.quantizer import Quantizer

if TYPE_CHECKING:
    from altgrad_core.recipes.control import CastControl
    from altgrad_core.recipes.recipe import Recipe


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

    def cast_operand(
        self, operand: str, x: Tensor, dtype: torch.dtype, *, axis: int = -1, counted: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Return the operand's values in ``dtype`` and the factor that the product lacks, None for 1.

        ``axis``: the dimension that the GEMM sums over, -1 the last, 0 the others. ``counted``: whether this is the
        operand's first cast, of which statistics are recorded.
        """
        quantizer: Quantizer | None = getattr(self, f"{operand}_cast")
        if quantizer is None:
            return x.to(dtype), None
        control = self.cast_control
        key = f"{self.cast_name}.{operand}"
        draw = None
        if quantizer.draws:
            draw = control.draw(key if axis == -1 else f"{key}.axis{axis}")
        values, factor, statistics = quantizer(
            x, dtype=dtype, statistics=counted and control.collecting, axis=axis, draw=draw
        )
        if statistics is not None:
            control.record(key, statistics)
        return values, factor

    def casts_each(self, operand: str) -> bool:
        """Whether the operand is cast once for each of its two GEMMs, instead of once for both."""
        quantizer: Quantizer | None = getattr(self, f"{operand}_cast")
        return quantizer is not None and quantizer.directional

    def gemm_dtype(self, result: torch.dtype) -> torch.dtype:
        """Return the precision of the layer's GEMMs: BF16 where the result is BF16 and all values fit, else FP32 or FP64."""
        if result is torch.float64:
            return result
        quantizers = (self.input_cast, self.weight_cast, self.grad_output_cast)
        exact = all(quantizer is None or quantizer.fits_bfloat16 for quantizer in quantizers)
        return torch.bfloat16 if exact and result is torch.bfloat16 else torch.float32

    def extra_repr(self) -> str:
        """Show the layer's name beside its shape in ``print(model)``."""
        return f"{super().extra_repr()}, name={self.cast_name}"


def _scaled(product: Tensor, *factors: Tensor | None) -> Tensor:
    """Return the product of a GEMM times the factors of its operands, in FP32 at least when there are any."""
    for factor in factors:
        if factor is not None:
            product = product.to(torch.promote_types(product.dtype, torch.float32)) * factor
    return product


class _Function(torch.autograd.Function):
    """y = x W^T + b with cast operands; the module's text says what is cast when, and what is kept."""

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
            kept_x = (x, None) if layer.casts_each("input") else (xv, x_factor)
            kept_w = (weight, None) if layer.casts_each("weight") else (wv, w_factor)
            ctx.save_for_backward(*kept_x, *kept_w)
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
        dtype: torch.dtype = ctx.dtype
        xv, x_factor, wv, w_factor = ctx.saved_tensors
        x_dtype, w_dtype, b_dtype = ctx.dtypes
        need_x, need_w, need_b, _ = ctx.needs_input_grad
        grad_x = grad_w = grad_b = None
        with torch.autocast(grad.device.type, enabled=False):
            if need_b:
                grad_b = grad.reshape(-1, grad.shape[-1]).sum(dim=0).to(b_dtype)
            if need_x:
                gv, g_factor = layer.cast_operand("grad_output", grad, dtype)
                if layer.casts_each("weight"):
                    wv, w_factor = layer.cast_operand("weight", wv, dtype, axis=0, counted=False)
                # [..., O] @ [O, I] -> [..., I]
                grad_x = _scaled(gv @ wv, g_factor, w_factor).to(x_dtype)
            if need_w:
                each = layer.casts_each("grad_output")
                if each or not need_x:
                    axis = 0 if each else -1
                    gv, g_factor = layer.cast_operand("grad_output", grad, dtype, axis=axis, counted=not need_x)
                if layer.casts_each("input"):
                    xv, x_factor = layer.cast_operand("input", xv, dtype, axis=0, counted=False)
                # [O, N] @ [N, I] -> [O, I]
                product = gv.reshape(-1, gv.shape[-1]).t() @ xv.reshape(-1, xv.shape[-1])
                grad_w = _scaled(product, g_factor, x_factor).to(w_dtype)
        return grad_x, grad_w, grad_b, None
