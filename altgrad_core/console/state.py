"""What the screen knows: a run's state, reduced from its events alone, and all runs together.

Nothing here reads a clock or draws anything. Events of a kind that is not known are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import attrs

from altgrad_core.console.series import Series
from altgrad_core.experiments.hardware import Gpu, GpuSample, HostSample, of_facts
from altgrad_core.training.events import PREPARING, SIMULATED, Event

_IGNORED_STEPS = 3  # the first steps warm caches up and would spoil the ETA
_SHOWN = (
    *("train/loss", "train/perplexity", "train/lr", "train/grad_norm", "train/tokens_per_s"),
    *("overflow_rate", "underflow_rate", "bit_stall_rate", "grad_cos_sim"),
)
OVER = ("done", "failed", "stopped", "interrupted", "pending")


@attrs.frozen(kw_only=True)
class Task:
    """Something that goes on inside a run: an evaluation, a checkpoint being saved, weights being loaded."""

    name: str
    """What it is."""
    since: float
    """Unix time of its beginning."""
    done: float = 0
    """How much is done."""
    total: float | None = None
    """Of how much; None when nobody knows."""
    unit: str = ""
    """Of what."""


@attrs.frozen(kw_only=True)
class Validation:
    """The last evaluation."""

    step: int
    """When it was."""
    loss: float
    """Mean loss in nats a token."""
    perplexity: float
    """exp(loss)."""
    above_training: float | None
    """Loss minus the training loss logged last; None before the first step."""
    best_loss: float
    """Smallest finite loss of all evaluations; infinite before there is one."""
    best_step: int
    """When that was."""
    patience_used: int | None = None
    """Evaluations in a row without a new best; None when the run has no patience to lose."""
    patience: int | None = None
    """How many of those end the run."""


@attrs.define
class RunState:
    """One run."""

    name: str
    steps: int = 0
    baseline: bool = False
    simulated: bool = False
    status: str = "waiting"
    """waiting, starting, running, one of ``OVER`` (pending: its worker ended before the first event), or silent: no sign
    of life, on a machine that cannot be asked."""
    reason: str = ""
    step: int = 0
    values: dict[str, float] = attrs.field(factory=dict)
    losses: Series = attrs.field(factory=Series)
    tasks: dict[str, Task] = attrs.field(factory=dict)
    validation: Validation | None = None
    facts: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    alert: Event | None = None
    """The last alert."""
    checkpoint: Event | None = None
    """The last checkpoint that the run can go on from; that of an anomaly is none."""
    communication: Event | None = None
    """The last ``comm`` event."""
    gpus: dict[int, Gpu] = attrs.field(factory=dict)
    samples: dict[int, GpuSample] = attrs.field(factory=dict)
    host: HostSample | None = None
    peak_mib: float = 0
    """Most memory that one GPU had in use; the process's on a machine without."""
    latest: float = 0
    """Unix time of the last event."""
    _began: float | None = None
    _heard: float = 0  # time of the last event that this stretch told for sure
    _expected: bool = False
    _earlier_s: float = 0
    logged: int = 0
    """Training steps heard of since the last start."""
    _first: tuple[int, float] | None = None
    _last: tuple[int, float] | None = None
    _utilization: tuple[float, int] = (0.0, 0)
    _evaluations: dict[int, float] = attrs.field(factory=dict)  # step -> loss
    _alerts: set[tuple[int, str]] = attrs.field(factory=set)

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self.status in OVER

    @property
    def alerts(self) -> int:
        """How many alerts there were; one of a step that was trained again counts once."""
        return len(self._alerts)

    @property
    def loss_step(self) -> int | None:
        """The step of the training loss that was logged last; after a resume the run may be at an earlier one."""
        return self.losses.last_step

    @property
    def mean_utilization(self) -> float | None:
        """Mean over GPUs and samples, in percent; None without a sample."""
        total, count = self._utilization
        return total / count if count else None

    @property
    def epochs(self) -> float | None:
        """How often the training reads its data in all."""
        value = self.facts.get("batch", {}).get("epochs")
        return None if value is None else float(value)

    def threshold(self, name: str) -> float | None:
        """Return the alert threshold of that name, None when there is none."""
        rule = self.facts.get("alerts", {}).get(name)
        value = rule.get("threshold") if isinstance(rule, dict) else rule
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def elapsed_s(self, now: float) -> float:
        """Return the seconds spent in this run, over all its starts; up to its last event once it is over."""
        return self._earlier_s + (0.0 if self._began is None else max(0.0, now - self._began))

    @property
    def pace_s(self) -> float | None:
        """Seconds that a step takes, first steps left out; None before there is one."""
        if self._first is None or self._last is None or self._last[0] <= self._first[0]:
            return None
        return (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])

    @property
    def eta_s(self) -> float | None:
        """Seconds that the remaining steps will take at the pace so far; None when they are not being trained."""
        if self.over:
            return 0.0 if self.status == "done" else None
        return None if self.pace_s is None else self.pace_s * (self.steps - self.step)

    def take(self, event: Event) -> None:
        """Reduce one event."""
        if event.get(SIMULATED):
            self.simulated = True
        time = self.latest = event.get("time", self.latest)
        runs = event["event"] == "status" and event["status"] == "running"
        if runs and self.status in ("running", "silent"):  # kill -9 leaves no event
            self._end()
            self._start(time)
        # What comes after the end, such as the warning of a sink, is no new beginning.
        elif self.status == "waiting" or self._expected or (self.over and runs):
            self._start(time)
        if event["event"] not in PREPARING:
            self._heard = time
        match event["event"]:
            case "metrics":
                self._metrics(event)
            case "status":
                self._status(event)
            case "init":
                self._init(event["what"], event["facts"])
            case "evaluation":
                self._task("evaluation", event)
                self._patience(event)
            case "task":
                self._task(event["task"], event)
            case "gpus":
                self._gpus(event["samples"])
            case "host":
                self.host = of_facts(HostSample, event)
                if not self.gpus:
                    self.peak_mib = max(self.peak_mib, self.host.process_bytes / 2**20)
            case "alert":
                self._alerts.add((event["step"], event["alert"]))
                self.alert = event
            case "checkpoint":
                self._checkpoint(event)
            case "comm":
                self.communication = event

    def expect(self) -> None:
        """Note that the run's process was started; its first event begins the run."""
        self.status, self.reason, self._expected = "starting", "", True

    def _start(self, time: float) -> None:
        self.status, self.reason, self._expected = "starting", "", False
        self._began = self._heard = time
        self.tasks.clear()
        self.logged, self._first, self._last = 0, None, None

    def _status(self, event: Event) -> None:
        self.status, self.reason = event["status"], event.get("reason") or ""
        self.step = event.get("step", self.step)
        if self.over:
            self._end()

    def stop(self, status: str, reason: str) -> None:
        """Note an end that no event tells: the run's process is gone without a word."""
        self.status, self.reason, self._expected = status, reason, False
        self._end()

    def _end(self) -> None:
        if self._began is not None:
            self._earlier_s += max(0.0, self._heard - self._began)
        self._began = None
        self.tasks.clear()

    def _init(self, what: str, facts: dict[str, Any]) -> None:
        self.facts[what] = facts
        if what == "batch":
            self.steps = facts["steps"]
        elif what == "gpus":
            self.gpus = {gpu["rank"]: of_facts(Gpu, gpu) for gpu in facts["gpus"]}

    def _metrics(self, event: Event) -> None:
        step, values = event["step"], event["values"]
        prefix = f"{SIMULATED}/" if self.simulated else ""
        for name in _SHOWN:
            value = values.get(prefix + name)
            if value is not None:
                self.values[name] = float(value)
        if prefix + "train/loss" in values:
            self.step = step
            self.losses.add(step, self.values["train/loss"])
            self.logged += 1
            self._last = (step, self.latest)
            if self.logged <= _IGNORED_STEPS:
                self._first = self._last
        if prefix + "val/loss" in values:
            loss, perplexity = float(values[prefix + "val/loss"]), float(values[prefix + "val/perplexity"])
            self._evaluated(step, loss, perplexity)

    def _evaluated(self, step: int, loss: float, perplexity: float) -> None:
        # A step that comes again, after a resume, replaces all from there on.
        self._evaluations = {at: known for at, known in self._evaluations.items() if at < step} | {step: loss}
        finite = [(known, at) for at, known in self._evaluations.items() if math.isfinite(known)]
        best_loss, best_step = min(finite, default=(math.inf, step))
        training = self.values.get("train/loss") if step else None
        self.validation = Validation(
            step=step,
            loss=loss,
            perplexity=perplexity,
            above_training=None if training is None else loss - training,
            best_loss=best_loss,
            best_step=best_step,
        )

    def _patience(self, event: Event) -> None:
        if self.validation is not None and "patience" in event:
            self.validation = attrs.evolve(
                self.validation, patience_used=event["patience_used"], patience=event["patience"]
            )

    def _checkpoint(self, event: Event) -> None:
        if event["kind"] == "resumed" and self.checkpoint is not None and event["path"] == self.checkpoint["path"]:
            return  # it is told already, with the time that saving took
        if event["kind"] != "anomaly":
            self.checkpoint = event

    def _task(self, name: str, event: Event) -> None:
        if event["state"] == "end":
            self.tasks.pop(name, None)
            return
        known = self.tasks.get(name) or Task(name=name, since=self.latest)
        given = {key: event[key] for key in ("done", "total", "unit") if key in event}
        self.tasks[name] = attrs.evolve(known, **given)

    def _gpus(self, samples: Iterable[dict[str, Any]]) -> None:
        total, count = self._utilization
        told = {facts["rank"]: of_facts(GpuSample, facts) for facts in samples}
        self.samples = {rank: GpuSample(rank=rank) for rank in self.gpus} | told
        for sample in self.samples.values():
            if sample.utilization is not None:
                total, count = total + sample.utilization, count + 1
            self.peak_mib = max(self.peak_mib, sample.used_mib or 0)
        self._utilization = (total, count)


