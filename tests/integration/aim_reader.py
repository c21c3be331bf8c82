"""Reads an Aim repository back through Aim's own classes, as a user's script does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from altgrad_aim.names import from_aim

if TYPE_CHECKING:
    from aim import Run


def aim_runs(place: Path) -> dict[str, Run]:
    """Return the runs that queries find in the repository, by name."""
    from aim import Repo

    return {run.name: run for run in Repo.from_path(str(place)).iter_runs()}


def aim_rows(run: Run) -> list[tuple[int, str, float]]:
    """Return (step, metric, value) of all metrics of a run."""
    rows = []
    for sequence in run.metrics():
        steps, (values, _, _) = sequence.data.items_list()
        metric = from_aim(sequence.name, sequence.context.to_dict())
        rows += [(step, metric, value) for step, value in zip(steps, values, strict=True)]
    return rows
