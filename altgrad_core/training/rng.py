"""The random number generators of a process: Python, NumPy, torch, and that of its CUDA device.

A process trains on one CUDA device, the current one; others that it sees are not its own, and may not be there when it
goes on elsewhere.
"""

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
        "cuda": _cuda_state(),
    }


def restore(saved: dict[str, Any]) -> None:
    """Put all generators back to a saved ``state``."""
    random.setstate(saved["python"])
    n = saved["numpy"]
    keys = n["keys"].cpu().numpy().astype(np.uint32)
    np.random.set_state((n["kind"], keys, n["position"], n["has_gauss"], n["cached"]))
    restore_torch((saved["torch"].cpu(), saved["cuda"]))


def torch_state() -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the states of torch's generators only: what a forward pass draws from."""
    return torch.get_rng_state(), _cuda_state()


def restore_torch(saved: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    """Put torch's generators back; one of a CUDA device only where this process uses one."""
    host, device = saved
    torch.set_rng_state(host)
    if device is not None and _uses_cuda():
        torch.cuda.set_rng_state(device.cpu())


def _cuda_state() -> torch.Tensor | None:
    return torch.cuda.get_rng_state() if _uses_cuda() else None


def _uses_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
