"""Runs that differ in nothing but the seed make one group: mean and spread of what they ended with.

A spread is the sample standard deviation (n - 1), and there is none of one run. The losses of a group are taken at the last
step at which all of its runs that are done have one: a run that ended earlier does not turn the mean into that of an early
step, it is left out and counted. Its distance from the baseline is the mean of its runs' distances, all of one step. Pairs of
the same seed saw the same batches, so that much of the noise is not in them: two or more of them are averaged alone.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Sequence

import attrs

from altgrad_core.analysis.rows import LossKind, Row, judged_losses, trained_losses
from altgrad_core.analysis.runs import Run

# What decides nothing of what is trained, and the seed.
_FREE = ("experiment", "name", "baseline", "seed", "checkpoint", "probes", "sink", "launcher")


@attrs.frozen(kw_only=True)
class Group:
    """Two or more runs that differ only in their seed."""

    name: str
    """What their names share without the seed, else the name of the first."""
    runs: tuple[str, ...]
    """Their names."""
    seeds: tuple[int | None, ...]
    """Their seeds, no two the same."""
    baseline: bool
    """Whether the baseline is one of them."""
    loss_kind: LossKind | None
    """Which losses are meant; None when those that have any do not have the same."""
    planned_steps: int | None
    """Steps their configuration asks for."""
    loss_step: int | None
    """Last step after the first at which all of them that are done have a loss; while none is done, all that have any."""
    finite: int
    """How many of them have a finite loss there; the mean of the loss is over these."""
    loss_mean: float | None
    """Mean loss there, in nats a token."""
    loss_sd: float | None
    """Standard deviation of it; None for fewer than two."""
    difference_percent: float | None
    """Mean distance from the baseline, in %; None for the baseline's own group."""
    difference_sd: float | None
    """Standard deviation of it, in percentage points."""
    compared: int
    """How many runs the distance is over."""
    compared_step: int | None
    """The step of these distances: the last at which one of the runs was compared."""
    paired: bool
    """Whether these are distances from the baseline's run of the same seed; else all are from the baseline itself."""
    reached: int
    """How many runs reached the target loss."""
    steps_to_target_mean: float | None
    """Mean of the steps that those took."""
    steps_to_target_sd: float | None
    """Standard deviation of it."""

    @property
    def sentence(self) -> str:
        """The group in words."""
        seeds = f"{len(self.runs)} seeds ({', '.join(map(str, self.seeds))})"
        if self.loss_mean is None:
            return f"{self.name} over {seeds} has no finite loss at one step that could be averaged."
        kind = "validation loss" if self.loss_kind == "validation" else "mean of the last training losses"
        lost = len(self.runs) - self.finite
        text = f"{self.name} over {seeds}: {kind} {spread(self.loss_mean, self.loss_sd, 3)} at step {self.loss_step}"
        if lost:
            text += f", without {lost} that {'has' if lost == 1 else 'have'} no finite loss there"
        if self.difference_percent is not None:
            side = "above" if self.difference_percent >= 0 else "below"
            which = "the baseline of the same seed" if self.paired else "the baseline"
            away = spread(abs(self.difference_percent), self.difference_sd, 2)
            text += f"; {away} % {side} {which}"
            if self.compared_step != self.loss_step:
                text += f" at step {self.compared_step}"
            if self.compared != self.finite:
                text += f", over {self.compared} of the {len(self.runs)} runs"
        return f"{text} (mean ± standard deviation)." if self.loss_sd is not None else f"{text}."


def spread(mean: float | None, sd: float | None, digits: int) -> str:
    """Return ``2.350 ± 0.004``; without a spread the mean alone."""
    if mean is None:
        return "-"
    return f"{mean:.{digits}f}" if sd is None else f"{mean:.{digits}f} ± {sd:.{digits}f}"


