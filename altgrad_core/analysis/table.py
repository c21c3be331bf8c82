"""The comparison as a table: its columns, for the terminal and the report alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs
from rich.console import Console
from rich.table import Table
from rich.text import Text

from altgrad_core.analysis.seeds import Group, spread

if TYPE_CHECKING:
    from altgrad_core.analysis.compare import Comparison
    from altgrad_core.analysis.rows import Row

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


def _first_alert(row: Row) -> str:
    return MISSING if row.first_alert is None else f"{row.first_alert.replace('_', ' ')} at {row.first_alert_step}"


COLUMNS = (
    Column("run", "name of the run; * is the baseline", lambda r: f"{r.name} *" if r.baseline else r.name, left=True),
    Column("status", "how the run stands", lambda r: r.status, left=True),
    Column("steps", "last step, of the planned ones when there are more", _steps),
    Column("val loss", "final validation loss", _final_loss),
    Column("best", "smallest validation loss", lambda r: _loss(r, r.best_loss)),
    Column("diff", "distance of the loss from the baseline's", _difference),
    Column("to target", "first step with a loss at or below the target", lambda r: _with(r.steps_to_target, "{}")),
    Column("cosine", "gradient against FP32's, mean over steps and layers", lambda r: number(r.grad_cos_sim, 4)),
    Column("SNR", "of the gradient against FP32's in dB, median over steps", lambda r: f"{number(r.grad_snr_db, 1)} dB"
           if r.grad_snr_db is not None else MISSING),
    Column("overflow", "cast elements beyond the format's largest value", lambda r: percent(r.overflow_percent)),
    Column("underflow", "non-zero cast elements that became zero", lambda r: percent(r.underflow_percent)),
    Column("bit stall", "weights that a step leaves unmoved", lambda r: percent(r.bit_stall_percent)),
    Column("tokens/s", "median training speed", lambda r: number(r.tokens_per_s, 0)),
    Column("speed", "tokens/s over those of the run compared with", lambda r: _with(r.speed_ratio, "{:.2f}x")),
    Column("time", "time spent training, evaluating and saving", lambda r: duration(r.wall_time_s)),
    Column("NaN", "steps with a loss or gradient that is not finite", lambda r: _with(r.nan_steps, "{}")),
    Column("alerts", "alerts raised", lambda r: str(r.alerts)),
    Column("first alert", "the first of them, and its step", _first_alert),
)  # fmt: skip
# The first to go when the terminal is narrow; run, status, val loss and diff stay, and so do those of `_needed_by`.
_DROPPED_FIRST = (
    "first alert",
    "best",
    "alerts",
    "time",
    "NaN",
    "SNR",
    "to target",
    "speed",
    "tokens/s",
    "steps",
    "bit stall",
    "underflow",
    "overflow",
    "cosine",
)
_NAME_WIDTH = 16


def table(comparison: Comparison, width: int | None = None) -> Table:
    """Return the comparison as a table of at most ``width`` characters, by default the terminal's.

    Columns that do not fit are left out and named below the table; long names are folded.
    """
    sheet = _Sheet.of(comparison, width)
    shown, left_out = sheet.split()
    made = sheet.table(shown)
    made.caption = _caption(comparison, sheet, shown, left_out)
    return made


def blocks(comparison: Comparison, width: int | None = None) -> list[Table | Text]:
    """Return the whole comparison, one table below the other where ``width`` is too small, and last what it means.

    The first table is that of ``table``; after the others comes that of ``seeds_table`` where there are groups.
    """
    sheet = _Sheet.of(comparison, width)
    shown, rest = sheet.split()
    made: list[Table | Text] = [sheet.table(shown)]
    while rest:
        block = ["run", rest.pop(0)]
        while rest and sheet.needed([*block, rest[0]]) <= sheet.width:
            block.append(rest.pop(0))
        shown += block[1:]
        made.append(sheet.table(block))
    if comparison.groups:
        made.append(seeds_table(comparison))
    return [*made, _caption(comparison, sheet, shown, [])]


def seeds_table(comparison: Comparison) -> Table:
    """Return the groups of runs that differ only in their seed: n, mean and standard deviation of each."""
    made = Table(pad_edge=False, box=None, header_style="bold")
    headers = ("over seeds", "n", "val loss", "diff", "to target", "seeds")
    for header in headers:
        made.add_column(header, justify="right" if header in headers[1:5] else "left", overflow="fold")
    for group in comparison.groups:
        planned, finite = len(group.runs), group.finite
        reached = spread(group.steps_to_target_mean, group.steps_to_target_sd, 0)
        cells = (
            f"{group.name} *" if group.baseline else group.name,
            str(planned) if finite == planned else f"{finite}/{planned}",
            _group_loss(group),
            _group_difference(group),
            reached if group.reached in (0, planned) else f"{reached} ({group.reached} of {planned})",
            ", ".join(map(str, group.seeds)),
        )
        made.add_row(*map(Text, cells), style="bold" if group.baseline else "")
    return made


def _group_loss(group: Group) -> str:
    if group.loss_mean is None:
        return MISSING
    train = " train" if group.loss_kind == "training" else ""
    early = f" at step {group.loss_step}" if group.loss_step != group.planned_steps else ""
    return f"{spread(group.loss_mean, group.loss_sd, 4)}{train}{early}"


def _group_difference(group: Group) -> str:
    if group.difference_percent is None:
        return MISSING
    text = f"{spread(group.difference_percent, group.difference_sd, 2)} %"
    text = text if text.startswith("-") else f"+{text}"
    early = f" at step {group.compared_step}" if group.compared_step != group.loss_step else ""
    return text + early + (f" ({group.compared} of {len(group.runs)})" if group.compared != group.finite else "")


@attrs.frozen
class _Sheet:
    """All cells of a comparison, and the width that there is."""

    width: int
    rows: Sequence[Row]
    cells: dict[str, list[str]]
    """Header -> a cell a row."""
    empty: list[str]
    """Columns of which no run has anything."""

    @classmethod
    def of(cls, comparison: Comparison, width: int | None) -> _Sheet:
        cells = {column.header: [column.text(row) for row in comparison.rows] for column in COLUMNS}
        empty = [header for header, its in cells.items() if all(cell == MISSING for cell in its)]
        return cls(Console().width if width is None else width, comparison.rows, cells, empty)

    def split(self) -> tuple[list[str], list[str]]:
        """Return the columns that fit side by side, and those that have to go for that, both in the table's order."""
        kept = _needed_by(self.rows)
        there = [header for header in self.cells if header not in self.empty]
        shown = list(there)
        for header in _DROPPED_FIRST:
            if self.needed(shown) <= self.width:
                break
            if header in shown and header not in kept:
                shown.remove(header)
        return shown, [header for header in there if header not in shown]

    def needed(self, headers: Sequence[str]) -> int:
        widths = [min(self._longest(h), _NAME_WIDTH) if h == "run" else self._longest(h) for h in headers]
        return sum(widths) + 2 * len(widths)

    def table(self, headers: Sequence[str]) -> Table:
        others = self.needed([header for header in headers if header != "run"])
        name_width = min(_NAME_WIDTH, self._longest("run"), max(6, self.width - others - 2))
        folded = ("run",) if others + 2 + name_width <= self.width else ("run", "val loss", "diff", "first alert")
        made = Table(caption_justify="left", caption_style="", pad_edge=False, box=None, header_style="bold")
        for column in [column for column in COLUMNS if column.header in headers]:
            made.add_column(
                column.header,
                justify="left" if column.left else "right",
                no_wrap=column.header not in folded,
                overflow="fold",
                min_width=name_width if column.header == "run" else None,
            )
        for index, row in enumerate(self.rows):
            cells = [Text(its[index]) for header, its in self.cells.items() if header in headers]
            made.add_row(*cells, style="bold" if row.baseline else "")
        return made

    def _longest(self, header: str) -> int:
        return max(Text(text).cell_len for text in (header, *self.cells[header]))


