"""What happened when: the alerts of each run, and which run branched off which, over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from altgrad_core.analysis.figures import GRID, TEXT, drawing, new_axes, styles, to_svg
from altgrad_core.analysis.report.figure import Drawn, Figure
from altgrad_core.analysis.series import csv_text, data_uri

MOST_ROWS = 30
_WIDTH, _ROW, _REST = 5.2, 0.24, 0.75  # inches
_MOST_LETTERS = 28  # of a row's name
_MARKERS = ("o", "s", "^", "D", "v", "X", "P", "<", "*", ">")


def alerts_figure(drawn: Sequence[Drawn]) -> Figure | None:
    """Return the alerts as marks: a row a run, a look for each kind; None when none was raised."""
    raised = [its for its in drawn if its.run.alerts]
    if not raised:
        return None
    kinds = list(dict.fromkeys(str(event["alert"]) for its in raised for event in its.run.alerts))
    # Who raised most has the most to tell.
    shown = raised if len(raised) <= MOST_ROWS else sorted(raised, key=lambda its: -len(its.run.alerts))[:MOST_ROWS]
    looks = styles([False] * len(kinds))
    salt = "alerts"
    with drawing(salt):
        figure, axes = new_axes(_WIDTH, _ROW * len(shown) + _REST + 0.2 * ((len(kinds) + 2) // 3))
        for index, kind in enumerate(kinds):
            aside = 0.5 * ((index + 0.5) / len(kinds) - 0.5)  # alerts of one step do not hide each other
            points = [
                (event["step"], row + aside)
                for row, its in enumerate(shown)
                for event in its.run.alerts
                if event["alert"] == kind
            ]
            axes.plot(
                [step for step, _ in points], [row for _, row in points], linestyle="none", markersize=5,
                marker=_MARKERS[index % len(_MARKERS)], color=looks[index].placeholder, label=kind.replace("_", " "),
                markeredgewidth=0,
            )  # fmt: skip
        last = max((its.run.last_step or 0 for its in drawn), default=0)
        axes.set_xlim(0, max([last, *(event["step"] for its in shown for event in its.run.alerts)]) * 1.02 + 1)
        _name_rows(axes, [its.label for its in shown])
        axes.set_xlabel("step")
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=8.5, handletextpad=0.1,
            borderaxespad=0, columnspacing=1.2,
        )  # fmt: skip
        svg = to_svg(figure, looks, salt)
    rows = [[its.label, event["step"], event["alert"]] for its in raised for event in its.run.alerts]
    left_out = f"The {MOST_ROWS} of {len(raised)} runs with the most alerts. " if len(raised) > MOST_ROWS else ""
    return Figure(
        key=salt,
        title="Alerts over the steps",
        caption=f"{left_out}An alert is raised once an episode.",
        svg=Markup(svg),
        csv=data_uri(csv_text([["run", "step", "alert"], *rows])),
    )


def lineage_figure(drawn: Sequence[Drawn]) -> Figure | None:
    """Return each run as a line from its first step to its last, forks hanging from their parents; None without forks."""
    names = {f"{its.run.experiment}/{its.run.name}": its for its in drawn}
    forks = [its for its in drawn if "fork" in its.run.config]
    if not forks:
        return None
    involved = {its.label for its in forks}
    involved |= {names[parent].label for its in forks if (parent := its.run.config["fork"]["run"]) in names}
    shown = _depth_first([its for its in drawn if its.label in involved], names)[:MOST_ROWS]
    places = {its.label: row for row, its in enumerate(shown)}
    salt = "lineage"
    with drawing(salt):
        figure, axes = new_axes(_WIDTH, _ROW * len(shown) + _REST)
        for row, its in enumerate(shown):
            fork = its.run.config.get("fork")
            start = 0 if fork is None else int(fork["step"])
            axes.plot([start, max(start, its.run.last_step or start)], [row, row], color=TEXT, linewidth=1.6)
            parent = names.get(fork["run"]) if fork else None
            if parent is not None and parent.label in places:
                axes.plot([start, start], [places[parent.label], row], color=TEXT, linewidth=0.8)
            if fork is not None:
                axes.plot([start], [row], color=TEXT, marker="o", markersize=4)
        axes.set_xlim(0, 1.02 * max(its.run.last_step or 0 for its in shown) + 1)
        _name_rows(axes, [its.label for its in shown])
        axes.set_xlabel("step")
        svg = to_svg(figure, (), salt)
    rows = []
    for its in shown:
        fork = its.run.config.get("fork", {})
        rows.append([its.label, fork.get("run", ""), fork.get("step", ""), its.run.last_step or ""])
    gone = sorted({str(its.run.config["fork"]["run"]) for its in forks} - set(names))
    elsewhere = f" Not in this experiment any more: {', '.join(gone)}." if gone else ""
    left_out = f" The first {MOST_ROWS} of {len(involved)} runs." if len(involved) > MOST_ROWS else ""
    return Figure(
        key=salt,
        title="Which run branched off which",
        caption=f"A dot is a fork: it begins with the weights that its parent had at that step.{elsewhere}{left_out}",
        svg=Markup(svg),
        csv=data_uri(csv_text([["run", "parent", "after step", "last step"], *rows])),
    )


def _depth_first(drawn: Sequence[Drawn], names: dict[str, Drawn]) -> list[Drawn]:
    """Return the runs so that each fork follows its parent, or the parent's earlier forks."""
    children: dict[str, list[Drawn]] = {}
    roots: list[Drawn] = []
    for its in drawn:
        parent = names.get(its.run.config["fork"]["run"]) if "fork" in its.run.config else None
        siblings = roots if parent is None else children.setdefault(parent.label, [])
        siblings.append(its)
    found: list[Drawn] = []
    while roots:
        its = roots.pop(0)
        found.append(its)
        roots = children.pop(its.label, []) + roots
    return found


def _name_rows(axes: Any, labels: Sequence[str]) -> None:
    # What tells the runs of a sweep apart stands at the end of their names.
    short = [label if len(label) <= _MOST_LETTERS else f"{label[:8]}…{label[9 - _MOST_LETTERS :]}" for label in labels]
    axes.set_yticks(range(len(labels)), short, fontsize=8.5)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
