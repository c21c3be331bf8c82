"""Casts that end in an 8-bit torch dtype with the encoding of the format: what a native GEMM reads.

The codes are those of the values that ``cast`` returns, and so are the statistics. On an accelerator, where no statistics
are asked for, torch's own conversion rounds; elsewhere ``cast`` does, and the conversion of its values is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from altgrad_core.numerics.blockwise import Block, expand
from altgrad_core.numerics.cast import cast, inverse_scale
from altgrad_core.numerics.formats import FloatFormat, Format
from altgrad_core.numerics.modes import Rounding, Saturation
from altgrad_core.numerics.stochastic import MAX_RANDOM_BITS, Draw, Keys


def storage_dtype(format: Format) -> torch.dtype | None:
    """Return the 8-bit floating-point dtype of torch with the encoding of ``format``, None when there is none."""
    found = getattr(torch, format.torch_dtype or "", None)
    return found if isinstance(found, torch.dtype) and found.is_floating_point and found.itemsize == 1 else None


def cast_stored(
    x: Tensor,
    format: Format,
    *,
    scale: Tensor,
    block: Block | None = None,
    rounding: Rounding = "nearest_even",
    saturation: Saturation = "finite",
    draw: Draw | Keys | None = None,
    random_bits: int = MAX_RANDOM_BITS,
    statistics: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return the codes of ``format`` with x ~ scale * code, in ``storage_dtype(format)``, and statistics when asked for.

    Arguments and errors are those of ``cast``. ``x`` is float32, bfloat16 or float16.
    """
    holder = storage_dtype(format)
    assert holder is not None
    assert isinstance(format, FloatFormat)
    torch_rounds = rounding == "nearest_even" and saturation == "finite" and x.dtype is not torch.float64
    if torch_rounds and not statistics and x.device.type != "cpu":
        return converted(x, format, scale, block), None
    values, vector = cast(
        x, format, scale=scale, block=block, rounding=rounding, saturation=saturation, draw=draw,
        random_bits=random_bits, dtype=torch.bfloat16, statistics=statistics,
    )  # fmt: skip
    return values.to(holder), vector


def converted(x: Tensor, format: FloatFormat, scale: Tensor, block: Block | None) -> Tensor:
    """Round ``x`` / scale to nearest even, saturating, by torch's conversion; the codes are those of ``cast_stored``."""
    holder = storage_dtype(format)
    assert holder is not None
    inverse = inverse_scale(scale)
    assert isinstance(inverse, Tensor)
    y = x.detach().to(torch.float32) * (inverse if block is None else expand(inverse, x.shape, block))
    # torch before 2.12 makes NaN or Inf of what is too large.
    return y.clamp(-format.max_finite, format.max_finite).to(holder)
