"""Models, GPUs and datasets by name, with their published figures, for ``altgrad simulate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import attrs

from altgrad_core.errors import AltgradError, unknown


@attrs.frozen(kw_only=True)
class SimulatedModel:
    """A decoder-only transformer."""

    family: str
    """``gpt`` (learned positions, biases, tied output) or ``llama`` (gated MLP, grouped keys, untied output)."""
    layers: int
    """Blocks."""
    hidden: int
    """Width of the residual stream."""
    heads: int
    """Query heads of a block."""
    vocabulary: int
    """Tokens."""
    context: int
    """Tokens of a sequence."""
    key_heads: int = 0
    """Key and value heads of a block; as many as query heads when 0."""
    feed_forward: int = 0
    """Width of the MLP; four times ``hidden`` when 0."""
    tokenizer: str = "gpt2"
    """Its tokenizer."""

    @property
    def groups(self) -> dict[str, int]:
        """Parameters by group."""
        d, wide = self.hidden, self.feed_forward or 4 * self.hidden
        if self.family == "gpt":
            block = 4 * d * d + 4 * d + 2 * d * wide + d + wide + 4 * d
            return {
                "token_embedding": self.vocabulary * d,
                "position_embedding": self.context * d,
                "blocks": self.layers * block,
                "final_norm": 2 * d,
            }
        keys = (self.key_heads or self.heads) * (d // self.heads)
        block = 2 * d * d + 2 * d * keys + 3 * d * wide + 2 * d
        return {
            "token_embedding": self.vocabulary * d,
            "blocks": self.layers * block,
            "final_norm": d,
            "lm_head": self.vocabulary * d,
        }

    @property
    def parameters(self) -> int:
        """All parameters."""
        return sum(self.groups.values())

    @property
    def linears(self) -> tuple[str, ...]:
        """Names of a block's linear layers."""
        if self.family == "gpt":
            return ("attn.qkv", "attn.proj", "mlp.up", "mlp.down")
        return ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down")


@attrs.frozen(kw_only=True)
class SimulatedGpu:
    """A card, by its data sheet."""

    name: str
    """As NVML gives it."""
    total_mib: float
    """Memory in MiB."""
    power_w: float
    """Power limit in watts."""
    sm_mhz: float
    """Highest clock in MHz."""
    slowdown_c: float
    """Temperature at which it slows down, in degrees Celsius."""
    bf16_tflops: float
    """Dense BF16 peak in TFLOP/s."""


@attrs.frozen(kw_only=True)
class SimulatedDataset:
    """A text collection; tokens are approximate."""

    documents: int
    """Documents."""
    train_tokens: int
    """Training tokens."""
    val_tokens: int
    """Validation tokens."""


MODELS: Mapping[str, SimulatedModel] = {
    "gpt2-xl": SimulatedModel(family="gpt", layers=48, hidden=1600, heads=25, vocabulary=50_257, context=1024),
    "gpt3-175b": SimulatedModel(family="gpt", layers=96, hidden=12_288, heads=96, vocabulary=50_257, context=2048),
    "llama-3.1-8b": SimulatedModel(
        family="llama", layers=32, hidden=4096, heads=32, key_heads=8, feed_forward=14_336, vocabulary=128_256,
        context=8192, tokenizer="llama-3",
    ),
    "llama-3.1-70b": SimulatedModel(
        family="llama", layers=80, hidden=8192, heads=64, key_heads=8, feed_forward=28_672, vocabulary=128_256,
        context=8192, tokenizer="llama-3",
    ),
    "mistral-7b": SimulatedModel(
        family="llama", layers=32, hidden=4096, heads=32, key_heads=8, feed_forward=14_336, vocabulary=32_000,
        context=8192, tokenizer="mistral",
    ),
}  # fmt: skip

GPUS: Mapping[str, SimulatedGpu] = {
    "a100": SimulatedGpu(
        name="NVIDIA A100-SXM4-80GB", total_mib=81_920, power_w=400, sm_mhz=1410, slowdown_c=89, bf16_tflops=312
    ),
    "h100": SimulatedGpu(
        name="NVIDIA H100 80GB HBM3", total_mib=81_559, power_w=700, sm_mhz=1980, slowdown_c=89, bf16_tflops=989
    ),
    "h200": SimulatedGpu(
        name="NVIDIA H200", total_mib=143_771, power_w=700, sm_mhz=1980, slowdown_c=89, bf16_tflops=989
    ),
    "b200": SimulatedGpu(
        name="NVIDIA B200", total_mib=183_359, power_w=1000, sm_mhz=1965, slowdown_c=90, bf16_tflops=2250
    ),
}

DATASETS: Mapping[str, SimulatedDataset] = {
    "c4-en": SimulatedDataset(documents=364_868_892, train_tokens=156_000_000_000, val_tokens=160_000_000),
    "eurlex57k": SimulatedDataset(documents=57_000, train_tokens=55_000_000, val_tokens=7_000_000),
    "fineweb-edu-10bt": SimulatedDataset(documents=9_672_101, train_tokens=9_900_000_000, val_tokens=100_000_000),
    "openwebtext": SimulatedDataset(documents=8_013_769, train_tokens=9_035_582_198, val_tokens=4_434_897),
}

_T = TypeVar("_T")


def chosen(kind: str, name: str, catalog: Mapping[str, _T]) -> _T:
    """Return an entry; an ``AltgradError`` lists the names when there is none of that name."""
    if name not in catalog:
        raise AltgradError(unknown(kind, name, list(catalog)))
    return catalog[name]


def options_of(model: SimulatedModel) -> dict[str, Any]:
    """Return what an ``init`` event says about a model's shape."""
    return {
        "n_layer": model.layers, "n_embd": model.hidden, "n_head": model.heads, "block_size": model.context,
    }  # fmt: skip
