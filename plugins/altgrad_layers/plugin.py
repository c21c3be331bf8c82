"""Registers the kinds of layers ``conv``, ``attention``, ``embedding`` and ``norm``, which a recipe's ``layers`` name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from altgrad_core.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    from torch import nn

    from altgrad_core.recipes.linear import CastLayer


def choose_conv(module: nn.Module) -> type[CastLayer] | str | None:
    """Convolutions in 1, 2 and 3 dimensions: both operands and the gradient of the output."""
    from torch.nn.modules import conv

    from altgrad_layers.conv import CastConv

    if type(module) in (conv.Conv1d, conv.Conv2d, conv.Conv3d):
        return CastConv
    if isinstance(module, conv._ConvTransposeNd):
        return "transposed convolutions are not cast"
    if isinstance(module, conv._ConvNd):
        return f"{type(module).__name__} is a subclass of a convolution that may compute something else"
    return None


def choose_attention(module: nn.Module) -> type[CastLayer] | str | None:
    """The products of attention, query by key and probabilities by value, in the innermost classes called attention."""
    from altgrad_layers.attention import CastAttention

    def named(one: nn.Module) -> bool:
        return "attention" in type(one).__name__.lower()

    if not named(module) or any(named(part) for part in module.modules() if part is not module):
        return None
    return CastAttention


def choose_embedding(module: nn.Module) -> type[CastLayer] | str | None:
    """The values that an embedding looks up, cast as a weight."""
    from torch import nn

    from altgrad_layers.values import CastEmbedding

    if type(module) is nn.Embedding:
        return CastEmbedding
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return f"{type(module).__name__} is not exactly an Embedding, and may look up something else"
    return None


def choose_norm(module: nn.Module) -> type[CastLayer] | str | None:
    """The output of a norm, cast as an input: LayerNorm, RMSNorm of any library, GroupNorm, BatchNorm, InstanceNorm."""
    from torch import nn
    from torch.nn.modules.batchnorm import _NormBase

    from altgrad_layers.values import CastNorm

    known = isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm | _NormBase)
    return CastNorm if known or type(module).__name__.endswith("RMSNorm") else None


@hookimpl
def altgrad_register_layers(register: Register) -> None:
    """Register the four kinds."""
    register("conv", choose_conv)
    register("attention", choose_attention)
    register("embedding", choose_embedding)
    register("norm", choose_norm)
