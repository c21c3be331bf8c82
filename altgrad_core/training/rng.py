"""The random number generators of a process: Python, NumPy, torch, and every CUDA device."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed every generator."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def state() -> dict[str, Any]:
    """Return the states of all generators, for a checkpoint: tensors and JSON types only."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": {
            "kind": kind,
            "keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(saved: dict[str, Any]) -> None:
    """Put all generators back to a saved ``state``."""
    random.setstate(saved["python"])
    n = saved["numpy"]
    keys = n["keys"].cpu().numpy().astype(np.uint32)
    np.random.set_state((n["kind"], keys, n["position"], n["has_gauss"], n["cached"]))
    torch.set_rng_state(saved["torch"].cpu())
    if torch.cuda.is_available() and saved["cuda"]:
        torch.cuda.set_rng_state_all([s.cpu() for s in saved["cuda"]])


def torch_state() -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the states of torch's generators only: what a forward pass draws from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def restore_torch(saved: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    """Put torch's generators back."""
    torch.set_rng_state(saved[0])
    if saved[1]:
        torch.cuda.set_rng_state_all(saved[1])
