"""Signal to quantization-noise ratio of formats: on signals under a scale, and over the amplitude without one.

SQNR = 10 log10(sum of x^2 / sum of (scale * q - x)^2). Every 6.02 dB are one more bit of precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import attrs

from altgrad_core.analysis.formats.facts import element_of, exponent_of
from altgrad_core.analysis.formats.layout import Column, fitting, lines
from altgrad_core.analysis.formats.signals import Signal
from altgrad_core.numerics.formats import BlockFormat, Format
from altgrad_core.numerics.modes import Rounding, Saturation

if TYPE_CHECKING:
    from torch import Tensor

Scaling = Literal["current", "best", "none"]
"""``current``: the smallest power of two that puts the largest magnitude at most at the format's ``scale_target``.
``best``: the power of two with the highest SQNR. ``none``: 1. A block format always has the scales of its blocks."""
SCALINGS: tuple[Scaling, ...] = get_args(Scaling)

_CURVE_SAMPLES = 1 << 14
_CURVE_POINTS = 96
_SEARCHED = 1 << 15
# Binades of the largest values that the best scale may clamp: a heavy tail has its largest value far out.
_CLAMPED = 16


@attrs.frozen(kw_only=True)
class Row:
    """One format on all signals."""

    format: str
    """The format's name."""
    sqnr_db: tuple[float | None, ...]
    """One a signal; None where the signal is zero, or the format has no negative numbers."""


def measure(
    formats: Sequence[Format],
    signals: Sequence[Signal],
    *,
    scaling: Scaling = "current",
    rounding: Rounding = "nearest_even",
    saturation: Saturation = "finite",
) -> list[Row]:
    """Return the SQNR in dB of each format on each signal. Stochastic rounding draws with seed 0."""
    rows = []
    for format in formats:
        numbers = [_sqnr_of(format, signal.values, scaling, rounding, saturation) for signal in signals]
        rows.append(Row(format=format.name, sqnr_db=tuple(numbers)))
    return rows


def _sqnr_of(format: Format, x: Tensor, scaling: Scaling, rounding: Rounding, saturation: Saturation) -> float | None:
    from altgrad_core.numerics.scaling import scale_for

    if not element_of(format).signed and bool((x < 0).any()):
        return None

    def at(scale: float) -> float | None:
        return sqnr_db(x, cast(x, format, scale, rounding, saturation))

    if isinstance(format, BlockFormat) or scaling == "none":
        return at(1.0)
    current = scale_for(x.abs().amax(), format, power_of_two=True, margin=0).item()
    if scaling == "current":
        return at(current)
    best = _best_scale(format, x, current, rounding, saturation)
    found = [db for db in (at(current), at(best)) if db is not None]
    return max(found, default=None)


def _best_scale(format: Format, x: Tensor, current: float, rounding: Rounding, saturation: Saturation) -> float:
    """Return the power of two with the highest SQNR on a part of x, from clamping many values to losing many."""
    part = x.reshape(-1)[:_SEARCHED]
    center = exponent_of(current)
    low, high = exponent_of(format.min_positive), exponent_of(format.max_finite)
    best, best_db = current, -math.inf
    for e in range(max(center - _CLAMPED, -126), min(center + high - low + 1, 127)):
        db = sqnr_db(part, cast(part, format, 2.0**e, rounding, saturation))
        if db is not None and db > best_db:
            best, best_db = 2.0**e, db
    return best


def cast(x: Tensor, format: Format, scale: float, rounding: Rounding, saturation: Saturation) -> Tensor:
    """Return ``quantize`` of x; stochastic rounding draws with seed 0."""
    from altgrad_core.numerics.cast import quantize

    if rounding == "stochastic":
        from altgrad_core.numerics.stochastic import Draw

        return quantize(x, format, scale=scale, rounding=rounding, saturation=saturation, draw=Draw(seed=0))
    return quantize(x, format, scale=scale, rounding=rounding, saturation=saturation)


def sqnr_db(x: Tensor, y: Tensor) -> float | None:
    """Return 10 log10 of the power of x over that of y - x: Inf for no error, -Inf for an infinite one, None for x = 0."""
    signal = x.double().square().sum().item()
    noise = (y.double() - x.double()).square().sum().item()
    if signal == 0:
        return None
    if noise == 0:
        return math.inf
    return -math.inf if not math.isfinite(noise) else 10 * math.log10(signal / noise)


