"""A row of the comparison in words, with the evidence, and no more than the evidence allows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from altgrad_core.analysis.table import percent

if TYPE_CHECKING:
    from altgrad_core.analysis.rows import Row

# Mean cosine to the FP32 gradient. 0.99 is an angle of 8 degrees, 0.95 of 18, 0.7 of 45.
_DIRECTIONS = (
    (0.99, "its gradients point the same way as in FP32"),
    (0.95, "its gradients point nearly the same way as in FP32"),
    (0.70, "its gradients turn away from those of FP32"),
    (-1.01, "its gradients have little to do with those of FP32"),
)
_MEASURED = {
    "grad_cos_sim": "gradients",
    "overflow_percent": "overflow",
    "underflow_percent": "underflow",
    "bit_stall_percent": "bit stall",
}
_EQUAL_PERCENT = 0.05
_KEYS = 4  # that are named of a configuration


def verdict(row: Row, baseline: Row | None) -> str:
    """Return one or more sentences on ``row``, compared with ``baseline`` when there is one (and it is another run)."""
    if row.steps is None:
        if row.status == "failed":
            return f"{row.name} failed before its first step{_because(row)}."
        return f"{row.name} has not logged a step yet (status: {row.status}{_because(row)})."
    sentences = [
        _trouble(row),
        _loss(row, None if baseline is None else baseline.name),
        _evidence(row, baseline),
        _alert(row),
        _caveat(row, baseline),
        _other_steps(row, baseline),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _trouble(row: Row) -> str:
    """Return what went wrong, or is not finished: that comes before any number."""
    nan = f"{_counted(row.nan_steps, 'step')} with NaN or infinity" if row.nan_steps else ""
    if row.status == "done":
        return f"{row.name} had {nan}." if nan else ""
    at = f"step {row.steps}" + (f" of {row.planned_steps}" if row.planned_steps is not None else "")
    if row.status == "running":
        return f"{row.name} is unfinished: it is running, at {at}{f', after {nan}' if nan else ''}."
    words = {"failed": "failed", "stopped": "was stopped", "interrupted": "is unfinished: it was interrupted"}
    after = f" after {nan}" if nan else ""
    return f"{row.name} {words.get(row.status, f'is {row.status}')} at {at}{after}{_because(row)}."


def _because(row: Row) -> str:
    if row.reason and row.status == "stopped":  # what the alert said, in sentences
        return f": {row.reason.rstrip('.')}"
    return f" ({row.reason.rstrip('.')})" if row.reason else ""


def _loss(row: Row, baseline: str | None) -> str:
    if row.final_loss is None:
        return ""
    kind = "validation loss" if row.loss_kind == "validation" else "mean of the last training losses"
    final = f"{kind} of {_number(row.final_loss)}"
    if row.final_step is not None and row.final_step <= row.first_step:
        return f"Its only {final} is from step {row.final_step}, before it was trained."
    if row.final_step != row.steps:
        final += f" at step {row.final_step}"
    best = ""
    if row.best_loss is not None and row.best_loss != row.final_loss:
        best = f", {_number(row.best_loss)} at best"
    if row.baseline:
        return f"{row.name}, the baseline, {'ends with' if row.status == 'done' else 'has'} a {final}{best}."
    if baseline is None:
        return f"{row.name} has a {final}{best}; there is no baseline to compare it with."
    if row.compared_loss is None or row.baseline_loss is None:
        return f"{row.name} has a {final}; {baseline} has none at the same step to compare it with."
    losses = f"{kind} {_number(row.compared_loss)} against {_number(row.baseline_loss)}"
    if row.difference_percent is None:
        lost = baseline if math.isfinite(row.compared_loss) else row.name
        return f"The loss of {lost} is not a finite number at step {row.compared_step} ({losses})."
    side = "above" if row.difference_percent > 0 else "below"
    away = f"{percent(abs(row.difference_percent))} {side}"
    if abs(row.difference_percent) < _EQUAL_PERCENT:
        away = "level with"
    if row.compared_at_end and row.status == "done":
        return f"{row.name} ends {away} {baseline} ({losses})."
    return (
        f"At step {row.compared_step}, the last at which both have a loss, {row.name} is {away} {baseline} ({losses})."
    )


def _evidence(row: Row, baseline: Row | None) -> str:
    # Of a run that did not get through, one early step is no evidence of how it fared.
    once = row.measured_once if row.status != "done" or row.nan_steps else {}
    clauses = []
    if row.grad_cos_sim is not None and "grad_cos_sim" not in once:
        words = next(text for least, text in _DIRECTIONS if row.grad_cos_sim >= least)
        where = ", where they are finite," if row.nan_steps else ""
        words = words.replace("its gradients", f"its gradients{where}")
        snr = row.grad_snr_db
        noise = f", SNR {snr:.1f} dB" if snr is not None and math.isfinite(snr) else ""
        clauses.append(f"{words} (mean cosine {row.grad_cos_sim:.3f}{noise})")
    rates = [
        f"{percent(value)} {what}"
        for value, what in ((row.overflow_percent, "overflow"), (row.underflow_percent, "underflow"))
        if value is not None and f"{what}_percent" not in once
    ]
    if rates:
        clauses.append(f"{' and '.join(rates)} in its casts")
    if row.bit_stall_percent is not None and "bit_stall_percent" not in once:
        against = ""
        if baseline is not None and baseline.bit_stall_percent is not None:
            against = f", {percent(baseline.bit_stall_percent)} in {baseline.name}"
        clauses.append(f"a step leaves {percent(row.bit_stall_percent)} of the weights unmoved (bit stall{against})")
    for step in sorted(set(once.values())):
        what = [words for field, words in _MEASURED.items() if once.get(field) == step]
        clauses += [f"measured at step {step} only: {', '.join(what)}"] if what else []
    text = "; ".join(clauses)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _alert(row: Row) -> str:
    if row.first_alert is None or row.nan_steps:  # a run that met NaN says so first of all
        return ""
    more = f", the first of {row.alerts}" if row.alerts > 1 else ""
    return f"Alert at step {row.first_alert_step}: {row.first_alert.replace('_', ' ')}{more}."


def _caveat(row: Row, baseline: Row | None) -> str:
    if not row.differs_in or baseline is None:
        return ""
    if row.differs_in == ("seed",) and row.recipe == baseline.recipe:
        return f"The recipe is that of {baseline.name}: this is what another seed does."
    shown = ", ".join(row.differs_in[:_KEYS])
    if len(row.differs_in) > _KEYS:
        shown += f" and {len(row.differs_in) - _KEYS} more keys"
    return f"Not the format alone: it also differs from {baseline.name} in {shown}."


def _other_steps(row: Row, baseline: Row | None) -> str:
    """Return the sentence on means that two runs have over different steps, for a fork."""
    first = 0 if baseline is None else baseline.first_step
    if baseline is None or row.first_step == first:
        return ""
    return (
        f"Its means are of the steps after {row.first_step}, those of {baseline.name} of all after {first}, so that they "
        "differ also where the runs do not."
    )


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "NaN" if math.isnan(value) else "infinity"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
