"""``altgrad run``, like make: finished runs are skipped, unfinished ones resumed, failed ones retried when asked.

Each run is executed by a worker process (the launcher's business); this module plans, starts, follows and stops them.
"""

from __future__ import annotations

import datetime
import fnmatch
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import attrs

from altgrad_core.errors import AltgradError, unknown
from altgrad_core.experiments.config import dump_run, load_run
from altgrad_core.experiments.eventfile import EventTail
from altgrad_core.experiments.feed import hungry_sinks
from altgrad_core.experiments.folder import FINISHED, RunFolder, hold
from altgrad_core.experiments.fork import bring_start, check_model
from altgrad_core.experiments.guard import Guarded
from altgrad_core.experiments.launch import Launcher, Worker
from altgrad_core.experiments.plan import open_data, refuse_impossible
from altgrad_core.experiments.runfile import decisive_changes, run_table
from altgrad_core.experiments.schema import Experiment, RunConfig, Status
from altgrad_core.experiments.worker import signal_name, stopping_signals
from altgrad_core.files import sync_folder, write_whole
from altgrad_core.plugins import installed
from altgrad_core.training.data import Workspace
from altgrad_core.training.events import Event

Action = Literal["train", "resume", "feed", "skip"]
_POLL_S = 0.1
_SECOND_THOUGHTS_S = 1.0


@attrs.frozen(kw_only=True)
class PlannedRun:
    """What ``altgrad run`` will do with one run."""

    config: RunConfig
    """The run."""
    folder: RunFolder
    """Its folder."""
    action: Action
    """``train`` from the start, ``resume`` from the newest checkpoint, ``feed`` sinks of a finished run that have not
    got all of it, or ``skip``."""
    reason: str
    """Why, in a word or two: new, interrupted, done, stopped, failed."""


class Observer(Protocol):
    """Is told what happens: the console. One that raises is told nothing more, and the training goes on."""

    def say(self, message: str) -> None:
        """One line about a preparation that takes time."""

    def begin(self, plan: Sequence[PlannedRun]) -> None:
        """All runs, before the first starts."""

    def start(self, run: PlannedRun) -> None:
        """A run's worker was started; its first event may take a while."""

    def event(self, run: str, event: Event) -> None:
        """An event of a running run."""

    def end(self, run: PlannedRun, status: Status, log_end: str, killed_by: str) -> None:
        """A run has ended.

        ``log_end`` holds the last lines that one printed that did not finish; ``killed_by`` is the name of the signal that
        ended its worker, such as SIGKILL, or empty.
        """

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
    if not isinstance(observer, Guarded):
        observer = Guarded(observer)
    selected = select_runs(experiment, only)
    if device not in ("auto", "cpu"):  # these need no look, and no torch
        from altgrad_core.experiments.environment import choose_device

        choose_device(device)
    folder = runs / experiment.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AltgradError(f"Could not make the folder {folder}: {error}. Choose another with --runs.") from error
    with _held(experiment, folder):
        plan = _plan(selected, folder, fresh=fresh, retry_failed=retry_failed)
        # Before anything is trained, so that wrong data is one error and not one failed run after the other.
        to_train = [planned for planned in plan if planned.action in ("train", "resume")]
        data = open_data([planned.config for planned in to_train], installed(), Workspace(say=observer.say))
        refuse_impossible([planned.config for planned in to_train], installed(), data)
        forks = [planned for planned in to_train if planned.config.fork is not None]
        for fork in (fork for fork in forks if fork.action == "train"):
            check_model(fork.config, fork.folder, data[fork.config.name].vocab_size)
        if fresh:
            _move_aside([planned.folder for planned in plan], observer)
        observer.begin(plan)
        for planned in plan:
            if not planned.folder.path.exists():
                planned.folder.path.mkdir()
                sync_folder(folder)
            if planned in forks:
                bring_start(planned.config, planned.folder)
            _write_config(planned)
        _Crew(observer, device, jobs).work_off([planned for planned in plan if planned.action != "skip"])
    return {planned.config.name: planned.folder.status() for planned in plan}


def _write_config(planned: PlannedRun) -> None:
    path, text = planned.folder.config, dump_run(planned.config)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_whole(path, text)


def _held(experiment: Experiment, folder: Path) -> AbstractContextManager[None]:
    """Keep other calls from planning the same runs.

    A fork is in no experiment file, so that it needs its own run only: its parent's experiment may train meanwhile.
    """
    if all(run.fork is not None for run in experiment.runs):
        (fork,) = experiment.runs
        return hold(RunFolder(folder / fork.name).fork_lock, f"The fork {folder / fork.name}")
    return hold(folder / ".lock", f"The experiment folder {folder}")


