"""Plays a simulation into a run folder of its own and into sinks, at a pace."""

from __future__ import annotations

import functools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import tomli_w

from altgrad_core.errors import AltgradError
from altgrad_core.experiments.eventlog import EventLog
from altgrad_core.experiments.folder import RunFolder, hold
from altgrad_core.experiments.pacing import paced
from altgrad_core.experiments.sinkrunner import Patience
from altgrad_core.files import write_whole
from altgrad_core.plugins import installed
from altgrad_core.simulation.stream import Simulation, simulate
from altgrad_core.training.events import SIMULATED, Event, MetricSink


class SimulatedRun:
    """A simulation with its folder ``runs/simulated/<name>``, which is new: nothing that is there is touched."""

    def __init__(self, simulation: Simulation, runs: Path, sinks: Sequence[str]) -> None:
        self.simulation = simulation
        self._sinks = _sinks(sinks)
        name = f"{simulation.model}-{simulation.gpus}x{simulation.gpu}-seed{simulation.seed}"
        self.folder = _new_folder(runs / SIMULATED, name)
        table = {
            "experiment": SIMULATED,
            "name": self.folder.path.name,
            SIMULATED: True,
            "train": {"steps": simulation.steps},
            "simulation": attrs.asdict(simulation),
        }
        write_whole(self.folder.config, tomli_w.dumps(table))

    def play(self, factor: float, show: Callable[[Event], None], idle: Callable[[], None]) -> None:
        """Tell every event to the folder, the sinks and ``show``; ``idle`` is called several times a second.

        A ``KeyboardInterrupt``, whose text may name a signal, ends the run as interrupted and goes on to the caller.
        """
        with hold(self.folder.lock, f"The run {self.folder.path}"):
            # However far its sinks lag behind a story that takes no time, they get all of it.
            log = _MarkedLog(self.folder.events, Patience(drained_s=math.inf))
            try:
                self._play(log, factor, show, idle)
            finally:
                log.close()
                log.show(show)

    def _play(self, log: _MarkedLog, factor: float, show: Callable[[Event], None], idle: Callable[[], None]) -> None:
        for name, build in self._sinks.items():
            log.add_sink(name, functools.partial(build, self.folder.path))
        log.start_sinks(self.folder.path / "sinks.json")
        name, event = self.folder.path.name, {"time": time.time()}
        story = ((name, event) for event in simulate(self.simulation, event["time"]))
        try:
            for _, event in paced(story, factor, idle):
                log.emit(event)
                log.show(show)
        except KeyboardInterrupt as interrupt:
            reason = str(interrupt) or "SIGINT"
            log.emit({"time": event["time"], "event": "status", "status": "interrupted", "reason": reason})
            raise


class _MarkedLog(EventLog):
    """Marks what the log says itself, such as that a sink failed, and keeps all for the screen."""

    def __init__(self, path: Path, patience: Patience) -> None:
        super().__init__(path, patience)
        self._unseen: deque[Event] = deque()

    def emit(self, event: Event) -> None:
        event = {**event, SIMULATED: True}
        super().emit(event)
        self._unseen.append(event)

    def show(self, show: Callable[[Event], None]) -> None:
        """Show what came since the last call."""
        while self._unseen:
            show(self._unseen.popleft())


def _sinks(kinds: Sequence[str]) -> dict[str, Callable[[Path], MetricSink]]:
    plugins = installed()
    usable = [name for name in plugins.names("sink") if not plugins.get("sink", name).missing]
    names = usable if "all" in kinds else dict.fromkeys(kinds)
    return {name: _builder(plugins.get("sink", name)) for name in names}


def _builder(extension: Any) -> Callable[[Path], MetricSink]:
    options = extension.options()
    return lambda folder: extension.value(options, folder)


def _new_folder(parent: Path, name: str) -> RunFolder:
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise AltgradError(f"Could not make the folder {path}: {error}. Choose another with --runs.") from error
        else:
            return RunFolder(path)
