"""Rounding to a ``TableFormat``: one search through sorted thresholds, then a look-up.

Whatever the mode, the numbers that become one value are an interval, so that a value's first number is all there is to
know. These thresholds are found in exact fractions once for a table and mode; the search compares in the dtype of the
input, for which a threshold between two of its numbers is the greater one. So nothing is rounded but the value.

The intervals, in order: -Inf; what is below the table; one for each value; what is above the table; +Inf.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from altgrad_core.numerics.modes import Rounding, Saturation
from altgrad_core.numerics.tableformat import TableFormat, is_negative_zero, is_number, read_constants

_LARGEST = math.ldexp(1.0 - 2.0**-53, 1024)
# The least magnitude that float32 rounds to infinity.
_FLOAT32_OVERFLOW = 2.0**128 - 2.0**103
# Veltkamp's: splits a float64 into two halves whose products are exact.
_SPLITTER = 2.0**27 + 1.0


def round_to_table(
    y: Tensor,
    format: TableFormat,
    rounding: Rounding = "nearest_even",
    saturation: Saturation = "finite",
    bits: Tensor | None = None,
    random_bits: int = 32,
) -> Tensor:
    """Return the values of the table that ``y`` (float32 or float64, any shape) rounds to, in its dtype and shape.

    ``y`` is not changed. NaN stays NaN, also where the table has none. ``bits`` are int64 numbers below 2^32, one an
    element, for ``stochastic``, which uses the top ``random_bits`` of each. Values that float32 does not hold are
    rounded to it, those beyond its range become the last within: give float64 for wider tables (``fits_float32``).
    """
    if torch.compiler.is_compiling():
        rounded: Tensor = _round_op(y, format.constants, rounding, saturation, bits, random_bits)
        return rounded
    return _round(y, format.constants, rounding, saturation, bits, random_bits)


def table_overflow(
    y: Tensor, format: TableFormat, rounding: Rounding, bits: Tensor | None = None, random_bits: int = 32
) -> Tensor:
    """Return which finite elements round to beyond the table's ends (bool, shape of ``y``), as ``beyond`` defines it.

    ``bits`` as for ``round_to_table``; they decide where a stochastic rounding between an end and ``beyond`` goes.
    Without them ``stochastic`` counts what overflows whatever is drawn.
    """
    if rounding == "stochastic" and bits is None:
        rounding = "toward_zero"
    if torch.compiler.is_compiling():
        over: Tensor = _overflow_op(y, format.constants, rounding, bits, random_bits)
        return over
    return _overflow(y, format.constants, rounding, bits, random_bits)


def _round(y: Tensor, constants: str, rounding: str, saturation: str, bits: Tensor | None, random_bits: int) -> Tensor:
    y = y.detach().contiguous()
    place = _places(y.view(-1), constants, rounding, bits, random_bits)
    q = _results(constants, rounding, saturation, y.dtype, y.device).index_select(0, place).view(y.shape)
    if _parse(constants).has_negative_zero:
        q = torch.where((q == 0) & torch.signbit(y), -0.0, q)
    return torch.where(torch.isnan(y), y, q)


def _overflow(y: Tensor, constants: str, rounding: str, bits: Tensor | None, random_bits: int) -> Tensor:
    y = y.detach().contiguous()
    place = _places(y.view(-1), constants, rounding, bits, random_bits).view(y.shape)
    above = len(_parse(constants).codes) + 2
    over: Tensor = ((place == 1) | (place == above)) & ~torch.isnan(y)
    return over


# To a tracing compiler the two are operators: a table is data, which tracing would bake into the graph again and again.
_ARGUMENTS = "Tensor? bits, int random_bits) -> Tensor"
_round_op = torch.library.custom_op(
    "altgrad::round_to_table",
    _round,
    mutates_args=(),
    schema=f"(Tensor y, str constants, str rounding, str saturation, {_ARGUMENTS}",
)
_overflow_op = torch.library.custom_op(
    "altgrad::table_overflow",
    _overflow,
    mutates_args=(),
    schema=f"(Tensor y, str constants, str rounding, {_ARGUMENTS}",
)


@_round_op.register_fake
def _(y: Tensor, *_: object) -> Tensor:
    return torch.empty_like(y, memory_format=torch.contiguous_format)


@_overflow_op.register_fake
def _(y: Tensor, *_: object) -> Tensor:
    return torch.empty_like(y, dtype=torch.bool, memory_format=torch.contiguous_format)


def _places(y: Tensor, constants: str, rounding: str, bits: Tensor | None, random_bits: int) -> Tensor:
    """Return the number of each element's interval, int32 [n] for ``y`` [n]; what it is for NaN means nothing."""
    if rounding != "stochastic":
        buckets = _buckets(constants, rounding, y.device) if y.dtype is torch.float32 else None
        if buckets is None or buckets.searches:
            thresholds = _thresholds(constants, rounding, y.dtype, y.device)
            return torch.searchsorted(thresholds, y, right=True, out_int32=True)
        key = y.view(torch.int32).bitwise_right_shift(16).bitwise_and_(0xFFFF)
        further: Tensor = y >= buckets.threshold.index_select(0, key)
        if buckets.jumps:
            further = further * buckets.jump.index_select(0, key)
        return buckets.first.index_select(0, key).add_(further)
    assert bits is not None
    wide = y.double()
    edges = _edges(constants, y.device)
    count = edges.numel() - 2
    above = torch.searchsorted(edges, wide, right=True, out_int32=True).clamp_(1, count + 1)
    # In magnitude the lower neighbour is the near one; a gap across zero is that of the sign.
    negative = (wide < 0).to(torch.int32)
    near, far = above - 1 + negative, above - negative
    away = _away(wide, edges.index_select(0, near), edges.index_select(0, far), bits.reshape(-1), random_bits)
    place = torch.where(away, far, near)
    if _parse(constants).beyond is None:
        place = torch.where(wide > edges[count], count + 1, place)
        place = torch.where(wide < edges[1], 0, place)
    place = torch.where(wide == math.inf, count + 2, place)
    return torch.where(wide == -math.inf, -1, place).add_(1)


