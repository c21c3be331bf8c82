"""Where casts go wrong, as tensors: ties and their neighbours, thresholds, powers of two, subnormals, specials."""

from __future__ import annotations

import functools
import math
from itertools import pairwise

import torch
from hypothesis import strategies as st
from torch import Tensor

from altgrad_core.numerics.formats import SPECIALS, FloatFormat, TableFormat, default_bias

# Formats with at most this many magnitude codes are covered whole; of others the ends and an even spread.
_WHOLE = 2048


def holder(format: FloatFormat | TableFormat) -> torch.dtype:
    """Return the dtype that holds the format's values: float32, or float64 where float32 does not (``fits_float32``)."""
    return torch.float32 if format.fits_float32 else torch.float64


@functools.cache
def landmarks(format: FloatFormat | TableFormat) -> Tensor:
    """Return values [n] of the holder's dtype at which a cast to ``format`` could go wrong, of both signs.

    Every value of the format and every midpoint (an even spread of them beyond 11 magnitude bits), the overflow
    threshold, half the smallest value, and of all these the neighbours in the dtype on both sides; the powers of two
    with theirs; the subnormals and largest values of the dtype; zeros, infinities, NaN.
    """
    dtype = holder(format)
    points = _grid(format)
    # Exact, or next to the midpoint: neighbours differ in their last few bits.
    points += [a / 2 + b / 2 for a, b in pairwise(points)]
    info = torch.finfo(dtype)
    smallest = math.frexp(info.smallest_normal)[1] - 1 + math.frexp(info.eps)[1] - 1
    points += [math.ldexp(1.0, exponent) for exponent in range(smallest, math.frexp(info.max)[1])]
    points += [info.max, info.smallest_normal - math.ldexp(1.0, smallest), math.pi, 1.0 / 3.0]
    exact = torch.tensor(points, dtype=torch.float64).to(dtype)
    exact = exact[torch.isfinite(exact)].abs()
    infinity = torch.tensor(math.inf, dtype=dtype)
    around = torch.cat([exact, torch.nextafter(exact, infinity), torch.nextafter(exact, -infinity).abs()])
    magnitudes = torch.cat([torch.unique(around), torch.tensor([0.0, math.inf, math.nan], dtype=dtype)])
    return torch.cat([magnitudes, -magnitudes])


def _grid(format: FloatFormat | TableFormat) -> list[float]:
    """Return the format's values, or a spread of them, in order, and what comes beyond its ends."""
    if isinstance(format, TableFormat):
        low, high = format.beyond or (2 * format.min_finite, 2 * format.max_finite)
        return [low, *format.numbers, high]
    last = format.max_code
    if last < _WHOLE:
        codes = list(range(last + 1))
    else:
        edge = _WHOLE // 8
        inner = range(edge, last - edge, max(1, (last - 2 * edge) // (_WHOLE - 2 * edge)))
        # Of each that is kept the next one too, so that their midpoint is one of the format.
        codes = sorted({*range(edge), *inner, *(code + 1 for code in inner), *range(last - edge, last + 1)})
    return [*(format.magnitude(code) for code in codes), format.beyond]


def numbers(format: FloatFormat | TableFormat, count: int, generator: torch.Generator) -> Tensor:
    """Return random numbers [count] of the holder's dtype: landmarks, numbers of the format's magnitude, any bits."""
    dtype, marks = holder(format), landmarks(format)
    bits = torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator)
    kinds = torch.stack(
        [
            marks[torch.randint(len(marks), (count,), generator=generator)],
            (torch.rand(count, generator=generator, dtype=dtype) * 4 - 2) * min(format.max_finite, 1e30),
            bits.view(dtype) if dtype is torch.float64 else (bits >> 32).to(torch.int32).view(dtype),
        ]
    )
    return kinds.gather(0, torch.randint(3, (1, count), generator=generator))[0]


@st.composite
def tensors(
    draw: st.DrawFn,
    format: FloatFormat | TableFormat,
    *,
    finite: bool = False,
    dtype: torch.dtype | None = None,
    strided: bool = False,
) -> Tensor:
    """Draw a tensor of 0 to 3 dimensions, possibly empty, rich in landmarks of ``format``; of the holder's dtype.

    With ``strided`` it may lie in memory in any way that a view can: see ``views``.

    Its numbers are drawn at once, by a seed: one by one hypothesis takes longer for them than a law for a cast.
    """
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    tensor = numbers(format, math.prod(shape), generator).reshape(shape)
    tensor = tensor if dtype is None else tensor.to(dtype)
    tensor = torch.where(torch.isfinite(tensor), tensor, torch.zeros_like(tensor)) if finite else tensor
    return draw(views(tensor)) if strided else tensor


@st.composite
def views(draw: st.DrawFn, x: Tensor) -> Tensor:
    """Draw a view of ``x``: as it is, with dimensions turned round, every second element, one row repeated, a part."""
    kind = draw(st.sampled_from(("whole", "turned", "every second", "repeated", "part"))) if x.dim() else "whole"
    if kind == "turned":
        return x.permute(*draw(st.permutations(range(x.dim()))))
    if kind == "every second":
        return x[..., :: draw(st.integers(2, 3))]
    if kind == "repeated":
        return x.unsqueeze(0).expand(draw(st.integers(0, 3)), *x.shape)
    return x[..., draw(st.integers(0, 2)) :] if kind == "part" else x


@st.composite
def float_formats(draw: st.DrawFn) -> FloatFormat:
    """Draw a float format of 2 to 12 bits: any split, bias and specials that make one."""
    exponent = draw(st.integers(0, 5))
    mantissa = draw(st.integers(2 if exponent == 0 else 1, 6))
    specials = draw(st.sampled_from(("fn", "fnuz", "none") if exponent < 2 else SPECIALS))
    usual = default_bias(exponent, specials)
    bias = draw(st.just(usual) | st.integers(-8, 24)) if exponent else usual
    name = f"drawn_e{exponent}m{mantissa}{specials}_{bias}".replace("-", "m")
    signed = True if specials == "fnuz" else draw(st.booleans())
    return FloatFormat(
        name=name, exponent_bits=exponent, mantissa_bits=mantissa, bias=bias, specials=specials, signed=signed
    )


@st.composite
def table_formats(draw: st.DrawFn) -> TableFormat:
    """Draw a table of 1 to 6 bits: float32 numbers of very different sizes in any order, some codes Inf or NaN, or -0."""
    bits = draw(st.integers(1, 6))
    sizes = st.floats(min_value=-(2.0**40), max_value=2.0**40, width=32, allow_subnormal=False)
    table = draw(st.lists(sizes.map(lambda value: value + 0.0), min_size=2**bits, max_size=2**bits, unique=True))
    if max(table) <= 0:
        table[0] = 3.0 * 2.0**41
    places = draw(st.permutations(range(2**bits)))
    special = [math.nan, math.inf, -math.inf, math.nan][: draw(st.integers(0, 4)) if bits > 3 else 0]
    top = table.index(max(table))
    for place, value in zip((place for place in places if place != top), special, strict=False):
        table[place] = value
    return TableFormat(name=f"drawn_{bits}", table=table)


def descriptors() -> st.SearchStrategy[FloatFormat | TableFormat]:
    """Return a strategy for descriptors of formats: floats and tables."""
    return st.one_of(float_formats(), table_formats())