def _needed_by(rows: Sequence[Row]) -> list[str]:
    """Return the columns without which a run that did not finish, or met NaN, would look like one that is well."""
    unfinished = any(row.status != "done" or row.steps != row.planned_steps for row in rows if row.steps is not None)
    return ["steps"] * unfinished + ["NaN"] * any(row.nan_steps for row in rows)


def _caption(comparison: Comparison, sheet: _Sheet, shown: Sequence[str], left_out: Sequence[str]) -> Text:
    texts = {column.header: column.meaning for column in COLUMNS}
    lines = []
    if comparison.baseline is not None:
        lines.append("* the baseline.")
    explained = [header for header in ("val loss", "diff", "cosine", "SNR") if header in shown]
    if explained:
        lines.append(" ".join(f"{header}: {texts[header]}." for header in explained))
    if left_out:
        lines.append(f"Left out at this width: {', '.join(left_out)} (altgrad compare shows them).")
    if sheet.empty:
        lines.append(f"Not measured: {', '.join(sheet.empty)}.")
    if comparison.groups:
        lines.append("n: runs with a finite loss; mean ± standard deviation over them.")
    target = "to target" in shown or comparison.groups  # their table has that column, too
    notes = [note for note in comparison.notes if target or note != comparison.target_note]
    return Text("\n".join([*lines, *notes]), style="dim")
