"""Series of a metric over steps: smoothing, thinning for a figure, layers by steps, and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from urllib.parse import quote

import attrs

from altgrad_core.analysis.runs import Run
from altgrad_core.recipes.recipe import OPERANDS

MOST_POINTS = 500
MOST_COLUMNS = 160


@attrs.frozen
class Series:
    """One line of a figure."""

    label: str
    """The run's name."""
    steps: Sequence[float]
    """Ascending: steps, or minutes."""
    values: Sequence[float]
    """One for each step; may hold NaN and infinities."""

    def scaled(self, factor: float) -> Series:
        """Return the series with every value times ``factor``."""
        return Series(self.label, self.steps, [factor * value for value in self.values])

    def finite(self) -> Series:
        """Return the points that can be drawn."""
        pairs = [(step, value) for step, value in zip(self.steps, self.values, strict=True) if math.isfinite(value)]
        return Series(self.label, [step for step, _ in pairs], [value for _, value in pairs])

    def smooth(self, width: int) -> Series:
        """Return the mean over ``width`` (odd) logged steps around each one, over fewer at both ends; NaN stays out."""
        half = width // 2
        values = []
        for i in range(len(self.values)):
            window = [value for value in self.values[max(0, i - half) : i + half + 1] if math.isfinite(value)]
            values.append(math.fsum(window) / len(window) if window else math.nan)
        return Series(self.label, self.steps, values)

    def thin(self, most: int = MOST_POINTS) -> Series:
        """Return at most about ``most`` points: the smallest and largest of each stretch, so that no spike is lost."""
        if len(self.steps) <= most:
            return self
        points = list(zip(self.steps, self.values, strict=True))
        size = math.ceil(2 * len(points) / most)
        kept: list[tuple[float, float]] = []
        for start in range(0, len(points), size):
            stretch = points[start : start + size]
            kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
        return Series(self.label, [step for step, _ in kept], [value for _, value in kept])

    def every(self, stride: int) -> Series:
        """Return one point of every ``stride``, from the first on."""
        return Series(self.label, self.steps[::stride], self.values[::stride])


@attrs.frozen
class Layers:
    """A metric of one run by layer and step."""

    label: str
    """The run's name."""
    rows: Sequence[str]
    """Layers or layer.operands."""
    steps: Sequence[int]
    """First step of each column."""
    values: Sequence[Sequence[float]]
    """[rows][steps]; NaN where nothing was measured, and infinite where nothing else was."""
    steps_per_column: int
    """Logged steps that each column is the mean of."""

    def above_zero(self) -> Layers:
        """Return the rows that have a value above 0."""
        kept = [i for i, values in enumerate(self.values) if any(value > 0 for value in values)]
        rows, values = [self.rows[i] for i in kept], [self.values[i] for i in kept]
        return attrs.evolve(self, rows=rows, values=values)


def smoothing_width(points: int) -> int:
    """Return the number of steps to smooth over: a thirtieth of the run, odd; 1 (none) for runs under 30 steps."""
    return points // 30 | 1 if points >= 30 else 1


def layers_by_step(run: Run, label: str, metric: str) -> Layers:
    """Return ``metric`` by layer and step, in model order, with at most ``MOST_COLUMNS`` columns.

    The operands of linear layers stand apart; where there are others, those of a layer together.
    """
    rows = _by_operand(run.layers(metric))
    found = [dict(zip(*run.metrics(f"{metric}/{row}"), strict=True)) for row in rows]
    steps = sorted({step for values in found for step in values})
    size = max(1, math.ceil(len(steps) / MOST_COLUMNS))
    stretches = [steps[i : i + size] for i in range(0, len(steps), size)]
    means = [[_mean([values[s] for s in stretch if s in values]) for stretch in stretches] for values in found]
    return Layers(label, rows, [stretch[0] for stretch in stretches], means, size)


def _by_operand(rows: list[str]) -> list[str]:
    # The casts of the backward pass are logged in its order, the last layer first.
    names = list(dict.fromkeys(row.rpartition(".")[0] for row in rows))
    if not {row.rpartition(".")[2] for row in rows} <= set(OPERANDS):
        places = {name: place for place, name in enumerate(names)}
        return sorted(rows, key=lambda row: places[row.rpartition(".")[0]])
    return [f"{name}.{operand}" for operand in OPERANDS for name in names if f"{name}.{operand}" in rows]


def _mean(values: list[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else max(values, default=math.nan)


def series_csv(series: Sequence[Series], over: str = "step") -> str:
    """Return CSV with a column for what the series run ``over`` and one for each; a cell is empty where there is no value."""
    columns = [dict(zip(line.steps, line.values, strict=True)) for line in series]
    steps = sorted({step for column in columns for step in column})
    body = [[f"{step:.9g}", *(f"{column[step]:.9g}" if step in column else "" for column in columns)] for step in steps]
    return csv_text([[over, *(line.label for line in series)], *body])


def layers_csv(layers: Layers) -> str:
    """Return CSV with a row for each layer and a column for each step; a cell is empty where nothing was measured."""
    body = [
        [row, *("" if math.isnan(value) else f"{value:.6g}" for value in values)]
        for row, values in zip(layers.rows, layers.values, strict=True)
    ]
    return csv_text([["layer", *map(str, layers.steps)], *body])


def data_uri(text: str) -> str:
    """Return a link that holds ``text`` as CSV; most CSV characters need no escape, so it is smaller than base64."""
    return "data:text/csv;charset=utf-8," + quote(text, safe=",.-+/:;=@()*")


def csv_text(rows: Sequence[Sequence[object]]) -> str:
    """Return rows as CSV."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
