"""``altgrad run``, like make: finished runs are skipped, unfinished ones resumed, failed ones retried when asked.

Each run is executed by a worker process (the launcher's business); this module plans, starts, follows and stops them.
"""

from __future__ import annotations

import datetime
import fnmatch
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import attrs

from altgrad_core.errors import AltgradError, unknown
from altgrad_core.experiments.config import difference, dump_run, load_run
from altgrad_core.experiments.eventlog import EventTail
from altgrad_core.experiments.folder import RunFolder, hold
from altgrad_core.experiments.launch import Launcher, Worker
from altgrad_core.experiments.plan import open_data
from altgrad_core.experiments.schema import Experiment, RunConfig, Status
from altgrad_core.plugins import installed
from altgrad_core.training.data import Workspace
from altgrad_core.training.events import Event

Action = Literal["train", "resume", "skip"]
_POLL_S = 0.1
# Keys that may change between two calls: they decide nothing of what is trained.
_FREE = re.compile(r"(baseline|launcher|sink)\b")


@attrs.frozen(kw_only=True)
class PlannedRun:
    """What ``altgrad run`` will do with one run."""

    config: RunConfig
    """The run."""
    folder: RunFolder
    """Its folder."""
    action: Action
    """``train`` from the start, ``resume`` from the newest checkpoint, or ``skip``."""
    reason: str
    """Why, in a word or two: new, interrupted, done, failed."""


class Observer(Protocol):
    """Is told what happens: the console."""

    def say(self, message: str) -> None:
        """One line about a preparation that takes time."""

    def begin(self, plan: Sequence[PlannedRun]) -> None:
        """All runs, before the first starts."""

    def event(self, run: str, event: Event) -> None:
        """An event of a running run."""

    def end(self, run: PlannedRun, status: Status, log_end: str) -> None:
        """A run has ended; ``log_end`` holds the last lines that a failed one printed."""

    def idle(self) -> None:
        """Called several times a second."""


def run_experiment(
    experiment: Experiment,
    runs: Path,
    observer: Observer,
    *,
    only: Sequence[str] = (),
    fresh: bool = False,
    retry_failed: bool = False,
    jobs: int = 1,
    device: str = "auto",
) -> dict[str, Status]:
    """Train what is missing and return the state of each selected run by name.

    ``only`` selects runs by name or shell-style pattern. ``fresh`` moves the folders of the selected runs aside and
    starts over. SIGINT and SIGTERM make every worker save a checkpoint and end; then ``Interrupted`` is raised.
    Raises ``AltgradError`` when a run's configuration differs from that of its folder, with the differences.
    """
    selected = _select(experiment, only)
    folder = runs / experiment.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AltgradError(f"Could not make the folder {folder}: {error}. Choose another with --runs.") from error
    with hold(folder / ".lock", f"The experiment folder {folder}"):
        if fresh:
            _move_aside([RunFolder(folder / run.name) for run in selected])
        plan = _plan(selected, folder, retry_failed)
        # Before anything is trained, so that wrong data is one error and not one failed run after the other.
        to_train = [planned.config for planned in plan if planned.action != "skip"]
        open_data(to_train, installed(), Workspace(say=observer.say))
        observer.begin(plan)
        for planned in plan:
            planned.folder.path.mkdir(exist_ok=True)
            planned.folder.config.write_text(dump_run(planned.config), encoding="utf-8")
        _Crew(observer, device, jobs).work_off([planned for planned in plan if planned.action != "skip"])
    return {planned.config.name: planned.folder.status() for planned in plan}