def same_but_seed(runs: Sequence[Run]) -> list[list[int]]:
    """Return the runs' places by group, in order of the first run of each; most have one.

    A run that is another one again, the seed included, is in no group with it: it has the same bits, and says nothing of the
    spread.
    """
    found: dict[str, list[int]] = {}
    repeated: list[list[int]] = []
    for index, run in enumerate(runs):
        decisive = {key: value for key, value in run.config.items() if key not in _FREE}
        places = found.setdefault(json.dumps(decisive, sort_keys=True, default=str), [])
        if any(runs[place].seed == run.seed for place in places):
            repeated.append([index])
        else:
            places.append(index)
    return sorted([*found.values(), *repeated])


def make_groups(runs: Sequence[Run], rows: Sequence[Row]) -> tuple[Group, ...]:
    """Return the groups of two or more of the runs, whose ``rows`` these are."""
    places = [its for its in same_but_seed(runs) if len(its) > 1]
    base = next((row.name for row in rows if row.baseline), None)
    return tuple(_group([runs[i] for i in its], [rows[i] for i in its], base) for its in places)


def group_name(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Return what the names of runs share without their seed, else the first of them."""
    bare = {_without_seed(run.name, run.seed) for run in runs}
    return bare.pop() if len(bare) == 1 and "" not in bare else names[0]


def _without_seed(name: str, seed: int | None) -> str:
    """Return ``e5m2`` for ``e5m2-43``, ``e5m2-seed43`` and ``seed43_e5m2``."""
    return re.sub(rf"(?:^|[-_.])(?:seed|s)?[-_.=]?{seed}(?=$|[-_.])", "", name).strip("-_.")


def _group(runs: Sequence[Run], rows: Sequence[Row], base: str | None) -> Group:
    kind, step, at = _last_losses(runs)
    baseline = any(row.baseline for row in rows)
    compared = [] if baseline else _comparable(rows, base)
    differences = [row.difference_percent for row in compared if row.difference_percent is not None]
    reached = [float(row.steps_to_target) for row in rows if row.steps_to_target is not None]
    return Group(
        name=group_name(runs, [row.name for row in rows]),
        runs=tuple(row.name for row in rows),
        seeds=tuple(row.seed for row in rows),
        baseline=baseline,
        loss_kind=kind,
        planned_steps=rows[0].planned_steps,
        loss_step=step,
        finite=len(at),
        loss_mean=_mean(at),
        loss_sd=_sd(at),
        difference_percent=_mean(differences),
        difference_sd=_sd(differences),
        compared=len(compared),
        compared_step=compared[0].compared_step if compared else None,
        paired=bool(compared) and not any("seed" in row.differs_in for row in compared),
        reached=len(reached),
        steps_to_target_mean=_mean(reached),
        steps_to_target_sd=_sd(reached),
    )


def _last_losses(runs: Sequence[Run]) -> tuple[LossKind | None, int | None, list[float]]:
    """Return the kind of the runs' losses, the step at which they are averaged, and those there that are finite."""
    kinds = {kind for run in runs if (kind := judged_losses(run)[0]) is not None}
    if len(kinds) != 1:
        return None, None, []
    (kind,) = kinds
    having = [(run, losses) for run in runs if (losses := trained_losses(run))]
    tables = [losses for run, losses in having if run.status == "done"] or [losses for _, losses in having]
    step = max(set.intersection(*map(set, tables)), default=None) if tables else None
    if step is None:
        return kind, None, []
    return kind, step, [losses[step] for _, losses in having if math.isfinite(losses.get(step, math.nan))]


def _comparable(rows: Sequence[Row], base: str | None) -> list[Row]:
    """Return the rows whose differences may be averaged: all of one step, and either all of pairs or all from one run."""
    there = [row for row in rows if row.difference_percent is not None]
    last = max((row.compared_step for row in there if row.compared_step is not None), default=None)
    there = [row for row in there if row.compared_step == last]
    pairs = [row for row in there if "seed" not in row.differs_in]
    alike = [row for row in there if row.compared_with == base]
    return alike if len(pairs) < 2 and alike else pairs


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _sd(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
