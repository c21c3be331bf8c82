"""Runs side by side: what each one ended with, and how far that is from the baseline.

A rate of a run is the mean over its logged steps of the mean over layers. What was not measured is None and is shown
as ``-``, never as 0. The distance from the baseline is taken at the last step at which **both** runs have a loss, so
that an unfinished run is not compared with a baseline that trained longer, and never at step 0, where nothing is trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

from altgrad_core.analysis.runs import Run
from altgrad_core.analysis.table import table
from altgrad_core.analysis.verdict import verdict
from altgrad_core.errors import AltgradError, unknown
from altgrad_core.training.events import to_json

__all__ = ["Comparison", "Row", "compare", "table"]

LAST_TRAINING_LOSSES = 10
LossKind = Literal["validation", "training"]

# What may differ between two runs of which the number format is the question. `alerts` decides when a run stops,
# which its status shows.
_FREE = ("experiment", "name", "baseline", "recipe", "checkpoint", "probes", "alerts", "sinks", "launcher", "fork")


@attrs.frozen(kw_only=True)
class Row:
    """One run in the comparison."""

    name: str
    """The run's name; with the experiment's in front when two runs share one."""
    folder: str
    """Its folder."""
    baseline: bool
    """Whether the others are compared with it."""
    recipe: str
    """Name of its recipe; empty when the configuration has none."""
    status: str
    """pending, running, done, failed, stopped or interrupted."""
    reason: str
    """Why, in the words of the run; may be empty."""
    steps: int | None
    """Last step with a training loss."""
    planned_steps: int | None
    """Steps the configuration asks for."""
    loss_kind: LossKind | None
    """``validation``; ``training`` (the mean of the last 10) when the run has no validation loss."""
    final_loss: float | None
    """Loss at the last step that has one, in nats a token; NaN when that is what the run logged."""
    final_step: int | None
    """That step; earlier than ``steps`` for a run that ended between two evaluations."""
    best_loss: float | None
    """Smallest finite loss; for ``training`` the smallest mean of 10 losses in a row."""
    compared_step: int | None
    """Step at which this run and the baseline are compared."""
    compared_at_end: bool
    """Whether that is the last step with a loss of both."""
    compared_loss: float | None
    """This run's loss there."""
    baseline_loss: float | None
    """The baseline's loss there."""
    difference_percent: float | None
    """100 * (compared_loss / baseline_loss - 1); positive is worse."""
    grad_cos_sim: float | None
    """Mean cosine similarity between the gradients and those of the FP32 shadow, -1 to 1."""
    overflow_percent: float | None
    """Elements beyond the format's largest value, in % of those cast."""
    underflow_percent: float | None
    """Non-zero elements that became zero, in % of those cast."""
    bit_stall_percent: float | None
    """Weights with a gradient whose value, as the GEMM reads it, a step does not change, in %."""
    tokens_per_s: float | None
    """Median training speed."""
    speed_ratio: float | None
    """``tokens_per_s`` over the baseline's."""
    wall_time_s: float | None
    """Time spent, over all stretches; None before the start."""
    nan_steps: int | None
    """Logged steps with a training loss or gradient norm that is not finite; None before the first step."""
    alerts: int
    """Alerts raised."""
    differs_in: tuple[str, ...]
    """Keys, beside the recipe, in which the configuration differs from the baseline's."""
    verdict: str
    """The row in words."""


