"""Follows run folders from outside: attaches to running runs, notices new ones and dead ones, replays finished ones.

All it reads is the folder, so it may be on another machine. There the lock of a living run may not be visible (locks of
many network file systems are not), so a run whose process is elsewhere is called *silent* when it says nothing for a
minute, and never dead.
"""

from __future__ import annotations

import heapq
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import tomli

from altgrad_core.console.screen import PlainScreen
from altgrad_core.console.words import clock
from altgrad_core.errors import AltgradError
from altgrad_core.experiments.eventfile import parse_event
from altgrad_core.experiments.folder import RunFolder, holder_of
from altgrad_core.experiments.history import events_of
from altgrad_core.training.events import SIMULATED, Event

_BLOCK = 1 << 20
_CHECK_S = 1.0
_SILENT_S = 60.0
_POLL_S = 0.1


@attrs.frozen
class Target:
    """What is watched: an experiment's folder, or one run of it."""

    folder: Path
    """The experiment's folder."""
    only: str | None
    """The folder's name of the one run, None for all."""

    @property
    def title(self) -> str:
        """What a screen calls it."""
        return self.folder.resolve().name + (f"/{self.only}" if self.only else "")

    def runs(self) -> list[RunFolder]:
        """Return the runs that are there, the baseline first, then by age."""
        folders = [path.parent for path in self.folder.glob("*/run.toml") if self.only in (None, path.parent.name)]
        return [
            RunFolder(path) for path in sorted(folders, key=lambda path: (not config_of(path)["baseline"], _age(path)))
        ]


def find(given: Path | None, runs: Path) -> Target:
    """Return what ``altgrad watch`` was asked for: a run, an experiment, or the newest one below ``runs`` that is trained."""
    if given is None or (given.is_dir() and not (given / "run.toml").exists() and not any(given.glob("*/run.toml"))):
        parent = runs if given is None else given
        experiments = {path.parent.parent for path in parent.glob("*/*/run.toml")}
        if not experiments:
            raise AltgradError(
                f"Expected a run or an experiment to watch, found none in {parent}. `altgrad run FILE` makes them; give its "
                "folder when it is elsewhere."
            )
        return Target(max(experiments, key=_interest), None)
    folder = given if given.exists() else runs / given
    if (folder / "run.toml").exists():
        return Target(folder.parent, folder.name)
    if not any(folder.glob("*/run.toml")):
        raise AltgradError(f"Expected the folder of a run or of an experiment, got {given}: there is no run in it.")
    return Target(folder, None)


