"""What the native cast is told of a format: its grid as ``cpp/rounding.h`` wants it, or its table as ``cpp/table.h`` does.

All of it is made once and kept, since the kernel gets pointers.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache

import torch
from torch import Tensor

from altgrad_core.numerics.formats import TableFormat
from altgrad_core.numerics.kernel import Grid, path_of
from altgrad_core.numerics.modes import ROUNDINGS, SATURATIONS, Rounding, Saturation
from altgrad_core.numerics.tableformat import read_constants
from altgrad_core.numerics.tables import lookup

TYPES = {torch.float32: 0, torch.bfloat16: 1}
# What pointers point to.
_KEPT: list[object] = []

# Within these the numbers that the kernel lifts stay numbers of float32.
_LEAST_BIAS, _LEAST_MAX = -100, 2.0**-100


def path_in_kernel(grid: Grid) -> int | None:
    """Return ``Path`` of rounding.h; None for grids far outside of float32."""
    path = path_of(grid, torch.float32)
    if path == "integers":
        return 1
    if path == "float32" and grid.mantissa_bits:
        return 0
    return 2 if grid.bias >= _LEAST_BIAS and grid.max_finite >= _LEAST_MAX else None


class _Grid(ctypes.Structure):
    """``Grid`` of rounding.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("path", "mantissa_bits", "bias", "is_signed", "has_inf", "has_nan")),
        *((name, ctypes.c_int32) for name in ("has_negative_zero", "threshold_rounds_to_max", "sums")),
        ("sums_to", ctypes.c_float),
        *((name, ctypes.c_float) for name in ("first_power", "min_normal", "min_positive", "max_finite")),
        *((name, ctypes.c_float) for name in ("overflow_threshold", "beyond", "lifts_below", "lift", "lift_more")),
        ("limit", ctypes.c_double),
    )


class _Kind(ctypes.Structure):
    """``Kind`` of cast.cpp."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("x_type", "q_type", "rounding", "saturation", "random_bits")),
        ("grid", _Grid),
    )


class _Table(ctypes.Structure):
    """``Table`` of table.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("thresholds", "results", "threshold", "value", "first")),
        *((name, ctypes.c_int32) for name in ("shift", "origin", "last", "crowded", "crowded_last")),
        *((name, ctypes.c_int32) for name in ("above", "has_negative_zero")),
        *((name, ctypes.c_double) for name in ("lowest", "highest")),
    )


_Pointers = tuple[ctypes.c_void_p, ctypes.c_void_p | None]
_KINDS: dict[tuple[object, ...], _Pointers] = {}


def kind_pointers(
    constants: str,
    x_type: torch.dtype,
    q_type: torch.dtype,
    rounding: Rounding,
    saturation: Saturation,
    random_bits: int,
) -> _Pointers:
    """Return pointers to what the kernel calls a kind and a table; kept, since a conversion costs more than a small cast.

    ``constants`` are those of the format, which say all of it.
    """
    key = (constants, x_type, q_type, rounding, saturation, random_bits)  # the hash of text is kept, too
    found = _KINDS.get(key)
    if found is None:
        found = _KINDS[key] = _pointers(constants, x_type, q_type, rounding, saturation, random_bits)
    return found


def _pointers(
    constants: str,
    x_type: torch.dtype,
    q_type: torch.dtype,
    rounding: Rounding,
    saturation: Saturation,
    random_bits: int,
) -> _Pointers:
    table = None
    if ";" in constants:
        numbers, ends = read_constants(constants)
        format = TableFormat(name="table", table=numbers, beyond=ends or None)
        table = _native_table(format, rounding, saturation)
        _KEPT.append(table)
        # What a grid's numbers say of a table: no subnormals, and what bfloat16 must hold.
        grid = _Grid(
            0, 0, 0, 1, 0, 0, 1, 1, 0, 0.0, 1.0, 0.0, format.min_positive, format.max_finite, math.inf, math.inf
        )
    else:
        grid = _native_grid(Grid.parse(constants))
    modes = (TYPES[x_type], TYPES[q_type], ROUNDINGS.index(rounding), SATURATIONS.index(saturation), random_bits)
    kind = _Kind(*modes, grid)
    _KEPT.append(kind)
    pointer = None if table is None else ctypes.c_void_p(ctypes.addressof(table))
    return ctypes.c_void_p(ctypes.addressof(kind)), pointer


