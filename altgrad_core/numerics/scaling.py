"""Scaling policies: how the decode scale of a cast is chosen. The policies themselves are plugins; this is their base.

A scale is a 0-d float32 tensor with x ~ scale * q, always between 2^-126 and 2^126, so that it and its inverse are both
normal float32 numbers. Whoever feeds a tensor so extreme that this bound acts (amax / max_finite outside it) gets
values that saturate or vanish, and the cast's statistics say so.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn

from altgrad_core.numerics.formats import FloatFormat, Format

MIN_SCALE, MAX_SCALE = 2.0**-126, 2.0**126
_MANTISSA = 2**52 - 1


class ScalingPolicy(nn.Module, abc.ABC):
    """Chooses a scale for each tensor that it is shown.

    State lives in named, persistent buffers, and changes only in training mode (``self.training``).
    """

    granularity = "tensor"
    """One scale for the whole tensor."""
    power_of_two: bool = True
    """Whether every scale is a power of two, so that multiplying by it does not round."""

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return the decode scale for ``x``: 0-d, float32, on its device; never waits for an accelerator."""


def tensor_amax(x: Tensor) -> Tensor:
    """Return the largest magnitude of ``x`` as a 0-d float32 tensor: 0 for an empty tensor, NaN if there is one."""
    if x.numel() == 0:
        return torch.zeros((), dtype=torch.float32, device=x.device)
    low, high = torch.aminmax(x.detach())  # 18 times as fast as an infinity norm
    return torch.maximum(-low, high).to(torch.float32)


def usable(amax: Tensor) -> Tensor:
    """Tell, as a 0-d bool tensor, whether a scale can be made from ``amax``: it is positive and finite."""
    return (amax > 0) & torch.isfinite(amax)


def scale_for(amax: Tensor, format: Format, *, power_of_two: bool, margin: int) -> Tensor:
    """Return the scale that puts ``amax`` (0-d float32) at most at the largest finite value, times 2^margin.

    With ``power_of_two`` it is the smallest power of two that does, else amax / max_finite itself, divided in float64
    and rounded to float32. 1 when ``amax`` is 0, Inf or NaN. Kept between 2^-126 and 2^126.
    """
    if not isinstance(format, FloatFormat):
        raise TypeError(f"no scale is defined for a {type(format).__name__}")
    # Each operation on a 0-d tensor costs a microsecond or two, which small layers feel: as few as possible.
    amax = torch.nan_to_num(amax, nan=0.0, posinf=0.0)
    ratio = amax.double() / format.max_finite  # never subnormal or infinite
    if power_of_two:
        # Up to the next power of two unless on one, by the exponent bits: log2 is off by one just under powers of two.
        ratio = ((ratio.view(torch.int64) + _MANTISSA) & ~_MANTISSA).view(torch.float64)
    if margin:
        ratio = ratio * 2.0**margin
    scale = ratio.clamp(MIN_SCALE, MAX_SCALE).to(torch.float32)
    return torch.where(amax > 0, scale, 1.0)
