"""Registers the model ``gpt``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from altgrad_core.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    from altgrad_gpt.model import GPT

_positive = attrs.validators.ge(1)


def _divisible(options: GPTOptions, attribute: attrs.Attribute[int], value: int) -> None:
    if value % options.n_head:
        raise ValueError(f"n_embd must be a multiple of n_head ({options.n_head}), got {value}")


@attrs.frozen(kw_only=True)
class GPTOptions:
    """``[model]`` with ``kind = "gpt"``."""

    n_layer: int = attrs.field(default=4, validator=_positive)
    """Transformer blocks."""
    n_head: int = attrs.field(default=4, validator=_positive)
    """Attention heads of a block."""
    n_embd: int = attrs.field(default=128, validator=[_positive, _divisible])
    """Width of the residual stream; a multiple of ``n_head``."""
    block_size: int = attrs.field(default=128, validator=_positive)
    """Longest sequence, in tokens; also the length of a training sample."""
    dropout: float = attrs.field(default=0.0, validator=[attrs.validators.ge(0), attrs.validators.lt(1)])
    """Probability of dropping an element of the embeddings and of each residual branch."""
    bias: bool = True
    """Whether linear layers and norms have a bias."""


def build(options: GPTOptions, vocab_size: int) -> GPT:
    """Build the model on the default device with freshly drawn weights."""
    from altgrad_gpt.model import GPT

    return GPT(options, vocab_size)


@hookimpl
def altgrad_register_models(register: Register) -> None:
    """Register ``gpt``."""
    register("gpt", build, GPTOptions)
