"""Where casts go wrong, as tensors: ties and their neighbours, thresholds, powers of two, subnormals, specials."""

from __future__ import annotations

import functools
import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from altgrad_core.numerics.formats import FloatFormat

# Formats with at most this many magnitude codes are covered whole; of others the ends and an even spread.
_WHOLE = 2048


@functools.cache
def landmarks(format: FloatFormat) -> Tensor:
    """Return float32 values [n] at which a cast to ``format`` could go wrong, of both signs.

    Every value of the format and every midpoint (an even spread of them beyond 11 magnitude bits), the overflow
    threshold, half the smallest value, and of all these the float32 neighbours on both sides; the powers of two with
    theirs; float32's subnormals and largest values; zeros, infinities, NaN.
    """
    last = format.max_code + 1
    if last <= _WHOLE:
        codes = list(range(last + 1))
    else:
        edge = _WHOLE // 8
        inner = range(edge, last - edge, max(1, (last - 2 * edge) // (_WHOLE - 2 * edge)))
        codes = [*range(edge), *inner, *range(last - edge, last + 1)]
    points = [format.magnitude(code) for code in codes]
    # Exact: neighbours differ in their last few of at most 24 bits.
    points += [(format.magnitude(code) + format.magnitude(code + 1)) / 2 for code in codes if code < last]
    points += [math.ldexp(1.0, exponent) for exponent in range(-149, 128)]
    points += [math.ldexp(1.0 - 2.0**-24, 128), math.ldexp(1.0, -126) - math.ldexp(1.0, -149), math.pi, 1.0 / 3.0]
    exact = torch.tensor(points, dtype=torch.float64).float()
    exact = exact[torch.isfinite(exact)]
    infinity = torch.tensor(math.inf)
    around = torch.cat([exact, torch.nextafter(exact, infinity), torch.nextafter(exact, -infinity).abs()])
    magnitudes = torch.cat([torch.unique(around), torch.tensor([0.0, math.inf, math.nan])])
    return torch.cat([magnitudes, -magnitudes])


@functools.cache
def elements(format: FloatFormat) -> st.SearchStrategy[float]:
    """Draw a float32 number: a landmark of ``format``, any float32, or one of the magnitude that the format covers."""
    covered = st.floats(-2 * format.max_finite, 2 * format.max_finite) if format.max_finite < 1e30 else st.nothing()
    return st.one_of(
        st.sampled_from(landmarks(format).tolist()),
        st.floats(width=32),
        covered.map(lambda value: torch.tensor(value, dtype=torch.float32).item()),
    )


@st.composite
def tensors(
    draw: st.DrawFn, format: FloatFormat, *, finite: bool = False, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Draw a tensor of 0 to 3 dimensions, possibly empty, rich in landmarks of ``format``."""
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count = math.prod(shape)
    values = draw(st.lists(elements(format), min_size=count, max_size=count))
    tensor = torch.tensor(values, dtype=torch.float32).reshape(shape).to(dtype)
    return torch.where(torch.isfinite(tensor), tensor, torch.zeros_like(tensor)) if finite else tensor
