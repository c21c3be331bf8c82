"""The event log of a run: appends to ``events.jsonl`` and hands every event to the sinks.

A line is on its way to the disk before ``emit`` returns, so ``kill -9`` loses at most the line being written; its torn
rest is cut off when the run is resumed. A sink that raises is closed and dropped with one warning: training goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path
from typing import Any

from altgrad_core.errors import RunFailed
from altgrad_core.files import write_whole
from altgrad_core.training.events import Event, MetricSink


class EventLog:
    """Open for one worker. Sinks receive nothing before ``start_sinks``: a resumed run first gives them their state."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and (whole := _whole_lines(path)) < path.stat().st_size:
            os.truncate(path, whole)
        self._file = path.open("ab", buffering=0)
        self._sinks: dict[str, MetricSink] = {}
        self._states: dict[str, Any] = {}
        self._waiting: list[Event] | None = []

    def emit(self, event: Event) -> None:
        """Append an event, stamped with the time; a full disk is a ``RunFailed``."""
        event = {"time": round(time.time(), 3), **event}
        self._append(json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        if self._waiting is not None:
            self._waiting.append(event)
        else:
            self._forward(event)

    def log(self, message: str, level: str = "info") -> None:
        """Emit a ``log`` event."""
        self.emit({"event": "log", "level": level, "message": message})

    def warn(self, message: str) -> None:
        """Emit a ``log`` event of level ``warning``."""
        self.log(message, "warning")

    def add_sink(self, name: str, build: Callable[[], MetricSink]) -> None:
        """Build a sink; one that cannot be built is left out with a warning."""
        try:
            self._sinks[name] = build()
        except Exception as error:
            self.warn(f"The sink '{name}' could not start and receives nothing: {type(error).__name__}: {error}")

    def start_sinks(self, first_states: Path) -> None:
        """Give each sink its state, then the events that waited.

        The state is that of the checkpoint (``load_state_dict``). A run that starts over before its first
        checkpoint gets the state its sinks had at its very first start, kept in ``first_states``.
        """
        if not self._states and first_states.exists():
            self._states = json.loads(first_states.read_text())
        for name in list(self._sinks):
            if name in self._states:
                self._guarded(name, methodcaller("load_state_dict", self._states[name]))
        if not first_states.exists():
            write_whole(first_states, json.dumps(self.state_dict()))
        waiting, self._waiting = self._waiting or [], None
        for event in waiting:
            self._forward(event)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every sink."""
        states = {name: self._guarded(name, methodcaller("state_dict")) for name in list(self._sinks)}
        return {name: state for name, state in states.items() if name in self._sinks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the states out of a checkpoint; applied by ``start_sinks``."""
        self._states = state

    def close(self) -> None:
        """Close the sinks, then the file."""
        for name in list(self._sinks):
            self._guarded(name, methodcaller("close"))
        self._sinks = {}
        self._file.close()

    def _append(self, line: bytes) -> None:
        start = self._file.seek(0, 2)
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            # What a full disk took of the line must not stand before the next one.
            with contextlib.suppress(OSError):
                self._file.truncate(start)
            raise RunFailed(
                f"Could not append to {self.path}: {error}. What is written so far is kept. Make room or make the folder "
                "writable, then give the same command again."
            ) from error

    def _forward(self, event: Event) -> None:
        for name in list(self._sinks):
            self._guarded(name, methodcaller("write", event))

    def _guarded(self, name: str, call: Callable[[MetricSink], Any]) -> Any:
        try:
            return call(self._sinks[name])
        except Exception as error:
            sink = self._sinks.pop(name)
            with contextlib.suppress(Exception):
                sink.close()
            self.warn(f"The sink '{name}' failed and receives nothing more: {type(error).__name__}: {error}")


class EventTail:
    """Reads the complete lines that are new in an event file since the last call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = _whole_lines(path)

    def new(self) -> list[Event]:
        """Return the new events, oldest first."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._position)
            block = file.read()
        end = block.rfind(b"\n") + 1
        self._position += end
        return [json.loads(line) for line in block[:end].splitlines()]


def _whole_lines(path: Path) -> int:
    """Return the length in bytes of a file's complete lines; what follows is a line that a crash tore."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        end = file.seek(0, 2)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