@cache
def grid_pointer(grid: Grid) -> ctypes.c_void_p:
    """Return a pointer to the grid as the kernels know it."""
    held = _native_grid(grid)
    _KEPT.append(held)
    return ctypes.c_void_p(ctypes.addressof(held))


def _native_grid(grid: Grid) -> _Grid:
    first_power = 2.0 ** (1 - grid.bias)
    lifts_below, sums_to = max(first_power, 2.0**-126), min(2.0 ** (104 + grid.mantissa_bits), grid.max_finite)
    sums = 1 <= grid.mantissa_bits <= 21 and sums_to > lifts_below
    # What is lifted becomes 1 and above; float32's subnormals become integers where the first power is among them.
    lift = max(grid.bias - 1, 0) if grid.bias <= 127 else 149
    return _Grid(
        *(path_in_kernel(grid), grid.mantissa_bits, grid.bias, grid.signed, grid.has_inf, grid.has_nan),
        *(grid.has_negative_zero, grid.threshold_rounds_to_max, sums, sums_to),
        *(first_power, grid.min_normal, grid.min_positive, grid.max_finite),
        *(grid.overflow_threshold, grid.beyond),  # of bf16 both are infinity in float32
        *(lifts_below, 2.0 ** min(lift, 126), 2.0 ** max(lift - 126, 0)),
        grid.max_finite,
    )


# Of a table: 64 KiB of buckets, half of which stay in the first-level cache; and at most.
_FEW_BUCKETS, _MANY_BUCKETS = 1 << 13, 1 << 17
# How many float32 numbers are nearer to zero than 2^-124.
_TINY = 3 << 23


def _native_table(format: TableFormat, rounding: Rounding, saturation: Saturation) -> _Table:
    """Cut the numbers between the ends of a table into buckets of 2^shift numbers that have one threshold at most.

    Those around zero may have more, of values so small that float32 hardly tells them apart; so may all where there
    would be too many buckets. In those the kernel steps from threshold to threshold.
    """
    found = lookup(format.constants, rounding, saturation)
    assert found is not None
    edges = _order(found.thresholds[1:-1])
    origin = int(edges[0]) - 1
    apart, span = edges - origin - 1, int(edges[-1]) - origin - 1
    apart = apart[torch.cat([torch.ones(1, dtype=torch.bool, device="cpu"), apart.diff() > 0])]
    for shift in range(31, -1, -1):
        bucket = apart >> shift
        crowded = bucket[1:][bucket.diff() == 0].tolist()
        if not crowded:
            crowded = [(span >> shift) + 1]
            break
        start, end = origin + (crowded[0] << shift), origin + (crowded[-1] + 1 << shift)
        if start >= -_TINY and end <= _TINY:
            break
    if span >> shift >= _MANY_BUCKETS:
        while span >> shift >= _FEW_BUCKETS:
            shift += 1
        crowded = [0, span >> shift]
    last = span >> shift
    starts = origin + (torch.arange(last + 2, device="cpu") << shift)
    place = torch.searchsorted(edges, starts, right=True) + 1
    following = (place - 1).clamp_max(len(edges) - 1)
    inside = (edges[following] > starts) & (edges[following] <= starts + (1 << shift))
    threshold = torch.where(inside, found.thresholds[following + 1], math.nan)
    thresholds = torch.cat([found.thresholds, torch.tensor([math.nan], device="cpu")])
    value = torch.cat([found.result[place], found.result])
    held = (thresholds, found.result, threshold, value, place.to(torch.int32))
    _KEPT.append(held)
    numbers = (shift, origin, last, crowded[0], crowded[-1], len(edges) + 1, format.has_negative_zero)
    return _Table(*(tensor.data_ptr() for tensor in held), *numbers, format.min_finite, format.max_finite)


def _order(x: Tensor) -> Tensor:
    """Return where float32 numbers other than -0 stand among all: int64, one apart for neighbours."""
    bits = (x + 0.0).view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
