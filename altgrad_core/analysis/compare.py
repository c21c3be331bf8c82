"""Runs side by side: what each one ended with, and how far that is from the baseline.

Runs that differ in nothing but the seed make a group. Where the baseline was trained with several seeds, too, a run is
compared with the baseline's run of its own seed, which saw the same batches from the same first weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs

from altgrad_core.analysis.rows import (
    LAST_TRAINING_LOSSES,
    LossKind,
    Row,
    judged_losses,
    make_row,
    same_machine,
    trained_losses,
)
from altgrad_core.analysis.runs import Run, names_of
from altgrad_core.analysis.seeds import Group, make_groups, same_but_seed
from altgrad_core.analysis.table import blocks, seeds_table, table
from altgrad_core.analysis.verdict import verdict
from altgrad_core.errors import AltgradError, unknown
from altgrad_core.training.events import to_json

__all__ = ["Comparison", "Group", "Row", "blocks", "compare", "seeds_table", "table"]

# The target is a little above the baseline's own end, since a run that is its equal but for noise misses that every
# second time; and its steps say how much longer a format takes, where the losses only say that it is behind.
TARGET_PERCENT = 1.0
_DAY_S = 24 * 3600


@attrs.frozen(kw_only=True)
class Comparison:
    """Rows in the order of the runs given, and what they are compared with."""

    rows: tuple[Row, ...]
    """One for each run."""
    groups: tuple[Group, ...]
    """Runs that differ only in their seed, where there are two or more."""
    baseline: Row | None
    """The baseline's row, None when there is none."""
    loss_target: float | None
    """Loss of which ``steps_to_target`` speaks, in nats a token; None without a baseline that has a loss."""
    notes: tuple[str, ...]
    """What a reader must know to read the rows right."""
    target_note: str | None
    """The one of the notes that says what ``steps_to_target`` counts to."""

    @property
    def verdicts(self) -> tuple[str, ...]:
        """Each group in words, then each run, in the order of the rows."""
        return (*(group.sentence for group in self.groups), *(row.verdict for row in self.rows))

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types only: missing values are None, NaN and infinities are strings as in events.jsonl."""
        return {
            "baseline": self.baseline.name if self.baseline else None,
            "loss_target": self.loss_target,
            "runs": [_plain_fields(row) for row in self.rows],
            "groups": [_plain_fields(group) for group in self.groups],
            "notes": list(self.notes),
        }


def compare(runs: Sequence[Run], baseline: Run | str | None = None, *, loss_target: float | None = None) -> Comparison:
    """Compare ``runs`` with ``baseline``: one of them, or its name; by default the one whose configuration says so.

    ``loss_target``, in nats a token, is what ``steps_to_target`` counts to: by default 1 % above the baseline's final loss.
    """
    if not runs:
        raise AltgradError("Expected at least one run to compare, got none.")
    if loss_target is not None and not (math.isfinite(loss_target) and loss_target > 0):
        raise AltgradError(
            f"Expected a target loss above 0 and finite, in nats a token such as 2.4; got {loss_target:g}."
        )
    names = names_of(runs)
    base = _baseline(runs, names, baseline)
    target = _default_target(base) if loss_target is None else loss_target
    partners = _partners(runs, base)
    plain = []
    for run, name, partner in zip(runs, names, partners, strict=True):
        partner_name = None if partner is None else names[runs.index(partner)]
        # The default is a loss of the baseline's kind, and says nothing of losses of the other.
        its = target if loss_target is not None or base is None or _kind(run) == _kind(base) else None
        plain.append(make_row(run, name, partner, partner_name, baseline=run is base, target=its))
    by_name = {row.name: row for row in plain}
    rows = tuple(attrs.evolve(row, verdict=verdict(row, by_name.get(row.compared_with or ""))) for row in plain)
    groups = make_groups(runs, rows)
    target_note = _target_note(rows, target, given=loss_target is not None)
    return Comparison(
        rows=rows,
        groups=groups,
        baseline=next((row for row in rows if row.baseline), None),
        loss_target=target,
        notes=tuple(_notes(runs, rows, groups, chosen=baseline is not None, target_note=target_note)),
        target_note=target_note,
    )


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


def _partners(runs: Sequence[Run], base: Run | None) -> list[Run | None]:
    """Return what each run is compared with: the baseline's run of its seed, the baseline, or nothing."""
    if base is None:
        return [None] * len(runs)
    place = next(index for index, run in enumerate(runs) if run is base)
    family = next(places for places in same_but_seed(runs) if place in places)
    by_seed = {runs[index].seed: runs[index] for index in family if trained_losses(runs[index])}
    return [
        None if run is base else base if index in family else by_seed.get(run.seed, base)
        for index, run in enumerate(runs)
    ]


