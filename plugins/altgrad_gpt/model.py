"""A GPT-2 style transformer: pre-norm, learned positions, GELU, tied head, scaled-dot-product attention.

Weights are drawn as in GPT-2: normal with standard deviation 0.02, the projections back to the residual stream divided
by sqrt(2 * n_layer), biases zero. Attention probabilities are not dropped out, only the embeddings and the two residual
branches of a block are, with masks that do not depend on the precision: an FP32 shadow pass drops the same elements.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from altgrad_gpt.plugin import GPTOptions


class Dropout(nn.Module):
    """Dropout whose mask is drawn in float32 whatever the precision of its input."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; identity in evaluation."""
        if not self.training or self.p == 0.0:
            return x
        keep = torch.rand(x.shape, device=x.device, dtype=torch.float32) >= self.p
        return x * keep / (1.0 - self.p)

    def extra_repr(self) -> str:
        """Show the probability in ``print(model)``."""
        return f"p={self.p}"


class Attention(nn.Module):
    """Causal multi-head self-attention, [B, T, C] -> [B, T, C]."""

    def __init__(self, options: GPTOptions) -> None:
        super().__init__()
        self.n_head = options.n_head
        self.qkv = nn.Linear(options.n_embd, 3 * options.n_embd, bias=options.bias)
        self.proj = nn.Linear(options.n_embd, options.n_embd, bias=options.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Attend to the past and project back."""
        b, t, c = x.shape
        q, k, v = (part.view(b, t, self.n_head, c // self.n_head).transpose(1, 2) for part in self.qkv(x).split(c, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(b, t, c))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Two linear layers with a GELU between them, [B, T, C] -> [B, T, C]."""

    def __init__(self, options: GPTOptions) -> None:
        super().__init__()
        self.up = nn.Linear(options.n_embd, 4 * options.n_embd, bias=options.bias)
        self.down = nn.Linear(4 * options.n_embd, options.n_embd, bias=options.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Widen four times, bend, narrow."""
        return self.down(F.gelu(self.up(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One transformer block, [B, T, C] -> [B, T, C]."""

    def __init__(self, options: GPTOptions) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(options.n_embd, bias=options.bias)
        self.attn = Attention(options)
        self.mlp_norm = nn.LayerNorm(options.n_embd, bias=options.bias)
        self.mlp = MLP(options)
        self.dropout = Dropout(options.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Add the attention branch, then the MLP branch."""
        x = x + self.dropout(self.attn(self.attn_norm(x)))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """tokens [B, T] int64 -> logits [B, T, vocab_size]; T is at most ``options.block_size``."""

    def __init__(self, options: GPTOptions, vocab_size: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, options.n_embd)
        self.position_embedding = nn.Embedding(options.block_size, options.n_embd)
        self.dropout = Dropout(options.dropout)
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.n_layer))
        self.final_norm = nn.LayerNorm(options.n_embd, bias=options.bias)
        self.lm_head = nn.Linear(options.n_embd, vocab_size, bias=False)
        self.lm_head.weight = self.token_embedding.weight
        self.apply(self._draw)
        for name, parameter in self.named_parameters():
            if name.endswith(("proj.weight", "down.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * options.n_layer))

    @staticmethod
    def _draw(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token at every position."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.final_norm(x))  # type: ignore[no-any-return]
