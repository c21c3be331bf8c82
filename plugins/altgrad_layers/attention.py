"""Attention with cast products: scores = query key^T, context = probabilities value.

Whatever a module called attention computes, its ``forward`` runs as it is; the products of two activations in it are
watched for and cast:

* ``F.scaled_dot_product_attention``, as nanoGPT, transformers (``sdpa``) and timm call it. The emulation writes it out:
  scores and softmax in FP32, as fused kernels keep them, so that the probabilities take the memory of T x T numbers;
* ``torch.matmul``, ``@``, ``bmm`` and ``baddbmm``, functions or methods, of two tensors neither of which is a parameter, as
  transformers (``eager``) and ``nn.MultiheadAttention`` multiply; the first, third, ... of a call are taken for scores.

Each product a @ b, [..., M, K] @ [..., K, N], has two more in the backward pass, which sum over other dimensions::

    fprop       a [M, K]     @ b [K, N]     over K
    of a        g [M, N]     @ b^T [N, K]   over N
    of b        a^T [K, M]   @ g [M, N]     over M

Query, key, probabilities and value are cast as the recipe's ``input``, the gradients of scores and context as its
``grad_output``; once each or, where scales follow the dimension that is summed over, once for each product. One scale a
tensor is one for all heads. A kernel that is none of the above (flash-attn, flex attention) is not seen, which is warned of.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from altgrad_core.recipes.gemm import result_dtype, scaled
from altgrad_core.recipes.linear import CastLayer

Names = tuple[str, str, str]
SCORES: Names = ("query", "key", "grad_scores")
CONTEXT: Names = ("probabilities", "value", "grad_context")
_PRODUCTS = (torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.bmm)

# PyTorch's own, but for the question whether somebody overrides it: the mode below asked already.
_multi_head = types.FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda tensors: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)


class CastAttention(CastLayer):
    """A module that computes attention, with both of its products cast."""

    operands = {  # noqa: RUF012
        "query": "input",
        "key": "input",
        "grad_scores": "grad_output",
        "probabilities": "input",
        "value": "input",
        "grad_context": "grad_output",
    }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module takes and returns."""
        tensors = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point())
        x = next(tensors, None)
        if x is None or not self.cast_control.casting:
            return super().forward(*args, **kwargs)
        return self._watched(x, *args, **kwargs)

    @torch.compiler.disable(reason="the products of a cast attention are watched for, which PyTorch does not compile")
    def _watched(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        watch = _Watch(self)
        with self.calling(x), watch:
            result = super().forward(*args, **kwargs)
        if watch.products == 0:
            warnings.warn(
                f"The attention '{self.cast_name}' ({type(self).original.__name__}) multiplies in a way that altgrad does not "
                "see, so nothing of it is cast. Let it use F.scaled_dot_product_attention (attn_implementation='sdpa').",
                stacklevel=2,
            )
        return result


class _Watch(TorchFunctionMode):
    """Sees every function of torch that a module's forward pass calls, and casts the products of activations."""

    def __init__(self, layer: CastAttention) -> None:
        super().__init__()
        self.layer, self.products = layer, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.products += 2
            return _attend(self.layer, *args, **kwargs)
        if func is F.multi_head_attention_forward:
            with self:
                return _multi_head(*args, **kwargs)
        if func in (torch.baddbmm, torch.Tensor.baddbmm):
            return self._added(*args, **kwargs)
        if func in _PRODUCTS and not kwargs and all(_activation(x) for x in args):
            return self._product(*args)
        return func(*args, **kwargs)

    def _added(self, input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        product = alpha * self._product(batch1, batch2)
        return beta * input + product if beta else product  # of beta = 0 the input may be memory never written

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        names = CONTEXT if self.products % 2 else SCORES
        self.products += 1
        return _multiply(self.layer, names, a, b, result_dtype(a, b))


def _activation(x: Any) -> bool:
    """Tell whether this is a matrix, or a stack of them, and no parameter or view of one."""
    return (
        isinstance(x, Tensor)
        and x.dim() >= 2
        and not isinstance(x, nn.Parameter)
        and not isinstance(x._base, nn.Parameter)
    )


def _attend(
    layer: CastAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``F.scaled_dot_product_attention`` written out, [..., L, E], [..., S, E], [..., S, V] -> [..., L, V]."""
    result = result_dtype(query, key, value)
    wide = torch.promote_types(result, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        query, key, value = (x.to(result) for x in (query, key, value))
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], dim=-3) for x in (key, value))
        scores = _multiply(layer, SCORES, query, key.transpose(-2, -1), wide)
        scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:  # and the mask, if there is one
            causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~causal, -torch.inf)
        if attn_mask is not None and attn_mask.dtype is torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        probabilities = torch.ops.aten._safe_softmax(scores, -1)  # a row that is masked throughout gives zeros
        if dropout_p > 0.0:
            probabilities = F.dropout(probabilities, dropout_p)
        return _multiply(layer, CONTEXT, probabilities, value, wide).to(result)


def _multiply(layer: CastAttention, names: Names, a: Tensor, b: Tensor, result: torch.dtype) -> Tensor:
    return _Product.apply(a, b, layer, names, result)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, layer: CastAttention, names: Names, result: torch.dtype) -> Tensor:
        dtype = layer.gemm_dtype(result)
        with torch.autocast(a.device.type, enabled=False):
            av, a_factor = layer.cast_operand(names[0], a, dtype)
            bv, b_factor = _cast_columns(layer, names[1], b, dtype)
            ctx.layer, ctx.names, ctx.dtype, ctx.dtypes = layer, names, dtype, (a.dtype, b.dtype)
            kept_a = (a, None) if layer.casts_each(names[0]) else (av, a_factor)
            kept_b = (b, None) if layer.casts_each(names[1]) else (bv, b_factor)
            ctx.save_for_backward(*kept_a, *kept_b)
            return scaled(av @ bv, a_factor, b_factor).to(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (g,) = grads
        layer, dtype, (first, second, third) = ctx.layer, ctx.dtype, ctx.names
        av, a_factor, bv, b_factor = ctx.saved_tensors
        a_shape, b_shape = av.shape, bv.shape
        need_a, need_b, *_ = ctx.needs_input_grad
        grad_a = grad_b = None
        with torch.autocast(g.device.type, enabled=False):
            if need_a:
                gv, g_factor = layer.cast_operand(third, g, dtype)
                if layer.casts_each(second):
                    bv, b_factor = layer.cast_operand(second, bv, dtype, counted=False, after=g)
                grad_a = scaled(gv @ bv.transpose(-2, -1), g_factor, b_factor).sum_to_size(a_shape).to(ctx.dtypes[0])
            if need_b:
                if layer.casts_each(third) or not need_a:
                    gv, g_factor = _cast_columns(layer, third, g, dtype, counted=not need_a)
                if layer.casts_each(first):
                    av, a_factor = _cast_columns(layer, first, av, dtype, counted=False, after=g)
                grad_b = scaled(av.transpose(-2, -1) @ gv, a_factor, g_factor).sum_to_size(b_shape).to(ctx.dtypes[1])
        return grad_a, grad_b, None, None, None


def _cast_columns(
    layer: CastAttention,
    operand: str,
    x: Tensor,
    dtype: torch.dtype,
    *,
    counted: bool = True,
    after: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Cast for a sum over the columns' dimension, the last but one, where the scaling follows it."""
    if not layer.casts_each(operand):
        return layer.cast_operand(operand, x, dtype, counted=counted, after=after)
    values, factor = layer.cast_operand(operand, x.transpose(-2, -1), dtype, counted=counted, after=after)
    return values.transpose(-2, -1), factor
