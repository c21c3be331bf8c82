"""What a tracker shows of a run beside its metrics: the settings it was given, and how it ended. For sinks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import tomli

from altgrad_core.analysis.rows import dotted
from altgrad_core.analysis.runs import CONFIG, ENVIRONMENT, Run, load_experiment_runs
from altgrad_core.errors import AltgradError
from altgrad_core.training.events import SIMULATED, Event

# Of a row of the comparison, what one number or word for the whole run can be.
_TOLD = (
    "steps", "loss_kind", "final_loss", "final_step", "best_loss", "compared_step", "baseline_loss", "difference_percent",
    "grad_cos_sim", "overflow_percent", "underflow_percent", "bit_stall_percent", "tokens_per_s", "wall_time_s", "nan_steps",
    "alerts", "verdict",
)  # fmt: skip


def settings_of(folder: Path) -> dict[str, Any]:
    """Return a run's ``run.toml`` as tables, its ``env.json`` as ``environment``; without the options of sinks."""
    settings = tomli.loads((folder / CONFIG).read_text(encoding="utf-8"))
    settings.pop("sink", None)
    if (folder / ENVIRONMENT).exists():
        settings["environment"] = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    return settings


def flat(table: Mapping[str, Any]) -> dict[str, bool | float | str]:
    """Return nested tables as one, with dotted keys: ``train.steps``. An array is its text as JSON."""
    return {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value, default=str)
        for key, value in dotted(table).items()
    }


def as_ended(run: Run, ended: Event) -> Run:
    """Return a run whose worker has told its last ``status`` event but still holds its folder, as it will be read later."""
    return attrs.evolve(run, status=ended["status"], reason=ended.get("reason") or "")


def outcome(folder: Path, ended: Event) -> dict[str, float | str]:
    """Return how a run ended, in the terms of the comparison (``altgrad_core.analysis.compare.Row``).

    ``ended`` is its last ``status`` event. The run is compared as ``altgrad compare`` does with all runs of the experiment, as
    far as these have come when this is asked; in a simulation less is known and told. Other runs whose folder cannot be read
    are left out, and named as ``left_out``. Raises ``AltgradError`` when the run's own folder is damaged.
    """
    told: dict[str, float | str] = {"status": ended["status"], "reason": ended.get("reason") or ""}
    if ended.get(SIMULATED):
        return told
    from altgrad_core.analysis.compare import compare

    unreadable: dict[str, str] = {}
    found = load_experiment_runs(folder.parent, unreadable)
    if folder.name in unreadable:
        raise AltgradError(unreadable[folder.name])
    if unreadable:
        told["left_out"] = f"cannot be read, and so are not compared with: {', '.join(unreadable)}"
    runs = [as_ended(run, ended) if run.folder.name == folder.name else run for run in found]
    (row,) = [row for run, row in zip(runs, compare(runs).rows, strict=True) if run.folder.name == folder.name]
    if row.compared_with is not None:
        told["baseline"] = row.compared_with
    facts = {key: getattr(row, key) for key in _TOLD}
    return told | {key: value for key, value in facts.items() if value is not None}
