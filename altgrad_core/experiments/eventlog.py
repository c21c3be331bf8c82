"""The event log of a run: appends to ``events.jsonl`` and sees to it that every sink gets every event, at its own pace.

Sinks read the file (``sinkrunner``), so ``emit`` costs the same whatever they do. docs/decisions/0007-sinks.md has the reasons.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from altgrad_core.errors import AltgradError, RunFailed
from altgrad_core.experiments.eventfile import EventFile
from altgrad_core.experiments.sinkrunner import Patience, Position, SinkRunner
from altgrad_core.experiments.sinkstates import SinkStates
from altgrad_core.training.events import Event, MetricSink

_PATIENCE = Patience()
_SAY_AFTER_S = 1.0


class EventLog:
    """Open for one worker. Any thread may ``emit``.

    Sinks start with ``start_sinks``, after a resumed run has loaded its checkpoint; what is emitted before waits for them
    in the file like everything else.
    """

    def __init__(self, path: Path, patience: Patience = _PATIENCE) -> None:
        self.path = path
        self._patience = patience
        self._file = EventFile(path)
        self._builds: dict[str, Callable[[], MetricSink]] = {}
        self._options: dict[str, str] = {}
        self._runners: dict[str, SinkRunner] = {}
        self._loaded: dict[str, Any] = {}
        self._skipped: list[tuple[int, int]] = []
        self._states: SinkStates | None = None
        self._over = False

    def emit(self, event: Event) -> None:
        """Append an event, stamped with the time; a full disk is a ``RunFailed``."""
        self._file.append(event)
        for runner in self._runners.values():
            runner.check_blocked()

    def log(self, message: str, level: str = "info") -> None:
        """Emit a ``log`` event."""
        self.emit({"event": "log", "level": level, "message": message})

    def warn(self, message: str) -> None:
        """Emit a ``log`` event of level ``warning``."""
        self.log(message, "warning")

    def sync(self) -> None:
        """Wait until all that was emitted before is on the disk; ``RunFailed`` when it cannot be. For any thread."""
        self._file.sync()

    def add_sink(self, name: str, build: Callable[[], MetricSink], options: str = "") -> None:
        """Name a sink; it is built in its own thread, as building one may already fail or hang.

        ``options`` stands for its options: state that was kept under others is not given to it.
        """
        self._builds[name] = build
        self._options[name] = options

    def start_sinks(self, states: Path) -> None:
        """Start every sink where the checkpoint has it; one that it does not know gets the run's events from the first.

        So does one whose options have changed since. A run that starts over before its first checkpoint gives its sinks
        the state they had when they were first built, kept in ``states``, so that a tracker goes on with the same run.
        """
        self._states = SinkStates(states, self.warn)
        self._states.keep_end(None)
        self._start(self._positions())

    def feed_sinks(self, states: Path) -> None:
        """Start the sinks of a finished run where its training, or the last feeding, has left them.

        Raises ``AltgradError`` when nobody knows where that is.
        """
        self._states = SinkStates(states, self.warn)
        if self._states.end is None:
            raise AltgradError(f"{states} does not say where the training ended, so the run's sinks get nothing more.")
        self._over, self._loaded = True, self._states.end
        self._skipped = [(first, last) for first, last in self._loaded["skipped"]]
        self._start(self._loaded["sinks"])

    def training_ended(self) -> None:
        """Note for ``feed_sinks`` where everything stands; to be called before the event that says so."""
        assert self._states is not None
        self._over = True
        self._states.keep_end(self.state_dict())

    def _keep_end(self) -> None:
        """Note how far the sinks of a finished run have got; one that could not be closed gets the run's end once more."""
        if not self._over or self._states is None or self._states.end is None:
            return
        end, now = self._states.end, self.state_dict()["sinks"]
        for name, runner in self._runners.items():
            if runner.status != "complete" and name in now and now[name]["place"] > end["place"]:
                now[name] = end["sinks"].get(name)
        self._states.keep_end({**end, "sinks": {name: state for name, state in now.items() if state is not None}})

    def _start(self, positions: dict[str, dict[str, Any]]) -> None:
        assert self._states is not None
        for name, build in self._builds.items():
            position = self._position(name, positions, self._states.first)
            self._runners[name] = SinkRunner(
                name,
                build,
                self._file,
                position,
                skipped=self._skipped,
                keep_first=functools.partial(self._keep_first, name),
                warn=self.warn,
                patience=self._patience,
            )
        for runner in self._runners.values():
            runner.start()

    def _keep_first(self, name: str, state: str) -> None:
        assert self._states is not None
        self._states.keep_first(name, self._options[name], json.loads(state))

    def state_dict(self) -> dict[str, Any]:
        """Return where each sink stands and where it has to get: this place of the log. Waits for no sink."""
        positions = {name: runner.position for name, runner in self._runners.items()}
        # One that is still being built is left out: it will go on from its first state.
        sinks = {
            name: {**attrs.asdict(position), "options": self._options[name]}
            for name, position in positions.items()
            if position.state is not None
        }
        return {
            "place": self._file.end,
            "skipped": [list(part) for part in self._skipped],
            # Of a sink that this start does without, too: a later one may name it again.
            "sinks": {**self._loaded.get("sinks", {}), **sinks},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state out of a checkpoint; applied by ``start_sinks``. An empty one stands for none."""
        self._loaded = state

    def close(self, in_a_hurry: Callable[[], bool] = lambda: False) -> None:
        """Let the sinks come to their end, for as long as they get on; tell how each fared; close the file."""
        end = self._file.end
        for runner in self._runners.values():
            runner.finish(end)
        self._drain(in_a_hurry)
        with contextlib.suppress(RunFailed):  # of a full disk the run has told
            self._keep_end()
            if self._runners:
                outcomes = {name: runner.outcome() for name, runner in self._runners.items()}
                options = {name: self._options[name] for name in outcomes}
                self.emit({"event": "sinks", "sinks": outcomes, "options": options})
        self._file.close()

    def _position(self, name: str, kept: dict[str, dict[str, Any]], first: dict[str, dict[str, Any]]) -> Position:
        """Return where a sink begins, by what a checkpoint and ``first_states`` kept of it, whatever its name was then."""
        mine = self._of_same_options(name, kept)
        if mine is not None:
            return Position(mine["place"], mine["state"])
        mine = self._of_same_options(name, first)
        if mine is not None:
            return Position(0, json.dumps(mine["state"]))
        before = kept.get(name) or first.get(name)
        if before is not None and before["options"] not in self._options.values():
            self.warn(f"The options of the sink '{name}' have changed: it starts anew, with all events of the run.")
        return Position(0, None)

    def _of_same_options(self, name: str, known: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
        options = self._options[name]
        if name in known and known[name]["options"] == options:
            return known[name]
        # Sinks of one kind are named by their order, which may have changed.
        return next((other for other in known.values() if options and other["options"] == options), None)

    def _positions(self) -> dict[str, dict[str, Any]]:
        """Return where the sinks of the loaded state stand; what the file holds beyond that state is no part of the run."""
        start = self._file.start
        place = self._loaded.get("place", 0)
        if place > start:
            self.warn(
                f"{self.path} ends {place - start} bytes before the place of the checkpoint: the last events before it are "
                "lost (was the machine cut off, or the file edited?)."
            )
        skipped = [*self._loaded.get("skipped", []), (place, start)]
        self._skipped = [(first, min(last, start)) for first, last in skipped if first < start]
        sinks = self._loaded.get("sinks", {})
        return {name: {**sink, "place": min(sink["place"], start)} for name, sink in sinks.items()}

    def _drain(self, in_a_hurry: Callable[[], bool]) -> None:
        started, said, patience = time.monotonic(), False, self._patience
        while at_work := [runner for runner in self._runners.values() if runner.at_work]:
            at_work[0].wait(0.05)
            now = time.monotonic()
            limit_s = patience.hurried_s if in_a_hurry() else patience.drained_s
            for runner in at_work:
                what, since = runner.doing or ("", now)
                patient = what in ("build", "close") and not runner.failing
                stalled = not patient and now - max(since, started) > patience.stalled_s
                if stalled or now - started > limit_s:
                    runner.abandon()
            slow = [runner.name for runner in at_work if runner.at_work]
            if slow and not said and now - started > _SAY_AFTER_S:
                said = True
                with contextlib.suppress(RunFailed):
                    self.log(f"Waiting for the sinks: {', '.join(slow)}.")
        for runner in self._runners.values():
            runner.abandon()  # one whose thread is gone without a word
