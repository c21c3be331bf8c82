"""What one run ended with, and how far that is from the run it is compared with.

A rate of a run is the mean over its logged steps of the mean over layers. What was not measured is None and is shown
as ``-``, never as 0. The distance is taken at the last step at which **both** runs have a loss, so that an unfinished
run is not compared with one that trained longer, and never at the step a run began with, 0 or that of its fork, where
nothing of it is trained.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

from altgrad_core.analysis.runs import Run

LAST_TRAINING_LOSSES = 10
LossKind = Literal["validation", "training"]

# What may differ between two runs of which the number format is the question. `alerts` decides when a run stops,
# which its status shows.
_FREE = ("experiment", "name", "baseline", "recipe", "checkpoint", "probes", "alerts", "sink", "launcher", "fork")

# What of env.json decides how fast a training is, beside what it trains.
_MACHINE = ("platform", "device", "device_name", "cpu_threads")

# Field of a row -> metric: what is measured of gradients, casts and weights.
_EVIDENCE = {
    "grad_cos_sim": "grad_cos_sim",
    "grad_snr_db": "shadow_grad_snr_db",
    "overflow_percent": "overflow_rate",
    "underflow_percent": "underflow_rate",
    "bit_stall_percent": "bit_stall_rate",
}


@attrs.frozen(kw_only=True)
class Row:
    """One run in the comparison."""

    name: str
    """The run's name; with the experiment's in front when two runs share one."""
    folder: str
    """Its folder."""
    baseline: bool
    """Whether the others are compared with it."""
    compared_with: str | None
    """Name of the run that this one is compared with: the baseline, or the baseline's run with this run's seed."""
    recipe: str
    """Name of its recipe; empty when the configuration has none."""
    seed: int | None
    """Its seed."""
    status: str
    """pending, running, done, failed, stopped or interrupted."""
    reason: str
    """Why, in the words of the run; may be empty."""
    steps: int | None
    """Last step with a training loss."""
    first_step: int
    """Step with which it began: 0, or that of its fork."""
    planned_steps: int | None
    """Steps the configuration asks for."""
    loss_kind: LossKind | None
    """``validation``; ``training`` (the mean of the last 10) when the run has no validation loss."""
    final_loss: float | None
    """Loss at the last step that has one, in nats a token; NaN when that is what the run logged."""
    final_step: int | None
    """That step; earlier than ``steps`` for a run that ended between two evaluations."""
    best_loss: float | None
    """Smallest finite loss after ``first_step``; for ``training`` the smallest mean of 10 losses in a row."""
    compared_step: int | None
    """Step at which this run and the one it is compared with are compared."""
    compared_at_end: bool
    """Whether that is the last step with a loss of both."""
    compared_loss: float | None
    """This run's loss there."""
    baseline_loss: float | None
    """The other run's loss there."""
    difference_percent: float | None
    """100 * (compared_loss / baseline_loss - 1); positive is worse."""
    steps_to_target: int | None
    """First step with a loss at or below the comparison's ``loss_target``; None when there is none."""
    grad_cos_sim: float | None
    """Mean cosine similarity between the gradients and those of the FP32 shadow, -1 to 1."""
    grad_snr_db: float | None
    """Median signal-to-noise ratio of the gradients against those of the FP32 shadow, in dB; infinity where they are equal.
    A mean would be infinite with one such step, and without those steps it would be that of the others."""
    overflow_percent: float | None
    """Elements beyond the format's largest value, in % of those cast."""
    underflow_percent: float | None
    """Non-zero elements that became zero, in % of those cast."""
    bit_stall_percent: float | None
    """Weights with a gradient whose value, as the GEMM reads it, a step does not change, in %."""
    measured_once: Mapping[str, int]
    """Those of these fields that have a finite value at one step only -> that step."""
    tokens_per_s: float | None
    """Median training speed."""
    speed_ratio: float | None
    """``tokens_per_s`` over that of the run it is compared with; None where that was trained on another machine."""
    wall_time_s: float | None
    """Time spent, over all stretches; None before the start."""
    nan_steps: int | None
    """Logged steps with a training loss or gradient norm that is not finite; None before the first step."""
    alerts: int
    """Alerts raised."""
    first_alert: str | None
    """Name of the first one."""
    first_alert_step: int | None
    """Its step."""
    differs_in: tuple[str, ...]
    """Keys, beside the recipe, in which the configuration differs from that of the run it is compared with."""
    verdict: str
    """The row in words."""


