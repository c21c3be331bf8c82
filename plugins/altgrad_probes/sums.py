"""Sums over large tensors in FP64; FP32 sums of 10 M elements are off in the third digit, and their squares underflow."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_CHUNK = 1 << 17  # elements; a few float64 copies stay in the second-level cache


def _chunks(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """Yield matching pieces of tensors of one shape, flat, in float64."""
    for pieces in zip(*(tensor.reshape(-1).split(_CHUNK) for tensor in tensors), strict=True):
        yield [piece.double() for piece in pieces]


def moments(g: Tensor) -> Tensor:
    """Return [sum of g, sum of g^2] (float64 [2])."""
    total = torch.zeros(2, dtype=torch.float64, device=g.device)
    for (x,) in _chunks(g):
        total += torch.stack([x.sum(), x @ x])
    return total


def products(g: Tensor, s: Tensor) -> Tensor:
    """Return [g . g, s . s, g . s, (g - s) . (g - s)] (float64 [4])."""
    total = torch.zeros(4, dtype=torch.float64, device=g.device)
    for x, y in _chunks(g, s):
        error = x - y
        total += torch.stack([x @ x, y @ y, x @ y, error @ error])
    return total
