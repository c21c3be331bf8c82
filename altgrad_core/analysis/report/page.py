"""The page itself: what the parts have made, laid out by ``report.html.jinja``.

The same run folders give the same bytes: the page holds no time of its own making and no random ids.
"""

from __future__ import annotations

import datetime
import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from altgrad_core.analysis.compare import Comparison, compare
from altgrad_core.analysis.figures import REST, Style
from altgrad_core.analysis.report.facts import fact_tables
from altgrad_core.analysis.report.figure import Drawn
from altgrad_core.analysis.report.grids import grids
from altgrad_core.analysis.report.layers import layer_sections
from altgrad_core.analysis.report.machine import machine_figures
from altgrad_core.analysis.report.many import MOST_LOOKS, drawn_runs, tiles
from altgrad_core.analysis.report.recipes import recipe_uses
from altgrad_core.analysis.report.steps import step_figures
from altgrad_core.analysis.report.timeline import alerts_figure, lineage_figure
from altgrad_core.analysis.runs import Run, load_experiment_runs
from altgrad_core.analysis.settings import without
from altgrad_core.analysis.table import COLUMNS, MISSING
from altgrad_core.files import write_whole

REPORT = "report.html"
_MOST_ALERTS = 100
_SECOND_TABLE = "tokens/s"  # the first of its columns


def write_report(folder: str | Path, baseline: str | None = None) -> Path:
    """Write ``report.html`` for the experiment in ``folder`` (``runs/<experiment>``) and return its path.

    ``baseline`` names the run to compare with, by default the one that the experiment marks. The file is replaced in one
    step, so that a reader never sees half of it. Raises ``AltgradError`` when the folder holds no runs, one of them is
    damaged or simulated, or there is no such ``baseline``, and ``RunFailed`` when the disk is full.
    """
    folder = Path(folder)
    text = render(load_experiment_runs(folder), baseline)
    path = folder / REPORT
    write_whole(path, text.encode(errors="backslashreplace"))  # a reason may name a file whose name is not UTF-8
    return path


def render(runs: Sequence[Run], baseline: str | None = None) -> str:
    """Return the page for ``runs`` of one experiment, in their order, compared with ``baseline`` or the one marked."""
    comparison = compare(runs, baseline)
    drawn = drawn_runs(runs, comparison)
    labels = [its.label for its in drawn]
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    source = importlib.resources.files("altgrad_core.analysis.report").joinpath("report.html.jinja").read_text("utf-8")
    said = _sentences(comparison, drawn)
    alerts = [(its, alert) for its in drawn for alert in its.run.alerts]
    return environment.from_string(source).render(
        title=runs[0].experiment,
        subtitle=_subtitle(runs, comparison),
        verdicts=[(text, look) for text, look in said if look is not REST],
        other_verdicts=[(text, look) for text, look in said if look is REST],
        notes=comparison.notes,
        tiles=tiles(drawn) if len(drawn) > MOST_LOOKS else [],
        figures=step_figures(drawn),
        sections=layer_sections(drawn),
        grids=grids(drawn),
        alerts_figure=alerts_figure(drawn),
        alerts=alerts[:_MOST_ALERTS],
        alerts_total=len(alerts),
        machine=machine_figures(drawn),
        recipes=recipe_uses(drawn),
        most_recipes=MOST_LOOKS,
        lineage=lineage_figure(drawn),
        tables=[
            *fact_tables("Settings", labels, [without(run.config, "recipe", "name", "baseline") for run in runs]),
            *fact_tables("What the runs report", labels, [without(run.facts, "environment") for run in runs]),
            *fact_tables("Environment", labels, [run.environment for run in runs]),
        ],
        **_table(drawn),
    )


def _subtitle(runs: Sequence[Run], comparison: Comparison) -> str:
    parts = [f"{len(runs)} runs" if len(runs) > 1 else "1 run"]
    parts.append(f"baseline {comparison.baseline.name}" if comparison.baseline else "no baseline")
    starts = [run.started_s for run in runs if run.started_s is not None]
    if starts:
        day = datetime.datetime.fromtimestamp(min(starts), tz=datetime.UTC)
        parts.append(f"started {day:%Y-%m-%d %H:%M} UTC")
    done = sum(run.status == "done" for run in runs)
    parts.append("all done" if done == len(runs) else f"{done} of {len(runs)} done")
    return " · ".join(parts)


def _sentences(comparison: Comparison, drawn: Sequence[Drawn]) -> list[tuple[str, Style]]:
    """Return each group of seeds, then each run, in words and with its look."""
    looks = {its.label: its.look for its in drawn}
    groups = [(group.sentence, looks[group.runs[0]]) for group in comparison.groups]
    return [*groups, *((its.row.verdict, its.look) for its in drawn)]


def _table(drawn: Sequence[Drawn]) -> dict[str, Any]:
    """Return the comparison as two tables, so that each fits a page: what was learnt, and what it cost.

    Columns of which no run has anything are left out, and named.
    """
    cells = [[column.text(its.row) for column in COLUMNS] for its in drawn]
    shown = [i for i in range(len(COLUMNS)) if any(row[i] != MISSING for row in cells)]
    second = [COLUMNS[i].header for i in range(len(COLUMNS))].index(_SECOND_TABLE)
    parts = [[i for i in shown if i < second], [0, *(i for i in shown if i >= second)]]
    return {
        "comparison": [
            (
                [COLUMNS[i] for i in part],
                [(its, [row[i] for i in part]) for its, row in zip(drawn, cells, strict=True)],
            )
            for part in parts
        ],
        "columns": [COLUMNS[i] for i in shown],
        "not_measured": [COLUMNS[i].header for i in range(len(COLUMNS)) if i not in shown],
    }
