"""Scaling policies: how the decode scales of a cast are chosen. The policies themselves are plugins; this is their base.

A scale is a float32 number with x ~ scale * q: one for the tensor (a 0-d tensor), or one for each block of the matrix
[rows, columns] that a tensor is looked at as (its last dimension, and the product of the others; [nr, nc]).

**One rule for the edges.** A tensor, row or block from whose amax no scale can be made (0, Inf or NaN) has scale 1.

**One range.** Scales lie between 2^-126 and 2^126, so that they and their inverses are normal float32 numbers (those of
``mx`` between 2^-127 and 2^127, which is what e8m0 can say). Whoever feeds a tensor so extreme that this bound acts
(amax / scale_target outside it) gets values that saturate or vanish, and the cast's statistics say so.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from altgrad_core.numerics.blockwise import Block
from altgrad_core.numerics.formats import Format


def scale_range() -> tuple[float, float]:
    """Return the smallest and the largest scale: by a function, since ``torch.compile(dynamic=True)`` makes symbols of
    the numbers that it finds in modules and objects, which it cannot handle in a backward pass."""
    return 2.0**-126, 2.0**126


MIN_SCALE, MAX_SCALE = scale_range()
_MANTISSA = 2**52 - 1


class Scale(NamedTuple):
    """A decode scale, and how it is shared out between the values that enter a GEMM and the GEMM's product."""

    decode: Tensor
    """x ~ decode * q, float32; 0-d, or [nr, nc] for blocks."""
    inside: Tensor
    """What the values entering the GEMM are multiplied by, float32; 0-d or [nr, nc]."""
    factor: Tensor | None
    """What is left for the product, 0-d float32 from 1 to below 2: decode = inside * factor; None for 1."""


class ScalingPolicy(nn.Module, abc.ABC):
    """Chooses the scale, or the scales, for each tensor that it is shown.

    State lives in named, persistent buffers, and changes only in training mode (``self.training``). It moves with the
    model to another device, and keeps its dtype in ``model.half()``: an amax is float32 whatever the weights are.
    """

    power_of_two: bool = True
    """Whether every scale is a power of two, so that multiplying by it does not round."""
    directional: bool = False
    """Whether blocks lie along the dimension that a GEMM sums over, so that the two GEMMs that read an operand need a
    cast each. ``axis`` is -1 where that dimension is the last, 0 where it is the product of the others."""

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        before = dict(self._buffers)
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype is not buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    @property
    def keeps_bfloat16(self) -> bool:
        """Whether ``Scale.inside`` times a value of a format that fits BF16 is a bfloat16 value, too."""
        return self.power_of_two or type(self).block is ScalingPolicy.block

    def block(self, x: Tensor, axis: int = -1) -> Block | None:
        """Return the rows and columns of ``x``, as a matrix, that share a scale; None for one scale for the tensor."""
        return None

    @abc.abstractmethod
    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        """Return the decode scale of ``x`` (0-d), or of its blocks ([nr, nc], the last ones ragged).

        float32, on the device of ``x``, which is never waited for. ``axis`` matters to a directional policy only; one
        that is not may leave the parameter out.
        """

    def shared_out(self, x: Tensor, axis: int = -1) -> Scale:
        """Return the scale of ``x`` and its two parts; override it where blocks leave a factor to the product.

        Powers of two go into the values, where they cost nothing. Of another scale for the tensor the mantissa is left
        to the product; scales of blocks have nowhere to go but into the values.
        """
        scale = self(x, axis) if self.directional else self(x)
        if self.power_of_two or scale.dim():
            return Scale(scale, scale, None)
        return Scale(scale, *split(scale))


def split(scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the power of two below a positive scale, and what is left of it, from 1 to below 2 (float32 each)."""
    mantissa, exponent = torch.frexp(scale)  # mantissa from 0.5 to below 1
    return torch.ldexp(torch.ones_like(scale), exponent - 1), mantissa * 2


def usable(amax: Tensor) -> Tensor:
    """Tell, as a bool tensor of the same shape, from which amax a scale can be made: the positive and finite ones."""
    return (amax > 0) & torch.isfinite(amax)


def scale_for(amax: Tensor, format: Format, *, power_of_two: bool, margin: int) -> Tensor:
    """Return the scales that put each ``amax`` (float32, any shape) at most at the format's ``scale_target``, times 2^margin.

    ``scale_target`` is the largest finite value, but for tapered formats (posits, takums), which have no precision there.
    With ``power_of_two`` it is the smallest power of two that does, else amax / scale_target itself, divided in float64
    and rounded to float32. 1 where ``amax`` is 0, Inf or NaN. Kept between 2^-126 and 2^126.
    """
    # Each operation on a 0-d tensor costs a microsecond or two, which small layers feel: as few as possible.
    amax = torch.nan_to_num(amax, nan=0.0, posinf=0.0)
    ratio = amax.double() / target_of(format)
    if power_of_two:
        ratio = power_of_two_from(ratio)
    if margin:
        ratio = ratio * 2.0**margin
    scale = ratio.clamp(*scale_range()).to(torch.float32)
    return torch.where(amax > 0, scale, 1.0)


def target_of(format: Format) -> float:
    """Return ``format.scale_target``; to a tracing compiler a constant, where it would make a symbol of the number."""
    return float(format.target) if torch.compiler.is_compiling() else format.scale_target


def power_of_two_from(x: Tensor, carry: int = _MANTISSA) -> Tensor:
    """Return the power of two at or above each x (float64, not negative); with ``carry`` 0 the one at or below.

    By the exponent bits, since log2 is off by one just under powers of two. ``carry`` is added to the bits of x before
    those of its mantissa are dropped.
    """
    return ((x.view(torch.int64) + carry) & ~_MANTISSA).view(torch.float64)
