"""What is shown of many runs: looks for those that differ most, and a small picture of every one.

Up to ``MOST_LOOKS`` runs, or groups of seeds, have a look of their own. Of more, the baseline has one, the five that ended
best and the five that ended worst; the others are thin grey lines. A run that has no loss to compare counts as worst, as
it mostly met NaN or died.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
from markupsafe import Markup

from altgrad_core.analysis.compare import Comparison
from altgrad_core.analysis.figures import REST, styles
from altgrad_core.analysis.report.figure import Drawn
from altgrad_core.analysis.runs import Run
from altgrad_core.analysis.seeds import group_name, same_but_seed
from altgrad_core.analysis.series import Series, smoothing_width
from altgrad_core.analysis.table import number

MOST_LOOKS = 12
AT_EACH_END = 5
_TILE_WIDTH, _TILE_HEIGHT, _TILE_POINTS = 150, 54, 60


@attrs.frozen(kw_only=True)
class Tile:
    """One run, small."""

    label: str
    """Its name."""
    svg: Markup
    """Its training loss over that of what it is compared with."""
    said: str
    """What it ended with."""


def drawn_runs(runs: Sequence[Run], comparison: Comparison) -> list[Drawn]:
    """Return the runs with a look for each, in their order."""
    rows = comparison.rows
    units = same_but_seed(runs)
    baseline = [any(rows[place].baseline for place in places) for places in units]
    shown = _chosen([_distance(comparison, places) for places in units], baseline)
    looks = dict(zip(shown, styles([baseline[unit] for unit in shown]), strict=True))
    found: dict[int, Drawn] = {}
    for unit, places in enumerate(units):
        its = [runs[place] for place in places]
        name = group_name(its, [rows[place].name for place in places]) if len(places) > 1 else rows[places[0]].name
        name += f" ({len(places)} seeds)" if len(places) > 1 else ""
        for place in places:
            found[place] = Drawn(
                label=rows[place].name, unit=name, run=runs[place], row=rows[place], look=looks.get(unit, REST)
            )
    return [found[place] for place in range(len(runs))]


def by_distance(drawn: Sequence[Drawn]) -> list[Drawn]:
    """Return the runs furthest from the baseline first, those without a loss to compare before all; the baseline last."""

    def far(its: Drawn) -> tuple[bool, float]:
        difference = its.row.difference_percent
        return its.row.baseline, -math.inf if difference is None else -abs(difference)

    return sorted(drawn, key=far)


def tiles(drawn: Sequence[Drawn]) -> list[Tile]:
    """Return a small picture of every run's training loss, the worst end first; all have the same axes."""
    logged = {its.label: Series(its.label, *its.run.metrics("train/loss")) for its in drawn}
    lines = {label: line.smooth(smoothing_width(len(line.steps))).finite() for label, line in logged.items()}
    finite = [line for line in lines.values() if line.values]
    if not finite:
        return []
    last = max(line.steps[-1] for line in finite)
    low = min(min(line.values) for line in finite)
    # The first tenth falls from above, as in the figures; what diverges leaves at the top.
    tops = sorted(max(line.values[len(line.values) // 10 :]) for line in finite)
    top = tops[len(tops) - 1 - len(tops) // 20]
    worst = sorted(drawn, key=lambda its: -_ended(its.row.difference_percent, its.row.baseline))
    return [
        Tile(
            label=its.label,
            svg=_tile(
                lines[its.label], lines.get(its.row.compared_with or ""), _first_lost(logged[its.label]),
                last=last, low=low, top=max(top, low + 1e-9),
            ),
            said=_said(its),
        )
        for its in worst
    ]  # fmt: skip


def _chosen(distances: Sequence[float], baseline: Sequence[bool]) -> list[int]:
    """Return the places of the units that get a look, in their order."""
    if len(distances) <= MOST_LOOKS:
        return list(range(len(distances)))
    others = sorted((unit for unit in range(len(distances)) if not baseline[unit]), key=lambda unit: distances[unit])
    return sorted([*others[:AT_EACH_END], *others[-AT_EACH_END:], *(i for i, its in enumerate(baseline) if its)])


def _distance(comparison: Comparison, places: Sequence[int]) -> float:
    ends = [_ended(comparison.rows[i].difference_percent, comparison.rows[i].baseline) for i in places]
    return sum(ends) / len(ends)


def _ended(difference: float | None, baseline: bool) -> float:
    return 0.0 if baseline else math.inf if difference is None else difference


def _said(its: Drawn) -> str:
    row = its.row
    if row.baseline:
        return "the baseline"
    if row.difference_percent is not None:
        return f"{row.difference_percent:+.2f} %"
    lost = row.final_loss is not None and not math.isfinite(row.final_loss)
    return f"{row.status}, loss {number(row.final_loss, 4)}" if lost else f"{row.status}, no loss to compare"


def _first_lost(line: Series) -> float | None:
    return next((step for step, value in zip(line.steps, line.values, strict=True) if not math.isfinite(value)), None)


def _tile(line: Series, base: Series | None, lost: float | None, *, last: float, low: float, top: float) -> Markup:
    parts = [
        f'<path d="{_path(its, last, low, top)}" style="stroke: {color}; stroke-width: {width}"/>'
        for its, color, width in ((base, "var(--rest)", 2.5), (line, "var(--series-1)", 1.5))
        if its is not None
    ]
    if lost is not None:
        x = _TILE_WIDTH * lost / last
        parts.append(f'<path d="M{x - 3:.1f} 48l6 -6m0 6l-6 -6" style="stroke: var(--series-2); stroke-width: 1.5"/>')
    return Markup(f'<svg viewBox="0 0 {_TILE_WIDTH} {_TILE_HEIGHT}" aria-hidden="true">{"".join(parts)}</svg>')


def _path(line: Series, last: float, low: float, top: float) -> str:
    shown = line.thin(_TILE_POINTS)
    points = [
        (_TILE_WIDTH * step / last, 2 + (_TILE_HEIGHT - 4) * (top - value) / (top - low))
        for step, value in zip(shown.steps, shown.values, strict=True)
    ]
    return "M" + "L".join(f"{x:.1f} {max(-9.0, y):.1f}" for x, y in points) if points else ""
