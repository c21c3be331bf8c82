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
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from altgrad_core.errors import AltgradError
from altgrad_core.recipes.backend import Decision, decide
from altgrad_core.recipes.gemm import LinearGemms, Operand, result_dtype
from altgrad_core.recipes.quantizer import Quantizer
from altgrad_core.recipes.recipe import OPERANDS, OperandCast
from altgrad_core.recipes.site import Site

if TYPE_CHECKING:
    from altgrad_core.recipes.control import CastControl
    from altgrad_core.recipes.recipe import Recipe


class CastLayer(nn.Module):
    """What converted layers of every kind have. ``convert`` changes a layer's class in place to one with this as a base.

    A kind of layer says in ``operands`` what it casts, and has a ``forward`` that does it while ``cast_control.casting``.
    """

    operands: ClassVar[Mapping[str, str]] = {operand: operand for operand in OPERANDS}
    """What the layer casts -> which of the recipe's casts (``input``, ``weight``, ``grad_output``) says how."""
    original: ClassVar[type[nn.Module]]
    """The class that the layer had."""
    cast_name: str
    cast_control: CastControl
    remembers: bool
    """Whether casts depend on more than their operands: on a history, or on random bits."""
    fits_bfloat16: bool
    """Whether the values of all operands are exactly bfloat16 values."""

    @classmethod
    def casts_of(cls, recipe: Recipe) -> dict[str, OperandCast]:
        """Return operand -> cast, for those of this kind of layer that the recipe casts."""
        found = {operand: getattr(recipe, key) for operand, key in cls.operands.items()}
        return {operand: how for operand, how in found.items() if how is not None}

    def equip(self, name: str, recipe: Recipe, control: CastControl) -> None:
        """Attach quantizers for the operands that ``recipe`` casts."""
        self.cast_name, self.cast_control = name, control
        casts = self.casts_of(recipe)
        for operand, key in self.operands.items():
            quantizer = Quantizer(casts[operand]) if operand in casts else None
            setattr(self, f"{operand}_cast", quantizer)
            if quantizer is not None:
                quantizer.site = Site(control, f"{name}.{operand}", quantizer, forward=key != "grad_output")
                quantizer.train(self.training)
        quantizers = self.quantizers().values()
        self.remembers = any(quantizer.draws or quantizer.remembers for quantizer in quantizers)
        self.fits_bfloat16 = all(quantizer.fits_bfloat16 for quantizer in quantizers)

    def quantizers(self) -> dict[str, Quantizer]:
        """Return operand -> what casts it."""
        found = {operand: getattr(self, f"{operand}_cast") for operand in self.operands}
        return {operand: quantizer for operand, quantizer in found.items() if quantizer is not None}

    def as_cast(self, weight: Tensor) -> Tensor:
        """Return the layer's weight, or what has its shape, in the order of dimensions in which it is cast."""
        return weight

    def calling(self, x: Tensor) -> AbstractContextManager[None]:
        """Return the context for the casts of a forward pass on ``x``, which activation checkpointing may repeat."""
        return self.cast_control.calling(self.cast_name, x, remembers=self.remembers)

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
        operand's first cast, of which statistics are recorded, and which is shown to who watches. ``after``: the gradient,
        where the backward pass casts what the forward pass was given; a compiler would draw random bits that nothing holds
        back in the forward pass, too.
        """
        quantizer: Quantizer | None = getattr(self, f"{operand}_cast")
        if quantizer is None:
            return Operand(x.to(dtype), None)
        control = self.cast_control
        scale = None
        draw = quantizer.site.draw(x, axis, after) if quantizer.draws else None
        if control.call is not None and quantizer.remembers:
            scale = control.call.scale(quantizer.site.key, lambda: quantizer.scaling.shared_out(x, axis))
        counted = counted and not control.repeating
        values, factor, statistics = quantizer(
            x, dtype=dtype, statistics=counted and control.collecting, axis=axis, draw=draw, scale=scale, shown=counted
        )
        if statistics is not None:
            quantizer.site.record(statistics, axis)
        return Operand(values, factor)

    def casts_each(self, operand: str) -> bool:
        """Whether the operand is cast once for each of its two GEMMs, instead of once for both."""
        quantizer: Quantizer | None = getattr(self, f"{operand}_cast")
        return quantizer is not None and quantizer.directional

    def gemm_dtype(self, result: torch.dtype) -> torch.dtype:
        """Return the precision of the layer's GEMMs: BF16 where the result is BF16 and all values fit, else FP32 or FP64."""
        if result is torch.float64:
            return result
        return torch.bfloat16 if self.fits_bfloat16 and result is torch.bfloat16 else torch.float32

    def extra_repr(self) -> str:
        """Show the layer's name beside its shape in ``print(model)``."""
        return ", ".join(part for part in (super().extra_repr(), f"name={self.cast_name}") if part)


class CastGemmLayer(CastLayer):
    """A layer with the three GEMMs of a linear one, which FP8 units may do."""

    weight: Tensor
    decision: Decision
    """What multiplies the operands on the weight's device."""

    def equip(self, name: str, recipe: Recipe, control: CastControl, *, keeps_values: str = "") -> None:
        """Attach quantizers, and decide what multiplies what they cast.

        ``keeps_values`` says why the layer needs values and not codes, if it does. Raises ``AltgradError`` where the
        recipe asks for native GEMMs and none is possible.
        """
        super().equip(name, recipe, control)
        self._decide = functools.partial(
            decide, wish=recipe.backend, fast=recipe.fast_accumulation, keeps_values=keeps_values
        )
        self.decide()

    def decide(self) -> None:
        """Choose the backend for the device that the weight is on now."""
        try:
            casts = {operand: getattr(self, f"{operand}_cast") for operand in OPERANDS}
            self.decision = self._decide(casts, self.as_cast(self.weight))
        except AltgradError as error:
            raise AltgradError(f"The layer '{self.cast_name}' {error}") from error

    def gemms(self, result: torch.dtype) -> LinearGemms:
        """Return the layer's GEMMs: native ones, or in BF16 where the result is BF16 and all values fit, else FP32 or FP64."""
        return self.decision.make(result, self.gemm_dtype(result))

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.decide()  # another device, or another precision
        return self


class CastLinear(CastGemmLayer, nn.Linear):
    """An ``nn.Linear`` whose GEMM operands are cast."""

    original = nn.Linear
    input_cast: Quantizer | None
    weight_cast: Quantizer | None
    grad_output_cast: Quantizer | None

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        if not self.cast_control.casting:
            return linear(input, self.weight, self.bias)
        return cast_product(self, input, self.weight, self.bias)


def cast_product(layer: CastGemmLayer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x W^T + b, [..., O], with the operands ``input``, ``weight``, ``grad_output`` of ``layer`` cast."""
    with layer.calling(x):
        return _Function.apply(x, weight, bias, layer)  # type: ignore[no-any-return, no-untyped-call]


class _Function(torch.autograd.Function):
    """y = x W^T + b with cast operands; the module's text says what is cast when, and what is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: CastGemmLayer) -> Tensor:
        result = result_dtype(x, weight)
        gemms = layer.gemms(result)
        with torch.autocast(x.device.type, enabled=False):
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
        layer: CastGemmLayer = ctx.layer
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