@attrs.define
class ScreenState:
    """All runs that a screen shows."""

    title: str = ""
    runs: dict[str, RunState] = attrs.field(factory=dict)

    @property
    def simulated(self) -> bool:
        """Whether any of it is a simulation."""
        return any(run.simulated for run in self.runs.values())

    @property
    def latest(self) -> float:
        """Unix time of the last event; 0 before the first."""
        return max((run.latest for run in self.runs.values()), default=0.0)

    @property
    def baseline(self) -> RunState | None:
        """The run that the others are compared with."""
        return next((run for run in self.runs.values() if run.baseline), None)

    def against_baseline(self, run: RunState) -> tuple[float, float] | None:
        """Return the baseline's loss at the run's ``loss_step`` and the difference in percent; None without one there."""
        base = self.baseline
        if base is None or base is run or run.loss_step is None:
            return None
        loss = base.losses.at(run.loss_step)
        if loss is None or not math.isfinite(loss) or loss <= 0:
            return None
        return loss, 100 * (run.values["train/loss"] / loss - 1)

    def current(self) -> list[RunState]:
        """Return the runs that are going on, in file order; the last one that was when none is."""
        going_on = [run for run in self.runs.values() if not run.over and run.status != "waiting"]
        if going_on:
            return going_on
        heard_of = [run for run in self.runs.values() if run.latest]
        return [max(heard_of, key=lambda run: run.latest)] if heard_of else []

    def eta_s(self) -> float | None:
        """Return the seconds that all runs will take; those that wait are taken to be as fast as the others."""
        paces = [run.pace_s for run in self.runs.values() if run.pace_s is not None]
        if not paces:
            return None
        mean = sum(paces) / len(paces)
        rest = sum((run.steps - run.step) * (run.pace_s or mean) for run in self.runs.values() if not run.over)
        return rest / max(1, sum(run.status in ("running", "starting") for run in self.runs.values()))
