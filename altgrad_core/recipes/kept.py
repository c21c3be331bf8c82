"""``Kept``: a tensor as codes and scales, in the memory that its format takes."""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor

from altgrad_core.numerics.blockwise import Block, expand
from altgrad_core.numerics.codes import decode, encode, pack, unpack
from altgrad_core.numerics.formats import Format


@attrs.frozen(kw_only=True)
class Kept:
    """What of a tensor lies in memory between the forward and the backward pass."""

    data: Tensor
    """Codes, packed without gaps below 8 bits (uint8, int16); or values, where a torch dtype is as narrow."""
    scale: Tensor
    """Decode scale, float32: 0-d, or [nr, nc] for blocks."""
    block: Block | None
    """Rows and columns that share a scale."""
    nan: Tensor | None
    """Whether there was a NaN (0-d bool), for a format that has no code for it; None for one that has."""
    format: Format
    """The element format."""
    shape: torch.Size
    """Shape of the tensor."""
    dtype: torch.dtype
    """Its dtype."""

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return sum(t.numel() * t.element_size() for t in (self.data, self.scale))

    @classmethod
    def of(cls, q: Tensor, scale: Tensor, block: Block | None, format: Format, dtype: torch.dtype) -> Kept:
        """Keep values ``q`` of ``format``, which stand for a tensor ``scale * q`` of ``dtype``."""
        nan = None
        holder = _holder(format)
        if holder is not None:
            data = q.to(holder)
        else:
            nan = None if format.has_nan else torch.isnan(q).any()
            codes = encode(q, format, saturation="propagate", nan_code=format.nan_code if format.has_nan else 0)
            if format.bits < 8:
                data = pack(codes, format.bits)
            else:
                data = codes.to(torch.uint8 if format.bits == 8 else torch.int16)
        return cls(data=data, scale=scale, block=block, nan=nan, format=format, shape=q.shape, dtype=dtype)

    def restore(self) -> Tensor:
        """Return ``scale * q``; NaN throughout where the format has no NaN and there was one."""
        values = self._values() * (self.scale if self.block is None else expand(self.scale, self.shape, self.block))
        if self.nan is not None:
            values = torch.where(self.nan, math.nan, values)
        return values.to(self.dtype)

    def _values(self) -> Tensor:
        if _holder(self.format) is not None:
            return self.data.to(torch.promote_types(self.dtype, torch.float32))
        codes = unpack(self.data, self.format.bits, self.shape.numel()) if self.format.bits < 8 else self.data
        return decode(codes, self.format).view(self.shape)


def _holder(format: Format) -> torch.dtype | None:
    """Return the torch dtype that holds the format's values one by one in a whole number of bytes; None for codes."""
    if format.bits > 16:
        return torch.float32 if format.fits_float32 else torch.float64
    found = getattr(torch, format.torch_dtype or "", None) if format.bits >= 8 else None
    return found if isinstance(found, torch.dtype) and found.is_floating_point else None