@attrs.frozen(kw_only=True)
class Comparison:
    """Rows in the order of the runs given, and what they are compared with."""

    rows: tuple[Row, ...]
    """One for each run."""
    baseline: Row | None
    """The baseline's row, None when there is none."""
    notes: tuple[str, ...]
    """What a reader must know to read the rows right."""

    @property
    def verdicts(self) -> tuple[str, ...]:
        """Each run in words, in the order of the rows."""
        return tuple(row.verdict for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types only: missing values are None, NaN and infinities are strings as in events.jsonl."""
        rows = [{key: _plain(value) for key, value in attrs.asdict(row).items()} for row in self.rows]
        return {"baseline": self.baseline.name if self.baseline else None, "runs": rows, "notes": list(self.notes)}


def compare(runs: Sequence[Run], baseline: Run | str | None = None) -> Comparison:
    """Compare ``runs`` with ``baseline``: one of them, or its name; by default the one whose configuration says so."""
    if not runs:
        raise AltgradError("Expected at least one run to compare, got none.")
    names = _names(runs)
    notes = []
    base = _baseline(runs, names, baseline)
    marked = [name for run, name in zip(runs, names, strict=True) if run.baseline]
    if base is None:
        if len(runs) > 1:
            notes.append("No run is the baseline, so no differences are given.")
    elif baseline is None and len(marked) > 1:
        notes.append(f"Several runs are marked as baseline ({', '.join(marked)}); compared with the first.")
    plain = [_row(run, name, base) for run, name in zip(runs, names, strict=True)]
    base_row = next((row for row in plain if row.baseline), None)
    rows = tuple(attrs.evolve(row, verdict=verdict(row, None if row.baseline else base_row)) for row in plain)
    if any(row.loss_kind == "training" for row in rows):
        notes.append(
            f"Runs marked 'train' have no validation loss; theirs is the mean of the last {LAST_TRAINING_LOSSES} "
            "training losses."
        )
    if len({row.loss_kind for row in rows if row.loss_kind}) > 1:
        notes.append("Training and validation losses are not compared with each other.")
    if base is not None and any(row.difference_percent is not None and not row.baseline for row in rows):
        notes.append("Each run is a single training: repeat with other seeds before trusting a small difference.")
    notes += [f"{run.name} is a fork of {run.fork}." for run in runs if run.fork]
    return Comparison(rows=rows, baseline=next((row for row in rows if row.baseline), None), notes=tuple(notes))


def _names(runs: Sequence[Run]) -> list[str]:
    """Return names that tell the runs apart: with the experiment in front, then the folder, as far as needed."""
    for names in ([run.name for run in runs], [f"{run.experiment}/{run.name}" for run in runs]):
        if len(set(names)) == len(names):
            return names
    names = [str(run.folder) for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise AltgradError(f"Expected different runs to compare, got {twice} more than once.")
    return names


def _baseline(runs: Sequence[Run], names: Sequence[str], wanted: Run | str | None) -> Run | None:
    if wanted is None:
        return next((run for run in runs if run.baseline), None)
    if isinstance(wanted, Run):
        if not any(run is wanted for run in runs):
            raise AltgradError(
                f"Expected the baseline among the runs compared ({', '.join(names)}), got {wanted.name}."
            )
        return wanted
    found = [run for run, name in zip(runs, names, strict=True) if wanted in (name, run.name, str(run.folder))]
    if not found:
        raise AltgradError(unknown("baseline", wanted, names))
    if len(found) > 1:
        raise AltgradError(f"Expected one baseline; '{wanted}' names {len(found)} of the runs: {', '.join(names)}.")
    return found[0]


def _row(run: Run, name: str, base: Run | None) -> Row:
    kind, steps, losses = _losses(run)
    compared_step = compared_loss = baseline_loss = difference = speed_ratio = None
    at_end = False
    if base is not None and base is not run:
        base_kind, base_steps, base_losses = _losses(base)
        common = sorted({*steps} & {*base_steps} - {0}) if kind == base_kind else []
        if common:
            compared_step = common[-1]
            at_end = compared_step == steps[-1] == base_steps[-1]
            compared_loss = losses[steps.index(compared_step)]
            baseline_loss = base_losses[base_steps.index(compared_step)]
            if math.isfinite(compared_loss) and math.isfinite(baseline_loss) and baseline_loss > 0:
                difference = 100 * (compared_loss / baseline_loss - 1)
        if run.tokens_per_s is not None and base.tokens_per_s:
            speed_ratio = run.tokens_per_s / base.tokens_per_s
    return Row(
        name=name,
        folder=str(run.folder),
        baseline=run is base,
        recipe=str(run.config.get("recipe", {}).get("name", "")),
        status=run.status,
        reason=run.reason,
        steps=run.last_step,
        planned_steps=run.planned_steps,
        loss_kind=kind,
        final_loss=losses[-1] if losses else None,
        final_step=steps[-1] if steps else None,
        best_loss=min((loss for loss in losses if math.isfinite(loss)), default=None),
        compared_step=compared_step,
        compared_at_end=at_end,
        compared_loss=compared_loss,
        baseline_loss=baseline_loss,
        difference_percent=difference,
        grad_cos_sim=_mean(run, "grad_cos_sim"),
        overflow_percent=_mean(run, "overflow_rate", 100),
        underflow_percent=_mean(run, "underflow_rate", 100),
        bit_stall_percent=_mean(run, "bit_stall_rate", 100),
        tokens_per_s=run.tokens_per_s,
        speed_ratio=speed_ratio,
        wall_time_s=run.wall_time_s if run.stretches else None,
        nan_steps=_nan_steps(run),
        alerts=len(run.alerts),
        differs_in=() if base is None or base is run else _differences(run.config, base.config),
        verdict="",
    )


def _losses(run: Run) -> tuple[LossKind | None, list[int], list[float]]:
    """Return the losses a run is judged by: validation, else the mean of the last 10 training losses at each step."""
    steps, losses = run.metrics("val/loss")
    if steps:
        return "validation", steps, losses
    steps, losses = run.metrics("train/loss")
    if not steps:
        return None, [], []
    width = min(LAST_TRAINING_LOSSES, len(losses))
    means = [math.fsum(losses[i - width : i]) / width if _finite(losses[i - width : i]) else math.nan
             for i in range(width, len(losses) + 1)]  # fmt: skip
    return "training", steps[width - 1 :], means


def _finite(values: Sequence[float]) -> bool:
    return all(math.isfinite(value) for value in values)


def _mean(run: Run, metric: str, factor: float = 1) -> float | None:
    """Return the mean of the metric's finite values; a NaN step, counted apart, would hide all the others."""
    values = [value for value in run.metrics(metric)[1] if math.isfinite(value)]
    return factor * math.fsum(values) / len(values) if values else None


def _nan_steps(run: Run) -> int | None:
    counted = run.metrics("train/skipped_updates")[1]
    if counted:  # knows of the steps between logged ones, too
        return int(counted[-1])
    watched = ("train/loss", "train/grad_norm")
    logged = [[values[name] for name in watched if name in values] for values in run.values.values()]
    logged = [values for values in logged if values]
    return sum(not _finite(values) for values in logged) if logged else None


def _differences(config: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[str, ...]:
    ours, theirs = _flat(config), _flat(base)
    keys = [key for key in dict.fromkeys([*theirs, *ours]) if key.split(".")[0] not in _FREE]
    return tuple(key for key in keys if ours.get(key) != theirs.get(key))


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return to_json(value)
    return list(value) if isinstance(value, tuple) else value