class Interrupted(BaseException):
    """``altgrad run`` was asked to stop by a signal and has stopped; the runs can be resumed."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by signal {number}")
        self.exit_status = 128 + number


def select_runs(experiment: Experiment, only: Sequence[str]) -> list[RunConfig]:
    """Return the runs that ``--only`` names, by name or pattern; all without one. ``AltgradError`` when one fits none."""
    names = [run.name for run in experiment.runs]
    for pattern in only:
        if not fnmatch.filter(names, pattern):
            raise AltgradError(f"--only: {unknown('run', pattern, names)}")
    return [run for run in experiment.runs if not only or any(fnmatch.fnmatchcase(run.name, p) for p in only)]


def _plan(selected: Sequence[RunConfig], folder: Path, *, fresh: bool, retry_failed: bool) -> list[PlannedRun]:
    plan, changes = [], []
    for config in selected:
        run = RunFolder(folder / config.name)
        status = run.status()
        if status == "running":
            raise AltgradError(f"The run {run.path} is being trained by {run.holder()}. Wait for it, or stop it.")
        if fresh:
            plan.append(PlannedRun(config=config, folder=run, action="train", reason="new"))
            continue
        if not run.config.exists() and run.has_checkpoints:
            raise AltgradError(
                f"{run.path} holds checkpoints but no run.toml, so nobody knows what they were trained with. Put the file "
                "back, or use --fresh, which moves the folder aside and starts over."
            )
        if run.config.exists():
            differences = decisive_changes(run_table(load_run(run.config)), run_table(config))
            if differences and status != "pending":
                changes.append(f"{run.path} was made with another configuration (then -> now):")
                changes += [f"  {line}" for line in differences]
        action: Action = "train"
        if status in FINISHED and run.sinks.exists() and hungry_sinks(run, config.sinks):
            action = "feed"
        elif status in FINISHED or (status == "failed" and not retry_failed):
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


def _move_aside(folders: Sequence[RunFolder], observer: Observer) -> None:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    for folder in folders:
        if folder.path.exists():
            old = folder.path.parent / ".old" / f"{folder.path.name}-{stamp}"
            old.parent.mkdir(exist_ok=True)
            folder.path.rename(old)
            observer.say(f"Moved {folder.path} to {old}.")


@attrs.frozen
class _Running:
    planned: PlannedRun
    worker: Worker
    tail: EventTail
    log_start: int


class _Crew:
    """Keeps up to ``jobs`` workers busy and tells the observer what they do."""

    def __init__(self, observer: Observer, device: str, jobs: int) -> None:
        self.observer, self.device, self.jobs = observer, device, jobs
        self.running: list[_Running] = []
        self.received: list[int] = []
        self._told = False

    def work_off(self, waiting: list[PlannedRun]) -> None:
        """Execute all runs; on a signal, interrupt the workers, wait for them, and raise ``Interrupted``."""
        with _forwarding(self):
            try:
                while self.running or (waiting and not self.received):
                    while waiting and len(self.running) < self.jobs and not self.received:
                        self._start(waiting.pop(0))
                    self._follow()
                    self._tell_of_signal()
                    self.observer.idle()
                    if self.running:
                        time.sleep(_POLL_S)
            except BaseException:
                self._dismiss()  # whatever happens here, no worker is left behind
                raise
        if self.received:
            raise Interrupted(self.received[0])

    def _tell_of_signal(self) -> None:
        if self.received and not self._told:
            self._told = True
            kills = " Ctrl-C once more ends at once, and loses the steps since the last checkpoint."
            what = "Saves checkpoints and ends" if self.running else "Ends"
            name = signal_name(self.received[0])
            self.observer.say(f"{name}: {what}.{kills if self.received[0] == signal.SIGINT else ''}")

    def _dismiss(self) -> None:
        for running in self.running:
            running.worker.interrupt(signal.SIGTERM)
        for running in self.running:
            while running.worker.poll() is None:
                time.sleep(_POLL_S)

    def _start(self, planned: PlannedRun) -> None:
        choice = planned.config.launcher
        launcher: Launcher = installed().get("launcher", choice.kind).value(choice.options)
        tail, log_start = EventTail(planned.folder.events), planned.folder.log_size
        self.observer.start(planned)
        worker = launcher.start(planned.folder, self.device)
        self.running.append(_Running(planned, worker, tail, log_start))
        if self.received:  # came while the worker was being started
            worker.interrupt(self.received[0])

    def _follow(self) -> None:
        for running in list(self.running):
            status = running.worker.poll()  # first, so that the last events are read after the end
            for event in running.tail.new():
                self.observer.event(running.planned.config.name, event)
            if status is not None:
                self.running.remove(running)
                self._ended(running, status)

    def _ended(self, running: _Running, exit_status: int) -> None:
        folder = running.planned.folder
        outcome = worker_ended(folder, 0 if self.received else exit_status, running.log_start)
        self.observer.end(running.planned, *outcome)


def worker_ended(folder: RunFolder, exit_status: int, log_start: int) -> tuple[Status, str, str]:
    """Return the run's state, the end of its log and the signal that ended its worker, as ``Observer.end`` takes them.

    ``log_start`` is the size of the log when the worker was started: what stands before is of earlier ones.
    """
    status = folder.status()
    if status in FINISHED or not exit_status:
        return status, "", ""
    return status, folder.log_end(log_start).strip(), signal_name(-exit_status) if exit_status < 0 else ""


@contextmanager
def _forwarding(crew: _Crew) -> Iterator[None]:
    """Hand signals on to the workers instead of dying; Ctrl-C once more, a second later or after, kills them.

    Only that: a closed terminal or a scheduler's SIGTERM after a Ctrl-C must not cut off the save that it asked for.
    """
    since = 0.0

    def receive(number: int, frame: object) -> None:
        nonlocal since
        again = number == signal.SIGINT in crew.received and time.monotonic() - since > _SECOND_THOUGHTS_S
        if number == signal.SIGINT:
            since = since or time.monotonic()
        crew.received.append(number)
        for running in crew.running:
            running.worker.interrupt(signal.SIGKILL if again else number)

    before: dict[int, Any] = {number: signal.signal(number, receive) for number in stopping_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
