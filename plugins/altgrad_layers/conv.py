"""Convolutions with cast operands, as implicit GEMMs: a pixel is a sample, a channel an input.

With N pictures, C input and O output channels, pixels * and the kernel's window k, what is multiplied and summed over::

    fprop   input [N, *, C]         weight [k, O, C]   -> output [N, *, O]       over C and k
    dgrad   grad_output [N, *, O]   weight [k, O, C]   -> gradient of input      over O and k
    wgrad   grad_output [N, *, O]   input [N, *, C]    -> gradient of weight     over N and *

These are the orders of dimensions in which operands are cast, so that the blocks of a scaling (mx, 1 x 128, rows) lie along
channels, or for wgrad along pixels, as in the layout that tensor cores want. With one scale a tensor the order is all the
same. As in a linear layer an operand is cast once for both of its products, or where scales follow the dimension that is
summed over once for each; products are in BF16 where all values fit and the result is BF16, else in FP32; the bias is not
cast. The padding that ``padding_mode`` or ``padding="same"`` asks for is part of the input, zeros of a plain padding not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from altgrad_core.recipes.gemm import result_dtype, scaled
from altgrad_core.recipes.linear import CastLayer


class CastConv(CastLayer):
    """An ``nn.Conv1d``, ``Conv2d`` or ``Conv3d`` whose operands are cast."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, *] or [C, *] -> [N, O, *] or [O, *]."""
        if not self.cast_control.casting:
            return super().forward(input)
        batched = input.dim() == self.weight.dim()
        x, padding = input if batched else input.unsqueeze(0), self.padding
        if self.padding_mode != "zeros" or padding == "same":
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=mode), "valid"
        if padding == "valid":
            padding = (0,) * len(self.kernel_size)
        with self.calling(x):
            y = _Convolution.apply(x, self.weight, self.bias, self, padding)
        return y if batched else y.squeeze(0)

    def as_cast(self, weight: Tensor) -> Tensor:
        """[O, C, k] -> [k, O, C]."""
        return weight.movedim((0, 1), (-2, -1))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: CastConv, padding: tuple[int, ...]
    ) -> Tensor:
        result = result_dtype(x, weight)
        dtype = layer.gemm_dtype(result)
        with torch.autocast(x.device.type, enabled=False):
            xv, x_factor = _cast_pixels(layer, "input", x, dtype)
            wv, w_factor = _cast_weight(layer, weight, dtype)
            ctx.layer, ctx.dtype, ctx.padding = layer, dtype, padding
            ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
            kept_x = (x, None) if layer.casts_each("input") else (xv, x_factor)
            kept_w = (weight, None) if layer.casts_each("weight") else (wv, w_factor)
            ctx.save_for_backward(*kept_x, *kept_w)
            facts = (layer.stride, padding, layer.dilation, False, (0,) * len(padding), layer.groups)
            y = scaled(torch.convolution(xv, wv, None, *facts), x_factor, w_factor)
            if bias is not None:
                y = y + bias.to(y.dtype).view(-1, *(1,) * len(padding))
            return y.to(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        layer, dtype = ctx.layer, ctx.dtype
        xv, x_factor, wv, w_factor = ctx.saved_tensors
        x_dtype, w_dtype, b_dtype = ctx.dtypes
        need_x, need_w, need_b, *_ = ctx.needs_input_grad
        grad_x = grad_w = grad_b = None
        facts = (None, layer.stride, ctx.padding, layer.dilation, False, (0,) * len(ctx.padding), layer.groups)

        def product(g: Tensor, x: Tensor, w: Tensor, *, of_input: bool) -> Tensor:
            mask = [of_input, not of_input, False]
            return torch.ops.aten.convolution_backward(g, x, w, *facts, mask)[0 if of_input else 1]

        with torch.autocast(grad.device.type, enabled=False):
            if need_b:
                grad_b = grad.sum(dim=[d for d in range(grad.dim()) if d != 1]).to(b_dtype)
            if need_x:
                gv, g_factor = _cast_pixels(layer, "grad_output", grad, dtype)
                wd, wd_factor = wv, w_factor
                if layer.casts_each("weight"):
                    wd, wd_factor = _cast_weight(layer, wv, dtype, axis=0, counted=False, after=grad)
                # Of the input only the shape matters here.
                shaped = xv.to(dtype) if xv.dtype is not dtype else xv
                grad_x = scaled(product(gv, shaped, wd, of_input=True), g_factor, wd_factor).to(x_dtype)
            if need_w:
                each = layer.casts_each("grad_output")
                if each or not need_x:
                    axis = 0 if each else -1
                    gv, g_factor = _cast_pixels(layer, "grad_output", grad, dtype, axis=axis, counted=not need_x)
                if layer.casts_each("input"):
                    xv, x_factor = _cast_pixels(layer, "input", xv, dtype, axis=0, counted=False, after=grad)
                # Of the weight only the shape matters here.
                shaped = wv.to(dtype) if wv.dtype is not dtype else wv
                grad_w = scaled(product(gv, xv, shaped, of_input=False), g_factor, x_factor).to(w_dtype)
        return grad_x, grad_w, grad_b, None, None


def _cast_pixels(
    layer: CastConv,
    operand: str,
    x: Tensor,
    dtype: torch.dtype,
    *,
    axis: int = -1,
    counted: bool = True,
    after: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    values, factor = layer.cast_operand(operand, x.movedim(1, -1), dtype, axis=axis, counted=counted, after=after)
    return values.movedim(-1, 1), factor


def _cast_weight(
    layer: CastConv,
    weight: Tensor,
    dtype: torch.dtype,
    *,
    axis: int = -1,
    counted: bool = True,
    after: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    values, factor = layer.cast_operand("weight", layer.as_cast(weight), dtype, axis=axis, counted=counted, after=after)
    return values.movedim((-2, -1), (0, 1)), factor