def _default_target(base: Run | None) -> float | None:
    """Return what is 1 % above the baseline's last loss; None when it has none, or no positive number."""
    if base is None:
        return None
    losses = trained_losses(base)
    last = losses[max(losses)] if losses else math.nan
    return last * (1 + TARGET_PERCENT / 100) if math.isfinite(last) and last > 0 else None


def _kind(run: Run) -> LossKind | None:
    return judged_losses(run)[0]


def _notes(
    runs: Sequence[Run],
    rows: Sequence[Row],
    groups: Sequence[Group],
    *,
    chosen: bool,
    target_note: str | None,
) -> list[str]:
    notes = []
    base = next((row for row in rows if row.baseline), None)
    several = {name for group in groups for name in group.runs}
    marked = [row.name for run, row in zip(runs, rows, strict=True) if run.baseline]
    if base is None:
        if len(runs) > 1:
            notes.append("No run is the baseline, so no differences are given.")
    elif not chosen and not any(set(marked) <= set(group.runs) for group in groups) and len(marked) > 1:
        notes.append(f"Several runs are marked as baseline ({', '.join(marked)}); compared with the first.")
    if any(row.loss_kind == "training" for row in rows):
        notes.append(
            f"Runs marked 'train' have no validation loss; theirs is the mean of the last {LAST_TRAINING_LOSSES} "
            "training losses."
        )
    if len({row.loss_kind for row in rows if row.loss_kind}) > 1:
        notes.append("Training and validation losses are not compared with each other.")
    compared = [row for row in rows if row.difference_percent is not None and not row.baseline]
    if base is not None and any(row.compared_with != base.name for row in compared):
        notes.append("Each run is compared with the baseline's run of the same seed, where there is one.")
    if single := [row.name for row in compared if row.name not in several]:
        which = (
            "Each run is"
            if not groups
            else f"{single[0]} is"
            if len(single) == 1
            else f"Each of {', '.join(single)} is"
        )
        notes.append(f"{which} a single training: repeat with other seeds before trusting a small difference.")
    notes += [] if target_note is None else [target_note]
    notes += _notes_on_speed(runs, rows)
    return notes + [f"{run.name} is a fork of {run.fork}." for run in runs if run.fork]


def _notes_on_speed(runs: Sequence[Run], rows: Sequence[Row]) -> list[str]:
    """Return why a speed has no ratio, or a doubtful one: it was measured on another machine, or on another day."""
    by_name = {row.name: run for run, row in zip(runs, rows, strict=True)}
    elsewhere, apart = [], []
    for run, row in zip(runs, rows, strict=True):
        base = by_name.get(row.compared_with or "")
        if base is None or run.tokens_per_s is None or base.tokens_per_s is None:
            continue
        if not same_machine(run, base):
            elsewhere.append(row.name)
        elif abs((run.started_s or 0.0) - (base.started_s or 0.0)) > _DAY_S:
            apart.append(row.name)
    notes = []
    if elsewhere:
        notes.append(
            f"No 'speed' for {', '.join(elsewhere)}: trained on another machine than what it is compared with."
        )
    if apart:
        notes.append(
            f"'speed' of {', '.join(apart)}: begun more than a day apart from what it is compared with, when the machine may "
            "have had other work."
        )
    return notes


def _target_note(rows: Sequence[Row], target: float | None, *, given: bool) -> str | None:
    if target is None or all(row.steps_to_target is None for row in rows):
        return None
    base = next((row for row in rows if row.baseline), None)
    if given or base is None:
        why = "as asked for"
    else:
        which = "final loss" if base.status == "done" else f"loss at step {base.final_step}"
        why = f"{TARGET_PERCENT:g} % above the {which} of {base.name}"
    return f"'to target' is the first step with a loss of at most {target:.4f}, {why}."


def _plain_fields(item: Row | Group) -> dict[str, Any]:
    return {key: _plain(value) for key, value in attrs.asdict(item, recurse=False).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return to_json(value)
    return list(value) if isinstance(value, tuple) else value
