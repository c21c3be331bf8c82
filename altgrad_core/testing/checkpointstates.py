"""States that a checkpoint backend is tested with, and the comparison that forgives no bit."""

from __future__ import annotations

import json
import math

import torch
from torch import Tensor

from altgrad_core.training.checkpoint import Content

DTYPES = (
    torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2, torch.float8_e4m3fn,
    torch.float8_e8m0fnu, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32,
    torch.uint64, torch.bool,
)  # fmt: skip


def ordinary(step: int) -> Content:
    """Return a small state as a training has it after ``step`` steps."""
    weight = torch.arange(600, dtype=torch.float32).reshape(20, 30) * step
    return Content(
        tensors={"model/blocks.0.weight": weight, "optimizer/state/0/exp_avg": weight * 0.5, "rng": torch.arange(9)},
        state={"model": {"w": {"$": "tensor", "name": "model/blocks.0.weight"}}, "step": step, "lr": 6e-4},
        notes={"kind": "step", "sinks": {"csv": {"bytes": 100 * step}}},
    )


def every_kind(seed: int = 1) -> Content:
    """Return a state of every dtype and shape, with NaNs of several payloads, and texts in every script."""
    bits = torch.randint(0, 256, (16, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    tensors = {}
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        tensors[f"model/{name}"] = (bits > 127) if dtype is torch.bool else bits.view(dtype).clone()
        tensors[f"model/{name}.empty"] = torch.empty((0, 3), dtype=dtype)
        tensors[f"model/{name}.scalar"] = torch.ones((), dtype=torch.uint8).to(dtype)
    nan_bits = [0x7FC00000, -0x400000, 0x7F800001, 0x7FFFFFFF, -1, -(2**31), 0x00000001]
    tensors["optimizer/nan_payloads"] = torch.tensor(nan_bits, dtype=torch.int32).view(torch.float32)
    tensors["optimizer/größe/损失"] = torch.tensor([0.0, -0.0, math.inf, -math.inf])
    tensors["optimizer/a b'"] = torch.ones(1, 1, 1, 1, 2)
    words = ["", "größe", "损失", "потери", "\U0001f525", "e\u0301", "\u00e9", 'a "b"\n\t\\', "\u0000", "nan", "0"]
    state = {
        "words": words, "numbers": [0, -1, 2**53 + 1, 2**63, 0.1, 1 / 3, 1e-320, 1e308, -0.0], "nothing": None, "yes": True,
        "deep": [[[[{"x": [{}, [], {"y": {}}]}]]]], **{word: index for index, word in enumerate(words)},
    }  # fmt: skip
    return Content(tensors=tensors, state=state, notes={"sinks": {"größe": words}, "passed_over": [], "损失": 0.1})


def same_content(found: Content, expected: Content) -> str:
    """Return what differs, empty when nothing does."""
    missing, strange = expected.tensors.keys() - found.tensors.keys(), found.tensors.keys() - expected.tensors.keys()
    if missing or strange:
        return f"tensors are missing: {sorted(missing)[:3]}, or not of it: {sorted(strange)[:3]}"
    for name, tensor in expected.tensors.items():
        other = found.tensors[name]
        if (other.dtype, other.shape) != (tensor.dtype, tensor.shape):
            return f"{name!r} is {other.dtype} {list(other.shape)}, not {tensor.dtype} {list(tensor.shape)}"
        if not torch.equal(_bits(other), _bits(tensor)):
            return f"{name!r} has other bits"
    for what, one, other in (("state", found.state, expected.state), ("notes", found.notes, expected.notes)):
        if json.dumps(one) != json.dumps(other):
            return f"the {what} is {json.dumps(one)[:200]}, not {json.dumps(other)[:200]}"
    return ""


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