def table(rows: Sequence[Row], signals: Sequence[Signal], width: int) -> list[tuple[str, str]]:
    """Return (text, style) lines: a row a format, a column a signal."""
    columns = [Column("format", lambda row: row.format, left=True)]
    for i, signal in enumerate(signals):
        columns.append(Column(signal.name.replace(" ", "\n"), partial(_cell, i), rank=i))
    return lines(fitting(columns, rows, width), [("", rows)], width)


def _cell(signal: int, row: Row) -> str:
    return decibels(row.sqnr_db[signal])


def legend(formats: Sequence[Format], scaling: Scaling, rounding: Rounding, saturation: Saturation) -> list[str]:
    """Return the sentences that say how a table came about."""
    scales = {
        "current": "Scale: the smallest power of two that puts the largest magnitude within the format's range.",
        "best": "Scale: the power of two with the highest SQNR.",
        "none": "Scale: 1.",
    }
    said = [f"{scales[scaling]} Rounding {rounding}, saturation {saturation}."]
    tapered = [f.name for f in formats if not isinstance(f, BlockFormat) and f.scale_target != f.max_finite]
    if scaling == "current" and tapered:
        target = ", ".join(sorted({f"{f.scale_target:g}" for f in formats if f.name in tapered}))
        said.append(f"At {target} at most in what is densest far below its largest value: {', '.join(tapered)}.")
    if any(isinstance(format, BlockFormat) for format in formats):
        said.append("Block formats have the scales of their blocks, along rows, instead.")
    if any(not element_of(format).signed for format in formats):
        said.append("A format without negative numbers has no SQNR where there are some.")
    return said


def decibels(value: float | None) -> str:
    """Return ``31.5``; ``exact`` where there is no error."""
    if value is None:
        return "-"
    return f"{value:.1f}" if math.isfinite(value) else ("exact" if value > 0 else "-Inf")


def curve(
    format: Format,
    amplitudes: Sequence[float] | None = None,
    *,
    rounding: Rounding = "nearest_even",
    saturation: Saturation = "finite",
    signal: Sequence[float] | None = None,
) -> tuple[list[float], list[float]]:
    """Return (amplitudes, SQNR in dB) of a normal signal, scale 1: the curve with a plateau and two slopes.

    Args:
        format: any format.
        amplitudes: standard deviations; by default from where everything vanishes to where most values are clamped.
        rounding: as of a cast.
        saturation: as of a cast.
        signal: the numbers that are multiplied by each amplitude; by default the quantiles of the standard normal
            distribution, which need no random numbers.
    """
    import torch

    base = torch.tensor(signal if signal is not None else normal_quantiles(_CURVE_SAMPLES), dtype=torch.float64)
    amplitudes = amplitudes if amplitudes is not None else amplitude_range([format])
    found = []
    for amplitude in amplitudes:
        x = base * amplitude
        found.append(sqnr_db(x, cast(x, format, 1.0, rounding, saturation)))
    return list(amplitudes), [math.nan if db is None else db for db in found]


def amplitude_range(formats: Sequence[Format]) -> list[float]:
    """Return standard deviations, evenly spaced in their logarithm, that show both slopes of every format."""
    low = min(exponent_of(element_of(format).min_positive) for format in formats) - 3
    high = max(exponent_of(element_of(format).max_finite) for format in formats) + 3
    low, high = max(low, -1000), min(high, 1000)
    return [2.0 ** (low + (high - low) * i / (_CURVE_POINTS - 1)) for i in range(_CURVE_POINTS)]


def normal_quantiles(size: int) -> list[float]:
    """Return the quantiles (i + 1/2) / size of the standard normal distribution, in a fixed shuffled order.

    The order matters to block formats alone: neighbours must not resemble each other.
    """
    from random import Random
    from statistics import NormalDist

    normal = NormalDist()
    found = [normal.inv_cdf((i + 0.5) / size) for i in range(size)]
    Random(0).shuffle(found)
    return found
