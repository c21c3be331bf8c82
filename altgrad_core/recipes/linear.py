"""The linear layer: cast the three operands, multiply their values in high precision, or their codes on FP8 units.

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

``altgrad_core.recipes.backend`` decides between the two, ``altgrad_core.recipes.native`` has the GEMMs of codes. The
emulated GEMMs multiply values that lie where the operand itself lies (``Quantizer`` says how), so that no product leaves
the range that the layer has without casts:

* in BF16, where the surrounding precision is BF16 and the values of all operands are exactly representable in BF16
  (every format of 8 bits with at most 7 mantissa bits, under powers of two, one scale a tensor, or nvfp4), so that the
  tensor cores or AMX units do the work and only the casts are extra;
* else in FP32 (in FP64 for an FP64 layer).

Both accumulate in FP32. The bias and its gradient are not cast. A layer whose operands are all ``bf16`` without scaling
gives the bits of ``torch.nn.functional.linear`` under autocast.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from altgrad_core.errors import AltgradError
from altgrad_core.recipes.backend import Decision, decide
from altgrad_core.recipes.gemm import LinearGemms, Operand
from altgrad_core.recipes.quantizer import Quantizer
from altgrad_core.recipes.recipe import OPERANDS
from altgrad_core.recipes.site import Site

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
    decision: Decision
    """What multiplies the operands on the weight's device."""

    def equip(self, name: str, recipe: Recipe, control: CastControl, *, keeps_values: str = "") -> None:
        """Attach quantizers for the operands that ``recipe`` casts, and decide what multiplies them.

        ``keeps_values`` says why the layer needs values and not codes, if it does. Raises ``AltgradError`` where the
        recipe asks for native GEMMs and none is possible.
        """
        self.cast_name, self.cast_control = name, control
        for operand in OPERANDS:
            how = getattr(recipe, operand)
            quantizer = None if how is None else Quantizer(how).to(self.weight.device)
            setattr(self, f"{operand}_cast", quantizer)
            if quantizer is not None:
                quantizer.site = Site(control, f"{name}.{operand}", quantizer, forward=operand != "grad_output")
        self._decide = functools.partial(
            decide, wish=recipe.backend, fast=recipe.fast_accumulation, keeps_values=keeps_values
        )
        self.decide()
        self.train(self.training)

    def decide(self) -> None:
        """Choose the backend for the device that the weight is on now."""
        try:
            self.decision = self._decide(
                {operand: getattr(self, f"{operand}_cast") for operand in OPERANDS}, self.weight
            )
        except AltgradError as error:
            raise AltgradError(f"The layer '{self.cast_name}' {error}") from error

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.decide()  # another device, or another precision
        return self

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        if not self.cast_control.casting:
            return linear(input, self.weight, self.bias)
        return _Function.apply(input, self.weight, self.bias, self)  # type: ignore[no-any-return, no-untyped-call]

    def cast_operand(
        self,
        operand: str,
        x: Tensor,
        dtype: torch.dtype,
        *,
        axis: int = -1,
        counted: bool = True,
        after: Tensor | None = None,
    ) -> Operand:
        """Return the operand's values in ``dtype`` and the factor that the product lacks, None for 1.

        ``axis``: the dimension that the GEMM sums over, -1 the last, 0 the others. ``counted``: whether this is the
        operand's first cast, of which statistics are recorded. ``after``: the gradient, where the backward pass casts
        what the forward pass was given; a compiler would draw random bits that nothing holds back in the forward pass, too.
        """
        quantizer: Quantizer | None = getattr(self, f"{operand}_cast")
        if quantizer is None:
            return Operand(x.to(dtype), None)
        draw = quantizer.site.draw(x, axis, after) if quantizer.draws else None
        values, factor, statistics = quantizer(
            x, dtype=dtype, statistics=counted and self.cast_control.collecting, axis=axis, draw=draw
        )
        if statistics is not None:
            quantizer.site.record(statistics, axis)
        return Operand(values, factor)

    def casts_each(self, operand: str) -> bool:
        """Whether the operand is cast once for each of its two GEMMs, instead of once for both."""
        quantizer: Quantizer | None = getattr(self, f"{operand}_cast")
        return quantizer is not None and quantizer.directional

    def gemms(self, result: torch.dtype) -> LinearGemms:
        """Return the layer's GEMMs: native ones, or in BF16 where the result is BF16 and all values fit, else FP32 or FP64."""
        quantizers = (self.input_cast, self.weight_cast, self.grad_output_cast)
        exact = all(quantizer is None or quantizer.fits_bfloat16 for quantizer in quantizers)
        return self.decision.make(result, exact)

    def extra_repr(self) -> str:
        """Show the layer's name beside its shape in ``print(model)``."""
        return f"{super().extra_repr()}, name={self.cast_name}"


class _Function(torch.autograd.Function):
    """y = x W^T + b with cast operands; the module's text says what is cast when, and what is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: CastLinear) -> Tensor:
        kind = x.device.type
        autocast = torch.is_autocast_enabled(kind)
        result = torch.get_autocast_dtype(kind) if autocast else torch.promote_types(x.dtype, weight.dtype)
        gemms = layer.gemms(result)
        with torch.autocast(kind, enabled=False):
            xo = layer.cast_operand("input", x, gemms.holder("input"))
            wo = layer.cast_operand("weight", weight, gemms.holder("weight"))
            ctx.layer, ctx.gemms = layer, gemms
            ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
            kept_x = (x, None) if layer.casts_each("input") else xo
            kept_w = (weight, None) if layer.casts_each("weight") else wo
            ctx.save_for_backward(*kept_x, *kept_w)
            return gemms.fprop(xo, wo, bias, result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (grad,) = grads
        layer: CastLinear = ctx.layer
        gemms: LinearGemms = ctx.gemms
        x, x_factor, w, w_factor = ctx.saved_tensors
        xo, wo = Operand(x, x_factor), Operand(w, w_factor)
        x_dtype, w_dtype, b_dtype = ctx.dtypes
        need_x, need_w, need_b, _ = ctx.needs_input_grad
        grad_x = grad_w = grad_b = None
        with torch.autocast(grad.device.type, enabled=False):
            if need_b:
                grad_b = grad.reshape(-1, grad.shape[-1]).sum(dim=0).to(b_dtype)
            if need_x:
                go = layer.cast_operand("grad_output", grad, gemms.holder("grad_output"))
                if layer.casts_each("weight"):
                    wo = layer.cast_operand("weight", w, gemms.holder("weight"), axis=0, counted=False, after=grad)
                grad_x = gemms.dgrad(go, wo, x_dtype)
            if need_w:
                each = layer.casts_each("grad_output")
                if each or not need_x:
                    axis = 0 if each else -1
                    go = layer.cast_operand(
                        "grad_output", grad, gemms.holder("grad_output"), axis=axis, counted=not need_x
                    )
                if layer.casts_each("input"):
                    xo = layer.cast_operand("input", x, gemms.holder("input"), axis=0, counted=False, after=grad)
                grad_w = gemms.wgrad(go, xo, w_dtype)
        return grad_x, grad_w, grad_b, None
