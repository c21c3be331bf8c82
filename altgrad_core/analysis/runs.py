"""A run folder, read back: configuration, metrics, alerts, checkpoints and times, all from its files alone.

A process that dies while it writes leaves a torn last line in ``events.jsonl``, which is left out. Any other line that is
not an event is an error: a file damaged in its middle would otherwise give a comparison of numbers that nobody measured.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import tomli

from altgrad_core.analysis.runlog import RunLog
from altgrad_core.errors import AltgradError
from altgrad_core.experiments.folder import RunFolder
from altgrad_core.training.events import SIMULATED, Event
from altgrad_core.training.histograms import CastHistogram

CONFIG, ENVIRONMENT, EVENTS = "run.toml", "env.json", "events.jsonl"


@attrs.frozen(kw_only=True, eq=False)
class Run:
    """One run as its folder tells it."""

    folder: Path
    """The folder that was read."""
    config: Mapping[str, Any] = attrs.field(repr=False)
    """``run.toml``: the run's complete configuration."""
    environment: Mapping[str, Any] = attrs.field(repr=False)
    """``env.json``: versions, device, commit; empty when the run has not started."""
    status: str
    """pending, running, done, failed, stopped or interrupted; a run whose process died is interrupted."""
    reason: str
    """Why the run has that status, in the words of its last status event; may be empty."""
    values: Mapping[int, Mapping[str, float]] = attrs.field(repr=False)
    """Step -> metric name -> value, in step order."""
    histograms: Mapping[int, Mapping[str, CastHistogram]] = attrs.field(repr=False)
    """Step -> ``layer.operand`` -> where its values lie on the grid of its format, in step order; empty where the probe
    ``histograms`` measured nothing."""
    alerts: tuple[Event, ...] = attrs.field(repr=False)
    """Alert events in step order, one for each (step, alert)."""
    checkpoints: tuple[Event, ...] = attrs.field(repr=False)
    """Checkpoint events in step order, one for each path."""
    facts: Mapping[str, Mapping[str, Any]] = attrs.field(repr=False)
    """What the run said about its parts at its (last) start: ``model``, ``data``, ``device``, ... -> name -> value."""
    sinks: Mapping[str, Mapping[str, Any]] = attrs.field(repr=False)
    """How each sink fared in the last stretch, once that is over: name -> ``status``, ``missed``, ``reason``."""
    machine: Mapping[str, tuple[list[float], list[float]]] = attrs.field(repr=False)
    """Samples of host and GPUs: name -> seconds of training time, as in ``wall_time_s``, and values. ``process_memory_gib``,
    ``cpu_percent``; of all GPUs together ``gpu_memory_gib`` (the fullest), ``gpu_utilization_percent`` (mean),
    ``gpu_power_w`` (sum), ``gpu_temperature_c`` (the hottest)."""
    stretches: int
    """How often the run was started; above 1 after a resume."""
    started_s: float | None
    """Unix time of the first event; None before the start."""
    wall_time_s: float
    """Seconds between the start and the last event of each stretch, summed."""

    @property
    def name(self) -> str:
        """The run's name, by its configuration."""
        return str(self.config.get("name", self.folder.name))

    @property
    def experiment(self) -> str:
        """The experiment's name, by the run's configuration."""
        return str(self.config.get("experiment", self.folder.parent.name))

    @property
    def baseline(self) -> bool:
        """Whether the experiment marks this run as the one that others are compared with."""
        return bool(self.config.get("baseline", False))

    @property
    def seed(self) -> int | None:
        """Seed of initialization, batches and dropout, by the run's configuration."""
        return self.config.get("seed")

    @property
    def fork(self) -> str | None:
        """Where the run branched off, ``<experiment>/<run> after step 100``; None for one that began at step 0."""
        fork = self.config.get("fork")
        return f"{fork['run']} after step {fork['step']}" if fork else None

    @property
    def first_step(self) -> int:
        """Step with which it began: that of its fork, else 0. What was measured there is not of this run's training."""
        fork = self.config.get("fork")
        return int(fork["step"]) if fork else 0

    @property
    def planned_steps(self) -> int | None:
        """Optimizer steps that the configuration asks for."""
        steps = self.config.get("train", {}).get("steps")
        return None if steps is None else int(steps)

    @property
    def last_step(self) -> int | None:
        """The last step with a training loss; None before the first."""
        return max((step for step, values in self.values.items() if "train/loss" in values), default=None)

    @property
    def tokens_per_s(self) -> float | None:
        """Median of ``train/tokens_per_s``: the first steps, which compile and warm up, do not move it."""
        speeds = [value for value in self.metrics("train/tokens_per_s")[1] if math.isfinite(value)]
        return statistics.median(speeds) if speeds else None

    def metrics(self, name: str) -> tuple[list[int], list[float]]:
        """Return the steps at which ``name`` was logged, ascending, and its values; both empty when it never was."""
        pairs = [(step, values[name]) for step, values in self.values.items() if name in values]
        return [step for step, _ in pairs], [value for _, value in pairs]

    def metric_names(self) -> list[str]:
        """Return every metric's name in the order of first appearance, which for layers is the model's order."""
        return list(dict.fromkeys(name for values in self.values.values() for name in values))

    def layers(self, metric: str) -> list[str]:
        """Return what follows ``<metric>/``, in model order: layers or operands such as ``blocks.0.attn.qkv.input``."""
        prefix = f"{metric}/"
        return [name.removeprefix(prefix) for name in self.metric_names() if name.startswith(prefix)]

    def frame(self) -> Any:
        """Return a ``pandas.DataFrame``: index ``step``, one column a metric, NaN where a step has no value."""
        try:
            pandas = importlib.import_module("pandas")
        except ModuleNotFoundError as error:
            raise AltgradError("run.frame() needs pandas, which is not installed: pip install pandas") from error
        frame = pandas.DataFrame.from_dict(dict(self.values), orient="index", columns=self.metric_names())
        frame.index.name = "step"
        return frame