def config_of(folder: Path) -> dict[str, Any]:
    """Return ``name``, ``steps`` and ``baseline`` of a run; nothing is checked here, so that every version can be watched."""
    try:
        table = tomli.loads((folder / "run.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        table = {}
    steps = table.get("train", {}).get("steps", 0)
    return {"name": folder.name, "steps": steps, "baseline": bool(table.get("baseline", False))}


@attrs.define
class _Followed:
    folder: RunFolder
    position: int = 0
    file: int = 0  # inode
    heard_s: float = attrs.field(factory=time.monotonic)

    def new(self) -> Iterator[Event]:
        """Yield the events that are new."""
        path = self.folder.events
        try:
            with path.open("rb") as file:
                file.seek(self.position)
                rest = b""
                while block := file.read(_BLOCK):
                    *lines, rest = (rest + block).split(b"\n")
                    for line in lines:
                        self.position += len(line) + 1
                        yield parse_event(line, f"{path}, the line that ends at byte {self.position}")
        except FileNotFoundError:
            return

    def started_over(self) -> bool:
        """Tell whether the file is another one than the one that was read so far."""
        try:
            status = self.folder.events.stat()
        except FileNotFoundError:
            return self.file != 0
        other = self.file not in (0, status.st_ino) or status.st_size < self.position
        self.file = status.st_ino
        return other


class Follower:
    """Brings what a target's runs tell to a screen."""

    def __init__(self, target: Target, screen: PlainScreen) -> None:
        self.target, self.screen = target, screen
        self._followed: dict[str, _Followed] = {}
        self._next_check = 0.0
        self._adopt()

    def follow(self) -> None:
        """Show what comes until every run has ended."""
        while True:
            for name, followed in self._followed.items():
                for event in followed.new():
                    followed.heard_s = time.monotonic()
                    if self.screen.state.runs[name].status == "silent":
                        self.screen.state.runs[name].status = "running"
                    self.screen.event(name, event)
            if time.monotonic() >= self._next_check:
                self._next_check = time.monotonic() + _CHECK_S
                self._adopt()
                if not self._alive():
                    return
            self.screen.idle()
            time.sleep(_POLL_S)

    def _adopt(self) -> None:
        """Take in new runs, and again those that were started over."""
        for folder in self.target.runs():
            name = folder.path.name
            followed = self._followed.get(name)
            if followed is not None and not followed.started_over():
                continue
            followed = self._followed[name] = _Followed(folder)
            followed.started_over()
            state = self.screen.add(**config_of(folder.path))
            self.screen.folders[name] = folder
            for event in followed.new():
                state.take(event)
            if state.latest:
                followed.heard_s = time.monotonic() - max(0.0, time.time() - state.latest)
            self.screen.introduce(state)

    def _alive(self) -> bool:
        """Note which runs are dead or silent, and tell whether there is anything left to wait for."""
        going_on = False
        for name, followed in self._followed.items():
            state = self.screen.state.runs[name]
            if holder_of(followed.folder.lock) is not None:
                going_on = True  # whatever its last event says: it is being resumed, or its sinks come to their end
            elif not state.over and state.status != "waiting":
                self._without_lock(name, followed)
                going_on = going_on or not state.over
        return going_on or self._is_to_come()

    def _is_to_come(self) -> bool:
        """Tell whether somebody plans or trains the experiment, or a fork in it, and may come to a run that is watched."""
        lock, only = self.target.folder / ".lock", self.target.only
        statuses = {run.status for run in self.screen.state.runs.values()}
        if only is None:
            trained = any(holder_of(path) for path in (lock, *self.target.folder.glob(".*.lock")))
        else:
            trained = bool(holder_of(lock) and statuses & {"waiting", "interrupted"})
            trained = trained or holder_of(RunFolder(self.target.folder / only).fork_lock) is not None
        return trained or ("waiting" in statuses and not _is_here(lock))

    def _without_lock(self, name: str, followed: _Followed) -> None:
        state = self.screen.state.runs[name]
        for event in followed.new():  # the last words came after the last look
            self.screen.event(name, event)
        if state.over:
            return
        if _is_here(followed.folder.lock):
            state.stop("interrupted", "its process ended without a word")
            advice = "" if state.simulated else "; `altgrad run` resumes it"
            self.screen.tell(name, "error", f"interrupted: {state.reason} at step {state.step}{advice}")
            return
        silence = time.monotonic() - followed.heard_s
        if silence > _SILENT_S and state.status != "silent":
            state.status, state.reason = "silent", f"its process is on {_host_of(followed.folder.lock)}"
            self.screen.tell(name, "warning", f"has said nothing for {clock(silence)}; {state.reason}, it may be dead")


def recorded(folders: Sequence[RunFolder]) -> Iterator[tuple[str, Event]]:
    """Yield (run, event) of finished runs in the order of their times."""
    for _, name, event in heapq.merge(*map(_timed, folders), key=lambda item: item[0]):
        yield name, event


def _timed(folder: RunFolder) -> Iterator[tuple[float, str, Event]]:
    for event in events_of(folder.events):
        yield event["time"], folder.path.name, event


def _interest(experiment: Path) -> tuple[bool, float]:
    """Return what to watch is chosen by: whether something is really being trained there, then when it was last heard of."""
    folders = [path.parent for path in experiment.glob("*/run.toml")]
    training = any(holder_of(RunFolder(path).lock) is not None and not _is_simulated(path) for path in folders)
    return training, max(_age(path) for path in folders)


def _is_simulated(folder: Path) -> bool:
    try:
        return bool(tomli.loads((folder / "run.toml").read_text(encoding="utf-8")).get(SIMULATED))
    except (OSError, ValueError):
        return False


def _age(folder: Path) -> float:
    events = folder / "events.jsonl"
    return (events if events.exists() else folder).stat().st_mtime


def _host_of(lock: Path) -> str:
    """Return the host in ``pid 123 on HOST``, "another machine" when nobody wrote one."""
    try:
        return lock.read_text(encoding="utf-8").strip().rpartition(" on ")[2] or "another machine"
    except OSError:
        return "another machine"


def _is_here(lock: Path) -> bool:
    """Tell whether the lock was taken on this machine, where its state can be trusted; one never taken counts as here."""
    return not lock.exists() or _host_of(lock) == platform.node()
