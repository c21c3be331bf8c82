"""The comparison as a table: its columns, for the terminal and the report alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from altgrad_core.analysis.compare import Comparison, Row

MISSING = "-"


@attrs.frozen
class Column:
    """One column of the comparison."""

    header: str
    """Heading; a line break is where it may be folded."""
    meaning: str
    """What it holds, for the legend."""
    text: Callable[[Row], str]
    """A row's cell."""
    left: bool = False
    """Whether cells are text, aligned to the left."""


def percent(value: float | None, *, digits: int = 2) -> str:
    """Return ``1.20 %``; a value that would round to zero without being zero is ``<0.01 %``."""
    if value is None:
        return MISSING
    smallest = 10.0**-digits
    return f"<{smallest:.{digits}f} %" if 0 < value < smallest / 2 else f"{value:.{digits}f} %"


def signed_percent(value: float | None) -> str:
    """Return ``+1.23 %``; what rounds to zero has no sign."""
    if value is None:
        return MISSING
    return "0.00 %" if abs(value) < 0.005 else f"{value:+.2f} %"


def duration(seconds: float | None) -> str:
    """Return ``42 s``, ``3 min 05 s`` or ``2 h 07 min``."""
    if seconds is None:
        return MISSING
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def number(value: float | None, digits: int) -> str:
    """Return ``value`` with ``digits`` after the point, thousands apart; NaN and infinity by name."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return f"{value:,.{digits}f}"


def _with(value: float | None, pattern: str) -> str:
    return MISSING if value is None else pattern.format(value)


def _loss(row: Row, value: float | None) -> str:
    return number(value, 4) + (" train" if row.loss_kind == "training" and value is not None else "")


def _final_loss(row: Row) -> str:
    early = row.final_step is not None and row.final_step != row.steps
    return _loss(row, row.final_loss) + (f" at step {row.final_step}" if early else "")


def _difference(row: Row) -> str:
    early = row.difference_percent is not None and row.compared_step not in (row.steps, row.final_step)
    return signed_percent(row.difference_percent) + (f" at step {row.compared_step}" if early else "")


def _steps(row: Row) -> str:
    if row.steps is None:
        return MISSING
    whole = row.planned_steps is None or row.steps == row.planned_steps
    return str(row.steps) if whole else f"{row.steps}/{row.planned_steps}"


COLUMNS = (
    Column("run", "name of the run; * is the baseline", lambda r: f"{r.name} *" if r.baseline else r.name, left=True),
    Column("status", "how the run stands", lambda r: r.status, left=True),
    Column("steps", "last step, of the planned ones when there are more", _steps),
    Column("val loss", "final validation loss", _final_loss),
    Column("best", "smallest validation loss", lambda r: _loss(r, r.best_loss)),
    Column("diff", "distance of the loss from the baseline's", _difference),
    Column("cosine", "gradient against FP32's, mean over steps and layers", lambda r: number(r.grad_cos_sim, 4)),
    Column("overflow", "cast elements beyond the format's largest value", lambda r: percent(r.overflow_percent)),
    Column("underflow", "non-zero cast elements that became zero", lambda r: percent(r.underflow_percent)),
    Column("bit stall", "weights that a step leaves unmoved", lambda r: percent(r.bit_stall_percent)),
    Column("tokens/s", "median training speed", lambda r: number(r.tokens_per_s, 0)),
    Column("speed", "tokens/s over the baseline's", lambda r: _with(r.speed_ratio, "{:.2f}x")),
    Column("time", "time spent training, evaluating and saving", lambda r: duration(r.wall_time_s)),
    Column("NaN", "steps with a loss or gradient that is not finite", lambda r: _with(r.nan_steps, "{}")),
    Column("alerts", "alerts raised", lambda r: str(r.alerts)),
)  # fmt: skip
# The first to go when the terminal is narrow; run, status, val loss and diff stay, and so do those of `_needed_by`.
_DROPPED_FIRST = (
    "best",
    "alerts",
    "time",
    "NaN",
    "speed",
    "tokens/s",
    "steps",
    "bit stall",
    "underflow",
    "overflow",
    "cosine",
)
_NAME_WIDTH = 16


def table(comparison: Comparison, width: int | None = None, *, legend: bool = True) -> Table:
    """Return the comparison as a table of at most ``width`` characters, by default the terminal's.

    Columns that do not fit are left out and named below the table; long names are folded. Without ``legend`` the meaning
    of the columns, and which were not measured, is not said below it.
    """
    width = Console().width if width is None else width
    columns = {column.header: [column.text(row) for row in comparison.rows] for column in COLUMNS}
    dropped = [header for header, cells in columns.items() if all(cell == MISSING for cell in cells)]
    empty = list(dropped)
    needed = _needed_by(comparison.rows)
    for header in [header for header in _DROPPED_FIRST if header not in needed]:
        if _needed(columns, dropped) <= width:
            break
        if header not in dropped:
            dropped.append(header)
    others = _needed(columns, [*dropped, "run"])
    name_width = min(_NAME_WIDTH, _longest("run", columns), max(6, width - others - 2))
    folded = ("run",) if others + 2 + name_width <= width else ("run", "val loss", "diff")
    made = Table(caption_justify="left", caption_style="", pad_edge=False, box=None, header_style="bold")
    for column in COLUMNS:
        if column.header not in dropped:
            made.add_column(
                column.header,
                justify="left" if column.left else "right",
                no_wrap=column.header not in folded,
                overflow="fold",
                min_width=name_width if column.header == "run" else None,
            )
    for index, row in enumerate(comparison.rows):
        cells = [Text(cells[index]) for header, cells in columns.items() if header not in dropped]
        made.add_row(*cells, style="bold" if row.baseline else "")
    left_out = [header for header in dropped if header not in empty]
    made.caption = Text("\n".join(_legend(comparison, left_out, empty, meanings=legend)), style="dim")
    return made


def _needed_by(rows: Sequence[Row]) -> list[str]:
    """Return the columns without which a run that did not finish, or met NaN, would look like one that is well."""
    unfinished = any(row.status != "done" or row.steps != row.planned_steps for row in rows if row.steps is not None)
    return ["steps"] * unfinished + ["NaN"] * any(row.nan_steps for row in rows)


def _needed(columns: dict[str, list[str]], dropped: list[str]) -> int:
    shown = [header for header in columns if header not in dropped]
    widths = [min(_longest(h, columns), _NAME_WIDTH) if h == "run" else _longest(h, columns) for h in shown]
    return sum(widths) + 2 * len(widths)


def _longest(header: str, columns: dict[str, list[str]]) -> int:
    return max(Text(text).cell_len for text in (header, *columns[header]))


def _legend(comparison: Comparison, dropped: list[str], empty: list[str], *, meanings: bool) -> list[str]:
    texts = {column.header: column.meaning for column in COLUMNS}
    lines = []
    if comparison.baseline is not None and meanings:
        lines.append("* the baseline.")
    if meanings and (
        shown := [header for header in ("val loss", "diff", "cosine") if header not in (*dropped, *empty)]
    ):
        lines.append(" ".join(f"{header}: {texts[header]}." for header in shown))
    if dropped:
        left_out = ", ".join(header for header in texts if header in dropped)
        lines.append(f"Left out at this width: {left_out} (altgrad compare --json has all).")
    if empty and meanings:
        lines.append(f"Not measured: {', '.join(empty)}.")
    return [*lines, *comparison.notes]
