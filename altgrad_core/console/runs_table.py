"""One line a run and one for the total, with as many columns as the width has room for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import attrs
from rich.cells import cell_len
from rich.style import Style

from altgrad_core.console.canvas import BAD, DIM, GOOD, PLAIN, STRONG, WARN, Line, bar
from altgrad_core.console.state import RunState, ScreenState
from altgrad_core.console.words import clock, percent, signed_percent

_STATUS = {
    "running": STRONG, "starting": STRONG, "done": GOOD, "failed": BAD, "pending": BAD, "stopped": WARN,
    "interrupted": WARN, "silent": WARN, "waiting": DIM,
}  # fmt: skip
_BAR = 12


@attrs.frozen
class _Column:
    title: str
    width: int
    priority: int
    value: Callable[[ScreenState, RunState], tuple[str, Style]]


def _rate(metric: str, alert: str) -> Callable[[ScreenState, RunState], tuple[str, Style]]:
    def value(state: ScreenState, run: RunState) -> tuple[str, Style]:
        rate, limit = run.values.get(metric), run.threshold(alert)
        if rate is None:
            return "-", DIM
        bad = not math.isfinite(rate) or (limit is not None and rate > limit)
        return (f"{percent(rate)}!", BAD) if bad else (f"{percent(rate)} ", PLAIN)

    return value


def _number(metric: str, form: str) -> Callable[[ScreenState, RunState], tuple[str, Style]]:
    return lambda state, run: (format(run.values[metric], form), PLAIN) if metric in run.values else ("-", DIM)


def _difference(state: ScreenState, run: RunState) -> tuple[str, Style]:
    found = state.against_baseline(run)
    if run is state.baseline:
        return "baseline", DIM
    return ("-", DIM) if found is None else (signed_percent(found[1]), PLAIN)


def _eta(state: ScreenState, run: RunState) -> tuple[str, Style]:
    return ("-", DIM) if run.over or run.status == "waiting" else (clock(run.eta_s), PLAIN)


_COLUMNS = (
    _Column("step", 17, 6, lambda state, run: (f"{run.step:,}/{run.steps:,}", PLAIN)),
    _Column("train loss", 10, 1, _number("train/loss", ".4f")),
    _Column("difference", 10, 2, _difference),
    _Column("tok/s", 9, 5, _number("train/tokens_per_s", ",.0f")),
    _Column("eta", 8, 4, _eta),
    _Column("overflow", 9, 7, _rate("overflow_rate", "overflow")),
    _Column("underflow", 9, 8, _rate("underflow_rate", "underflow")),
    _Column("bit stall", 9, 7, _rate("bit_stall_rate", "bit_stall")),
    _Column("cosine", 7, 7, _number("grad_cos_sim", ".4f")),
)


def runs_table(state: ScreenState, width: int, rows: int, now: float) -> list[Line]:
    """Return a heading, the runs and the total in at most ``rows`` lines, at least three."""
    runs = list(state.runs.values())
    names = min(max(cell_len(name) for name in ("total", *state.runs)), max(10, width // 4))
    room = width - names - 18  # status and percentage
    columns = []
    for column in sorted(_COLUMNS, key=lambda column: column.priority):
        if column.width + 2 <= room:
            room -= column.width + 2
            columns.append(column)
    columns.sort(key=_COLUMNS.index)
    bars = _BAR if room >= _BAR + 1 else 0
    shown, rest = _shown(runs, rows - 2)
    head = (
        Line().field("run", names, DIM).add("  ").field("status", 11, DIM).add(" " * (bars + (bars > 0))).add("     ")
    )
    for column in columns:
        head.add("  ").field(column.title, column.width, DIM, right=True)
    lines = [head]
    for run in shown:
        line = Line().field(run.name, names, STRONG if run.status == "running" else PLAIN).add("  ")
        line.field(run.status, 11, _STATUS.get(run.status, PLAIN))
        _progress(line, run.step / run.steps if run.steps else 0, bars)
        for column in columns:
            text, style = column.value(state, run)
            line.add("  ").field(text, column.width, style, right=True)
        lines.append(line)
    if rest:
        counts = {status: sum(run.status == status for run in rest) for status in _STATUS}
        said = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
        lines.append(Line(f"… and {len(rest)} more: {said}", DIM))
    lines.append(_total(state, runs, names, bars, now))
    return lines


def _shown(runs: Sequence[RunState], rows: int) -> tuple[list[RunState], list[RunState]]:
    """Return the runs that get a line and those that are only counted: the ones that go on or failed come first."""
    if len(runs) <= rows:
        return list(runs), []

    def importance(run: RunState) -> int:
        return (
            "running",
            "starting",
            "failed",
            "pending",
            "silent",
            "stopped",
            "interrupted",
            "waiting",
            "done",
        ).index(run.status)

    chosen = sorted(range(len(runs)), key=lambda index: (importance(runs[index]), index))[: max(0, rows - 1)]
    return [runs[i] for i in sorted(chosen)], [run for i, run in enumerate(runs) if i not in chosen]


def _total(state: ScreenState, runs: Sequence[RunState], names: int, bars: int, now: float) -> Line:
    steps, done = sum(run.steps for run in runs), sum(run.step for run in runs)
    over = sum(run.over for run in runs)
    line = Line().field("total", names, STRONG).add("  ").field(f"{over} of {len(runs)}", 11)
    _progress(line, done / steps if steps else 0, bars)
    spent = sum(run.elapsed_s(now) for run in runs)
    return line.add(f"  {done:,}/{steps:,} steps  {clock(spent)}  eta {clock(state.eta_s())}")


def _progress(line: Line, fraction: float, bars: int) -> None:
    if bars:
        line.add(" ").extend(bar(fraction, bars))
    line.add(f"{100 * fraction:3.0f} %")