class Interrupted(BaseException):
    """``altgrad run`` was asked to stop by a signal and has stopped; the runs can be resumed."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by signal {number}")
        self.exit_status = 128 + number


def _select(experiment: Experiment, only: Sequence[str]) -> list[RunConfig]:
    names = [run.name for run in experiment.runs]
    for pattern in only:
        if not fnmatch.filter(names, pattern):
            raise AltgradError(f"--only: {unknown('run', pattern, names)}")
    return [run for run in experiment.runs if not only or any(fnmatch.fnmatchcase(run.name, p) for p in only)]


def _plan(selected: Sequence[RunConfig], folder: Path, retry_failed: bool) -> list[PlannedRun]:
    plan, changes = [], []
    for config in selected:
        run = RunFolder(folder / config.name)
        status = run.status()
        if status == "running":
            raise AltgradError(f"The run {run.path} is being trained by {run.holder()}. Wait for it, or stop it.")
        if run.config.exists():
            differences = [line for line in difference(load_run(run.config), config) if not _FREE.match(line)]
            if differences and status != "pending":
                changes.append(f"{run.path} was made with another configuration (then -> now):")
                changes += [f"  {line}" for line in differences]
        action: Action = "train"
        if status in ("done", "stopped") or (status == "failed" and not retry_failed):
            action = "skip"
        elif status in ("interrupted", "failed"):
            action = "resume"
        plan.append(
            PlannedRun(config=config, folder=run, action=action, reason="new" if status == "pending" else status)
        )
    if changes:
        changes.append(
            "Nothing was started. Undo the change, give the run another name, or use --fresh, which moves the old folder "
            "aside and starts over."
        )
        raise AltgradError("\n".join(changes))
    return plan


def _move_aside(folders: Sequence[RunFolder]) -> None:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    for folder in folders:
        holder = folder.holder()
        if holder is not None:
            raise AltgradError(f"The run {folder.path} is being trained by {holder}. Wait for it, or stop it.")
    for folder in folders:
        if folder.path.exists():
            old = folder.path.parent / ".old" / f"{folder.path.name}-{stamp}"
            old.parent.mkdir(exist_ok=True)
            folder.path.rename(old)


@attrs.frozen
class _Running:
    planned: PlannedRun
    worker: Worker
    tail: EventTail


class _Crew:
    """Keeps up to ``jobs`` workers busy and tells the observer what they do."""

    def __init__(self, observer: Observer, device: str, jobs: int) -> None:
        self.observer, self.device, self.jobs = observer, device, jobs
        self.running: list[_Running] = []

    def work_off(self, waiting: list[PlannedRun]) -> None:
        """Execute all runs; on a signal, interrupt the workers, wait for them, and raise ``Interrupted``."""
        with _forwarding(self) as received:
            while self.running or (waiting and not received):
                while waiting and len(self.running) < self.jobs and not received:
                    self._start(waiting.pop(0))
                self._follow()
                self.observer.idle()
                if self.running:
                    time.sleep(_POLL_S)
        if received:
            raise Interrupted(received[0])

    def _start(self, planned: PlannedRun) -> None:
        choice = planned.config.launcher
        launcher: Launcher = installed().get("launcher", choice.kind).value(choice.options)
        tail = EventTail(planned.folder.events)
        self.running.append(_Running(planned, launcher.start(planned.folder, self.device), tail))

    def _follow(self) -> None:
        for running in list(self.running):
            status = running.worker.poll()  # first, so that the last events are read after the end
            for event in running.tail.new():
                self.observer.event(running.planned.config.name, event)
            if status is not None:
                self.running.remove(running)
                self._ended(running.planned, status)

    def _ended(self, planned: PlannedRun, exit_status: int) -> None:
        status = planned.folder.status()
        log_end = ""
        if exit_status and status in ("failed", "pending"):
            log_end = _end_of(planned.folder.log)
        if exit_status < 0 and status == "interrupted":
            log_end = f"The worker was ended by signal {-exit_status}."
        self.observer.end(planned, status, log_end)


@contextmanager
def _forwarding(crew: _Crew) -> Iterator[list[int]]:
    """Hand SIGINT and SIGTERM on to the workers instead of dying; a second one goes to them too and ends them at once."""
    received: list[int] = []

    def receive(number: int, frame: object) -> None:
        received.append(number)
        for running in crew.running:
            running.worker.interrupt(number)

    before: dict[int, Any] = {n: signal.signal(n, receive) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_of(path: Path, lines: int = 15) -> str:
    if not path.exists():
        return ""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