def load_run(folder: str | Path) -> Run:
    """Read ``runs/<experiment>/<run>/``. A run that has not started yet is read as pending, without metrics.

    Raises ``AltgradError`` when ``folder`` is not a run's folder or one of its files is damaged.
    """
    folder = Path(folder)
    config = _read_config(folder)
    if config.get(SIMULATED):
        raise AltgradError(
            f"{folder} holds a simulation (altgrad simulate): nothing was measured, so it is neither compared, reported "
            f"nor exported. `altgrad watch {folder} --replay` plays it again."
        )
    environment = _read_environment(folder / ENVIRONMENT)
    log = RunLog()
    if (folder / EVENTS).exists():
        log.read(folder / EVENTS)
    status, reason = log.status, log.reason
    if RunFolder(folder).holder() is not None:
        status = "running"
    elif status == "running":
        status, reason = "interrupted", "its process ended without a word"
    return Run(
        folder=folder,
        config=config,
        environment=environment,
        status=status,
        reason=reason,
        values=dict(sorted(log.values.items())),
        histograms=dict(sorted(log.histograms.items())),
        alerts=_by_step(log.alerts.values()),
        checkpoints=_by_step(log.checkpoints.values()),
        facts=log.facts,
        sinks=log.sinks,
        machine=log.machine,
        stretches=log.stretches,
        started_s=log.first,
        wall_time_s=log.wall_time_s(),
    )


def load_experiment_runs(folder: str | Path, unreadable: dict[str, str] | None = None) -> list[Run]:
    """Read every run below the experiment's ``folder``: the baseline first, the others by name (2 before 10).

    A run that cannot be read raises ``AltgradError``; with ``unreadable`` it is left out, and noted there: folder's name ->
    why.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AltgradError(f"Expected an experiment's folder such as runs/<experiment>; there is no folder {folder}.")
    if (folder / CONFIG).exists():
        raise AltgradError(
            f"Expected an experiment's folder such as runs/<experiment>, got the folder of one run: {folder}. "
            f"Give the folder above it: {folder.parent}."
        )
    folders = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if not folders:
        raise AltgradError(
            f"Expected an experiment's folder with at least one run (a folder with a {CONFIG}), found none in {folder}."
            " `altgrad run FILE` makes them."
        )
    runs = []
    for path in folders:
        try:
            runs.append(load_run(path))
        except AltgradError as error:
            if unreadable is None:
                raise
            unreadable[path.name] = str(error)
    return sorted(runs, key=lambda run: (not run.baseline, _natural(run.name)))


def names_of(runs: Sequence[Run]) -> list[str]:
    """Return names that tell the runs apart: with the experiment in front, then the folder, as far as needed.

    Raises ``AltgradError`` when a run is there twice, be it by two spellings of its folder.
    """
    folders = [run.folder.resolve() for run in runs]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise AltgradError(f"Expected different runs, got {twice} more than once.")
    for names in ([run.name for run in runs], [f"{run.experiment}/{run.name}" for run in runs]):
        if len(set(names)) == len(names):
            return names
    return [str(run.folder) for run in runs]


def find_runs(folder: str | Path) -> list[Run]:
    """Read the run in ``folder``, or all runs below it when it is an experiment's folder."""
    folder = Path(folder)
    experiment = not (folder / CONFIG).exists() and any(folder.glob(f"*/{CONFIG}"))
    return load_experiment_runs(folder) if experiment else [load_run(folder)]


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        if not folder.exists():
            found = "there is no such folder"
        elif folder.is_file():
            found = "that is a file"
        elif any(folder.glob(f"*/{CONFIG}")):
            names = ", ".join(sorted(p.parent.name for p in folder.glob(f"*/{CONFIG}"))[:8])
            found = f"that folder holds runs: name one of them ({names})"
        else:
            found = f"that folder has no {CONFIG}"
        raise AltgradError(f"Expected a run's folder, runs/<experiment>/<run> with a {CONFIG}, got {folder}: {found}.")
    try:
        return tomli.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also TOMLDecodeError and UnicodeDecodeError
        raise AltgradError(f"{path}: expected the TOML that `altgrad run` wrote: {error}") from error


def _read_environment(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        environment = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AltgradError(f"{path}: expected the JSON that `altgrad run` wrote: {error}") from error
    if not isinstance(environment, dict):
        raise AltgradError(f"{path}: expected a JSON object, got {type(environment).__name__}")
    return environment


def _by_step(events: Iterable[Event]) -> tuple[Event, ...]:
    return tuple(sorted(events, key=lambda event: int(event.get("step") or 0)))


def _natural(name: str) -> list[tuple[bool, int, str]]:
    parts = [part for part in re.split(r"(\d+)", name) if part]
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
