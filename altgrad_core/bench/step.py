"""``altgrad bench step``: a training step of a GPT, in BF16, in AltGrad's ways and the peers'.

Each variant takes turns with BF16, so that two models are in memory at a time, and its ratio is to the BF16 steps beside
its own. A step is forward, loss and backward of each micro-batch, and AdamW. The tokens are random: the time of a step
does not depend on them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from altgrad_core.bench.timing import Mark, between, interleaved, mark, median, one_time, ratio
from altgrad_core.bench.variants import Variant, problem, quiet
from altgrad_core.plugins import installed
from altgrad_core.recipes.quantizer import Quantizer


@attrs.frozen(kw_only=True)
class GPTSize:
    """A GPT to train."""

    layers: int
    """Transformer blocks."""
    heads: int
    """Attention heads."""
    width: int
    """Width of the residual stream."""
    block_size: int
    """Tokens of a sequence."""
    vocabulary: int = 50304
    """Entries of the vocabulary, GPT-2's filled up to a multiple of 128."""


SIZES = {
    "tiny": GPTSize(layers=2, heads=2, width=64, block_size=64, vocabulary=256),
    "30M": GPTSize(layers=6, heads=6, width=384, block_size=256),
    "124M": GPTSize(layers=12, heads=12, width=768, block_size=1024),
    "350M": GPTSize(layers=24, heads=16, width=1024, block_size=1024),
    "760M": GPTSize(layers=24, heads=16, width=1536, block_size=2048),
    "1.3B": GPTSize(layers=24, heads=16, width=2048, block_size=2048),
}


NO_TIME = "no time was left"


class Trainer:
    """A model, its optimizer and its batch."""

    def __init__(self, size: GPTSize, variant: Variant, device: torch.device, *, tokens: int, micro: int) -> None:
        torch.manual_seed(0)
        extension = installed().get("model", "gpt")
        assert extension.options is not None
        options = extension.options(
            n_layer=size.layers, n_head=size.heads, n_embd=size.width, block_size=size.block_size
        )
        with torch.device(device):
            model: nn.Module = extension.value(options, size.vocabulary)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.model = variant.apply(model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.sequences = max(1, micro // size.block_size)
        self.micro_batches = max(1, tokens // (self.sequences * size.block_size))
        self.tokens = self.micro_batches * self.sequences * size.block_size
        shape = (self.sequences, size.block_size)
        self.batch = torch.randint(0, size.vocabulary, shape, device=device)
        self.device = device

    def step(self) -> None:
        """Train one step."""
        for _ in range(self.micro_batches):
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                logits: Tensor = self.model(self.batch)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), self.batch.flatten())
            (loss / self.micro_batches).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def bench_step(
    name: str,
    chosen: dict[str, Variant],
    device: torch.device,
    *,
    tokens: int,
    micro: int,
    rounds: int,
    keep: Callable[[dict[str, Any]], None] = lambda result: None,
    enough: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Return variant -> milliseconds, tokens a second, ratio to BF16, memory and share of casts of a step.

    ``name`` is one of ``SIZES``; a step has ``tokens`` tokens, in micro-batches of ``micro``. ``keep`` is given the
    result after every variant, so that what was measured outlives what comes after it; no variant is begun when
    ``enough`` says so.
    """
    result: dict[str, Any] = {
        "what": f"step of GPT {name}, {tokens} tokens", "base": "bf16", "rows": {}, "absent": {},
    }  # fmt: skip
    make = functools.partial(Trainer, SIZES[name], device=device, tokens=tokens, micro=micro)
    base = make(chosen["bf16"])
    result |= {"parameters": base.parameters, "micro_batches": base.micro_batches, "tokens": base.tokens}
    for variant in chosen.values():
        if enough():
            result["absent"][variant.name] = NO_TIME
            continue
        try:
            result["rows"][variant.name] = _row(variant, base, make, rounds)
        except Exception as error:  # too large for the memory, a peer that is not there, ...
            result["absent"][variant.name] = problem(error)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        keep(result)
    return result


def _row(variant: Variant, base: Trainer, make: Callable[[Variant], Trainer], rounds: int) -> dict[str, Any]:
    """Measure one variant; its model is gone when this returns."""
    own, device = variant.name == "bf16", base.device
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    trainer = base if own else make(variant)
    with quiet():
        trainer.step()
    runs = {"bf16": base.step, variant.name: trainer.step}
    times = interleaved(runs, device, rounds=rounds)
    row = {
        "ms": round(median(times, variant.name), 3),
        "tokens_per_s": round(1e3 * base.tokens / median(times, variant.name)),
        "to_base": round(ratio(times, variant.name, "bf16"), 3),
    }
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        trainer.step()
        # Of BF16 the model was there before; of the others it was not.
        peak = torch.cuda.max_memory_allocated(device) - (0 if own else before)
        row["peak_gib"] = round(peak / 2**30, 2)
    if (share := cast_share(trainer)) is not None:
        row["cast_share"] = round(share, 3)
    return row


def cast_share(trainer: Trainer) -> float | None:
    """Return which part of a step its casts and scales take, in an eager step of its own; None where there are none.

    On CUDA by events around each quantizer, so that gaps between its kernels count as its own.
    """
    quantizers = [module for module in trainer.model.modules() if isinstance(module, Quantizer)]
    if not quantizers or trainer.model._compiled_call_impl is not None:
        return None
    began: list[Mark] = []
    ended: list[Mark] = []
    hooks = []
    for quantizer in quantizers:
        hooks.append(quantizer.register_forward_pre_hook(lambda *_: began.append(mark(trainer.device))))
        hooks.append(quantizer.register_forward_hook(lambda *_: ended.append(mark(trainer.device))))
    try:
        total = one_time(trainer.step, trainer.device)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(map(between, began, ended)) / total