def _away(y: Tensor, near: Tensor, far: Tensor, bits: Tensor, random_bits: int) -> Tensor:
    """Tell where stochastic rounding takes ``far``: with f = (y - near) / (far - near), RNE(f * 2^N) + r >= 2^N.

    Without the division, for t = 2^N - r: where f * 2^N > t - 1/2, or equal and t even. The products are computed with
    their errors, so that nothing is rounded that could decide.
    """
    least = 2**random_bits - (bits >> (32 - random_bits))
    odd = (2 * least - 1).double()
    # Ratios are what counts: a power of two keeps the products, and their errors, in float64's range.
    size = torch.maximum(near.abs(), far.abs())
    factor = torch.where(size > 2.0**800, 2.0**-300, torch.ones_like(size))
    factor = torch.where(size < 2.0**-800, 2.0**200, factor)
    y, near, far = y * factor, near * factor, far * factor
    step, step_error = _difference(y, near)
    width, width_error = _difference(far, near)
    sign = torch.where(width < 0, -1.0, 1.0)
    product, product_error = _product(odd, width)
    power = 2.0 ** (random_bits + 1)
    excess = (step * power - product) + ((step_error * power - product_error) - odd * width_error)
    away: Tensor = (excess * sign > 0) | ((excess == 0) & (least % 2 == 0))
    return away


def _difference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return float64(a - b) and what it lacks (Knuth)."""
    difference = a - b
    back = difference - a
    return difference, (a - (difference - back)) - (b + back)


def _product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return float64(a * b) and what it lacks (Dekker)."""
    product = a * b
    a_high = _SPLITTER * a - (_SPLITTER * a - a)
    b_high = _SPLITTER * b - (_SPLITTER * b - b)
    a_low, b_low = a - a_high, b - b_high
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


class _Table(NamedTuple):
    """What ``TableFormat.constants`` says: text, which any operator takes and a cache finds quickly."""

    codes: dict[float, int]
    """Finite value -> code, ascending, zero once."""
    beyond: tuple[float, float] | None
    """As the format's."""
    specials: frozenset[float]
    """Which of -Inf and Inf the table has."""
    has_nan: bool
    """Whether it has NaN."""
    has_negative_zero: bool
    """Whether it has -0."""


@functools.lru_cache(maxsize=64)
def _parse(constants: str) -> _Table:
    table, ends = read_constants(constants)
    codes = {value: code for code, value in enumerate(table) if is_number(value)}
    return _Table(
        codes={value: codes[value] for value in sorted(codes)},
        beyond=(ends[0], ends[1]) if ends else None,
        specials=frozenset(value for value in table if math.isinf(value)),
        has_nan=any(math.isnan(value) for value in table),
        has_negative_zero=any(is_negative_zero(value) for value in table),
    )


