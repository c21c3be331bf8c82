"""Settings, facts and environments of the runs: what all share once, and what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from altgrad_core.analysis.settings import side_by_side

MOST_COLUMNS = 8
"""Runs that stand beside each other; of more each is a row."""


@attrs.frozen(kw_only=True)
class FactTable:
    """A table of facts: either a column a run, or, of many runs, a row a run."""

    title: str
    columns: Sequence[str]
    """Heads of the columns; empty when there is one run."""
    rows: Sequence[tuple[str, Sequence[str], bool]]
    """Head of the row, cells, and whether one cell stands for all columns."""
    head: str = ""
    """Of the rows' heads."""


def fact_tables(title: str, labels: Sequence[str], tables: Sequence[Mapping[str, Any]]) -> list[FactTable]:
    """Return the tables for the runs ``labels``; none when there is nothing to tell."""
    found = side_by_side(tables)
    if not found:
        return []
    if len(labels) <= MOST_COLUMNS:
        return [FactTable(title=title, columns=labels if len(labels) > 1 else [], rows=found)]
    same = [(key, values[:1], True) for key, values, all_same in found if all_same]
    differing = [(key, values) for key, values, all_same in found if not all_same]
    made = [FactTable(title=f"{title}: the same in all", columns=[], rows=same)] if same else []
    if differing:
        rows = [(label, [values[i] for _, values in differing], False) for i, label in enumerate(labels)]
        keys = [key for key, _ in differing]
        made.append(FactTable(title=f"{title}: what differs", columns=keys, rows=rows, head="run"))
    return made
