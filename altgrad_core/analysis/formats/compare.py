"""Several formats at given magnitudes: what a cast makes of each number there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs

from altgrad_core.analysis.formats.facts import number
from altgrad_core.analysis.formats.layout import Column, fitting, lines
from altgrad_core.errors import AltgradError
from altgrad_core.numerics.formats import BlockFormat, Format
from altgrad_core.numerics.modes import Rounding, Saturation

# Underflow and subnormals of the 8-bit formats, a number that no binary format holds, ties of three bits, and the
# thresholds that people get wrong: 448 and 464 of e4m3fn, 57344 and 61440 of e5m2.
MAGNITUDES = (1e-6, 1e-3, 0.1, 1.0, 1.125, 3.7, 17.0, 448.0, 464.0, 480.0, 57344.0, 61440.0)


@attrs.frozen(kw_only=True)
class Point:
    """One number in one format."""

    x: float
    """The number."""
    format: str
    """The format's name."""
    value: float
    """What it is cast to; under stochastic rounding the value below it."""
    above: float | None
    """Under stochastic rounding the value above it, where ``value`` is not x itself; None otherwise."""
    chance: float | None
    """The probability of ``above``."""
    ulp: float | None
    """Distance between neighbouring values of the format around x; None for block formats."""
    overflow: bool
    """Whether x is finite and rounds to beyond the largest value; stochastically: would, rounded to nearest."""

    @property
    def error(self) -> float | None:
        """(value - x) / x; None for x = 0, for a result that is not finite, and for two possible values."""
        if self.x == 0 or self.above is not None or not math.isfinite(self.value) or not math.isfinite(self.x):
            return None
        return (self.value - self.x) / self.x

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {**attrs.asdict(self), "error": self.error}


def parse_magnitudes(text: str) -> list[float]:
    """Return the numbers of ``--at``: ``1e-3,0.1,448``. Raises ``AltgradError`` for anything else."""
    found = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            raise AltgradError(
                f"--at takes numbers separated by commas, such as 1e-3,0.1,448; '{part.strip()}' is not a number."
            ) from None
        if math.isinf(value) and "inf" not in part.lower():
            raise AltgradError(f"--at takes numbers of float64, up to 1.8e308; {part.strip()} is beyond them.")
        found.append(value)
    return found


def points(
    formats: Sequence[Format],
    magnitudes: Sequence[float] = MAGNITUDES,
    *,
    scale: float = 1.0,
    rounding: Rounding = "nearest_even",
    saturation: Saturation = "finite",
) -> list[Point]:
    """Cast each number in float64 to each format, in this order: all formats of the first number, of the second...

    In a block format each number is the only one of its block, under the block's own scale, whatever ``scale`` is.
    Raises ``AltgradError`` for a scale that is not positive and finite.
    """
    if not 0 < scale < math.inf:
        raise AltgradError(f"--scale is a positive number, got {scale:g}.")
    return [_point(format, x, scale, rounding, saturation) for x in magnitudes for format in formats]


def _point(format: Format, x: float, scale: float, rounding: Rounding, saturation: Saturation) -> Point:
    import torch

    from altgrad_core.numerics.blocks import block_scale
    from altgrad_core.numerics.cast import cast
    from altgrad_core.numerics.codes import ulp
    from altgrad_core.numerics.statistics import CastStatistics

    alone = torch.tensor([x], dtype=torch.float64)
    element: Format = format
    shared: Any = {"scale": scale, "multiplier": scale}
    if isinstance(format, BlockFormat):
        own, block = block_scale(alone, format)
        element, shared = format.element, {"scale": own, "multiplier": own, "block": block}

    def cast_by(mode: Rounding) -> tuple[float, bool]:
        how: Any = {**shared, "dtype": torch.float64, "statistics": True}
        value, vector = cast(alone, element, rounding=mode, saturation=saturation, **how)
        assert vector is not None
        return value.item(), CastStatistics.from_values(vector.tolist()).overflow > 0

    def to(mode: Rounding) -> float:
        return cast_by(mode)[0]

    above = chance = None
    if rounding == "stochastic":
        value, up = to("down"), to("up")
        if value < x < up < math.inf and value > -math.inf:
            above, chance = up, (x - value) / (up - value)
        elif value != up:  # beyond the largest value: what it becomes is not a matter of chance
            value = to("nearest_even")
    else:
        value = to(rounding)
    distance = None if isinstance(format, BlockFormat) else float(ulp(alone, format, scale=scale)[0])
    overflow = cast_by("nearest_even" if rounding == "stochastic" else rounding)[1]
    return Point(x=x, format=format.name, value=value, above=above, chance=chance, ulp=distance, overflow=overflow)


COLUMNS = (
    Column("x", lambda row: row[0]),
    Column("format", lambda row: row[1].format, left=True),
    Column("value", lambda row: _value(row[1])),
    Column("relative\nerror", lambda row: _error(row[1])),
    Column("ulp", lambda row: number(row[1].ulp), rank=1),
    Column("", lambda row: _fate(row[1]), left=True),
)


def table(found: Sequence[Point], width: int) -> list[tuple[str, str]]:
    """Return (text, style) lines: the formats under each other, number by number."""
    rows = []
    before = ""
    for point in found:
        text = f"{point.x:.9g}"
        rows.append(("" if text == before else text, point))
        before = text
    return lines(fitting(COLUMNS, rows, width), [("", rows)], width)


def _value(point: Point) -> str:
    if point.above is None or point.chance is None:
        return number(point.value)
    below, above = _percent(1 - point.chance), _percent(point.chance)
    return f"{below} {number(point.value)}, {above} {number(point.above)}"


def _percent(chance: float) -> str:
    if chance < 1e-4:
        return "<0.01 %"
    return ">99.99 %" if chance > 1 - 1e-4 else f"{100 * chance:.3g} %"


def _fate(point: Point) -> str:
    if point.above is None and point.value == 0 and point.x != 0:
        return "vanished"
    return "clamped" if math.isfinite(point.value) and (point.overflow or math.isinf(point.x)) else ""


def _error(point: Point) -> str:
    if point.error is None:
        return "-"
    if point.error == 0:
        return "exact"
    # What is left of a clamped value must not look as if it had vanished.
    digits = 3 if point.error == -1 or abs(point.error) < 0.999 else 6
    return f"{100 * point.error:+.{digits}g} %"