@functools.lru_cache(maxsize=256)
def _thresholds(constants: str, rounding: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the first number of each interval but that of -Inf, in ``dtype``."""
    table = _parse(constants)
    numbers, even = list(table.codes), [code % 2 == 0 for code in table.codes.values()]
    gaps = zip(pairwise(numbers), pairwise(even), strict=True)
    inner = [_first(*ends, *parities, rounding) for ends, parities in gaps]
    if table.beyond is None:
        lowest, highest = numbers[0], math.nextafter(numbers[-1], math.inf)
    else:
        lowest = _first(table.beyond[0], numbers[0], not even[0], even[0], rounding)
        highest = _first(numbers[-1], table.beyond[1], even[-1], not even[-1], rounding)
    exact = torch.tensor([-_LARGEST, lowest, *inner, highest, math.inf], dtype=torch.float64, device="cpu")
    held = exact.to(dtype)
    held = torch.where(held.double() < exact, torch.nextafter(held, torch.full_like(held, math.inf)), held)
    return held.to(device)


class Buckets(NamedTuple):
    """Where to look, for the 65,536 ways that a float32 can begin."""

    first: Tensor
    """Interval of the least number that begins so, int32."""
    threshold: Tensor
    """The number that begins so from which on it is another interval, float32; NaN for none."""
    jump: Tensor
    """How many intervals further that one is, int32: more than 1 where float32 has no number in between, -1 where there
    are several thresholds and it takes a search."""
    jumps: bool
    """Whether any is further than 1."""
    searches: bool
    """Whether any takes a search."""


@functools.lru_cache(maxsize=64)
def _buckets(constants: str, rounding: str, device: torch.device) -> Buckets:
    """Return the buckets of a table.

    Measured eight times as fast as a search, with ``index_select``, which is four times as fast as indexing.
    """
    thresholds = _thresholds(constants, rounding, torch.float32, torch.device("cpu"))
    key = torch.arange(2**16, device="cpu")
    ends = torch.stack([key << 16, (key << 16) | 0xFFFF]).to(torch.int32).view(torch.float32)
    # A negative number that ends in ones is the least; of those that begin as an infinity only that is a number.
    low, high = torch.where(key < 2**15, ends, ends.flip(0))
    low, high = torch.where(torch.isnan(low), high, low), torch.where(torch.isnan(high), low, high)
    first = torch.searchsorted(thresholds, low.contiguous(), right=True)
    last = torch.searchsorted(thresholds, high.contiguous(), right=True)
    jump = torch.where(torch.isnan(low), 0, last - first)
    held = torch.cat([thresholds, torch.tensor([math.nan], device="cpu")])
    threshold = held[torch.where(jump > 0, first, -1)]
    several = (jump > 1) & (held[torch.where(jump > 0, last - 1, -1)] != threshold)
    jump = torch.where(several, -1, jump)
    return Buckets(
        first.to(device, torch.int32),
        threshold.to(device),
        jump.to(device, torch.int32),
        bool((jump > 1).any()),
        bool(several.any()),
    )


class Lookup(NamedTuple):
    """A table for the native kernel: CPU tensors."""

    thresholds: Tensor
    """First number of each interval but the first, float32."""
    result: Tensor
    """What each interval becomes, float32."""


@functools.lru_cache(maxsize=64)
def lookup(constants: str, rounding: Rounding, saturation: Saturation) -> Lookup | None:
    """Return the thresholds and results of a table; None for ``stochastic``, which takes more than an interval."""
    if rounding == "stochastic":
        return None
    cpu = torch.device("cpu")
    return Lookup(
        _thresholds(constants, rounding, torch.float32, cpu),
        _results(constants, rounding, saturation, torch.float32, cpu),
    )


@functools.lru_cache(maxsize=256)
def _results(constants: str, rounding: str, saturation: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return what the numbers of each interval become, in ``dtype``."""
    table = _parse(constants)
    numbers = list(table.codes)
    sides = []
    for end, infinity in ((numbers[0], -math.inf), (numbers[-1], math.inf)):
        kept = infinity if infinity in table.specials else end
        lost = infinity if infinity in table.specials else (math.nan if table.has_nan else end)
        # IEEE 754-2019, 7.4: a mode that rounds back from beyond the end stops at the end.
        inward = end <= 0 if infinity < 0 else end >= 0
        back = rounding == ("up" if infinity < 0 else "down") or (rounding == "toward_zero" and inward)
        finite = end if saturation != "none" or back else lost
        infinite = {"finite": end, "propagate": kept, "none": lost}[saturation]
        sides.append((finite, infinite))
    (low, minus), (high, plus) = sides
    results = [minus, low, *numbers, high, plus]
    if dtype is torch.float32:
        # A finite value must not become Inf, which the table may not have: the last one that float32 holds stands in.
        held = [number for number in numbers if abs(number) < _FLOAT32_OVERFLOW] or numbers
        results = [min(max(value, held[0]), held[-1]) if math.isfinite(value) else value for value in results]
    return torch.tensor(results, dtype=torch.float64, device="cpu").to(dtype).to(device)


@functools.lru_cache(maxsize=256)
def _edges(constants: str, device: torch.device) -> Tensor:
    """Return the finite values between the two of ``beyond`` (infinities for None), float64."""
    table = _parse(constants)
    low, high = table.beyond or (-math.inf, math.inf)
    return torch.tensor([low, *table.codes, high], dtype=torch.float64, device=device)


def _first(low: float, high: float, low_even: bool, high_even: bool, rounding: str) -> float:
    """Return the first float64 that rounds to ``high`` and no more to ``low``, its neighbour below."""
    after_low = math.nextafter(low, math.inf)
    if rounding == "up":
        return after_low
    if rounding == "down":
        return high
    if rounding == "toward_zero":
        # A gap across zero is parted there: nothing changes its sign.
        return after_low if high <= 0 else (high if low >= 0 else 0.0)
    middle = (Fraction(low) + Fraction(high)) / 2
    nearest = float(middle)
    if middle != nearest:
        return nearest if middle < nearest else math.nextafter(nearest, math.inf)
    if rounding == "nearest_away":
        tie_is_high = abs(high) >= abs(low)
    else:
        tie_is_high = high_even if low_even != high_even else abs(high) <= abs(low)
    return nearest if tie_is_high else math.nextafter(nearest, math.inf)