def make_row(
    run: Run, name: str, base: Run | None, base_name: str | None, *, baseline: bool, target: float | None
) -> Row:
    """Return the row of ``run`` compared with ``base``, without its verdict; ``target`` is the loss to be reached."""
    kind, steps, losses = judged_losses(run)
    compared_step = compared_loss = baseline_loss = difference = speed_ratio = None
    at_end = False
    if base is not None:
        _, base_steps, base_losses = judged_losses(base)
        compared_step = _last_common_step(run, base)
        if compared_step is not None:
            at_end = compared_step == steps[-1] == base_steps[-1]
            compared_loss = losses[steps.index(compared_step)]
            baseline_loss = base_losses[base_steps.index(compared_step)]
            if math.isfinite(compared_loss) and math.isfinite(baseline_loss) and baseline_loss > 0:
                difference = 100 * (compared_loss / baseline_loss - 1)
        if run.tokens_per_s is not None and base.tokens_per_s and same_machine(run, base):
            speed_ratio = run.tokens_per_s / base.tokens_per_s
    trained = trained_losses(run)
    reached = (step for step, loss in trained.items() if target is not None and loss <= target)
    alert = run.alerts[0] if run.alerts else None
    return Row(
        name=name,
        folder=str(run.folder),
        baseline=baseline,
        compared_with=base_name,
        recipe=str(run.config.get("recipe", {}).get("name", "")),
        seed=run.seed,
        status=run.status,
        reason=run.reason,
        steps=run.last_step,
        first_step=run.first_step,
        planned_steps=run.planned_steps,
        loss_kind=kind,
        final_loss=losses[-1] if losses else None,
        final_step=steps[-1] if steps else None,
        best_loss=min((loss for loss in trained.values() if math.isfinite(loss)), default=None),
        compared_step=compared_step,
        compared_at_end=at_end,
        compared_loss=compared_loss,
        baseline_loss=baseline_loss,
        difference_percent=difference,
        steps_to_target=next(reached, None),
        grad_cos_sim=_mean(run, "grad_cos_sim"),
        grad_snr_db=_median(run, "shadow_grad_snr_db"),
        overflow_percent=_mean(run, "overflow_rate", 100),
        underflow_percent=_mean(run, "underflow_rate", 100),
        bit_stall_percent=_mean(run, "bit_stall_rate", 100),
        measured_once=_measured_once(run),
        tokens_per_s=run.tokens_per_s,
        speed_ratio=speed_ratio,
        wall_time_s=run.wall_time_s if run.stretches else None,
        nan_steps=_nan_steps(run),
        alerts=len(run.alerts),
        first_alert=None if alert is None else str(alert["alert"]),
        first_alert_step=None if alert is None else int(alert["step"]),
        differs_in=() if base is None else _differences(run.config, base.config),
        verdict="",
    )


def same_machine(run: Run, base: Run) -> bool:
    """Whether two runs were trained on equal machines, as far as ``env.json`` tells: by their speeds then speaks the format."""
    return all(run.environment.get(key) == base.environment.get(key) for key in _MACHINE)


def judged_losses(run: Run) -> tuple[LossKind | None, list[int], list[float]]:
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


def trained_losses(run: Run) -> dict[int, float]:
    """Return step -> loss of what ``judged_losses`` gives, less what the run began with."""
    _, steps, losses = judged_losses(run)
    return {step: loss for step, loss in zip(steps, losses, strict=True) if step > run.first_step}


def _last_common_step(run: Run, base: Run) -> int | None:
    """Return the last step at which both have a loss of one kind that their training had a part in."""
    if judged_losses(run)[0] != judged_losses(base)[0]:
        return None
    return max(trained_losses(run).keys() & trained_losses(base).keys(), default=None)


def dotted(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one, their keys joined by dots: ``train.steps``."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found.update(dotted(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def _finite(values: Sequence[float]) -> bool:
    return all(math.isfinite(value) for value in values)


def _mean(run: Run, metric: str, factor: float = 1) -> float | None:
    """Return the mean of the metric's finite values; a NaN step, counted apart, would hide all the others."""
    values = [value for value in run.metrics(metric)[1] if math.isfinite(value)]
    return factor * math.fsum(values) / len(values) if values else None


def _median(run: Run, metric: str) -> float | None:
    values = [value for value in run.metrics(metric)[1] if not math.isnan(value)]
    return statistics.median_high(values) if values else None  # the middle of -inf and inf would be NaN


def _measured_once(run: Run) -> dict[str, int]:
    found = {}
    for field, metric in _EVIDENCE.items():
        steps = [step for step, value in zip(*run.metrics(metric), strict=True) if math.isfinite(value)]
        if len(steps) == 1:
            found[field] = steps[0]
    return found


def _nan_steps(run: Run) -> int | None:
    watched = ("train/loss", "train/grad_norm")
    logged = {step: [values[name] for name in watched if name in values] for step, values in run.values.items()}
    lost = {step: not _finite(values) for step, values in logged.items() if values and step > run.first_step}
    steps, counted = run.metrics("train/skipped_updates")
    if not counted:
        return sum(lost.values()) if lost else None
    # The count knows of the steps between logged ones, too. That of a fork may go on from the run it branched off.
    before = counted[0] - lost.get(steps[0], False) if run.first_step else 0
    return int(counted[-1] - before)


def _differences(config: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[str, ...]:
    ours, theirs = dotted(config), dotted(base)
    keys = [key for key in dict.fromkeys([*theirs, *ours]) if key.split(".")[0] not in _FREE]
    return tuple(key for key in keys if ours.get(key) != theirs.get(key))
