"""How far something inside a run is, as ``task`` events: for a bar on the screen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from altgrad_core.training.events import Event

_EVERY_S = 0.5


class Progress:
    """Tells of one task how much is done, at most twice a second, and nothing that was told before."""

    def __init__(self, emit: Callable[[Event], None], task: str, *, total: float, unit: str) -> None:
        self._emit, self._task, self._total, self._unit = emit, task, total, unit
        self._told, self._next = 0.0, time.monotonic() + _EVERY_S

    def begin(self) -> None:
        """Tell that the task begins."""
        self._tell("begin", done=0, total=self._total, unit=self._unit)

    def advance(self, done: float) -> None:
        """Tell that ``done`` is done, if it is time to."""
        now = time.monotonic()
        if now >= self._next and done > self._told:
            self._told, self._next = done, now + _EVERY_S
            self._tell("progress", done=done, total=self._total, unit=self._unit)

    def end(self) -> None:
        """Tell that the task has ended."""
        self._tell("end")

    def _tell(self, state: str, **facts: float | str) -> None:
        self._emit({"event": "task", "task": self._task, "state": state, **facts})


@contextmanager
def telling(emit: Callable[[Event], None], task: str, *, total: float = 0, unit: str = "") -> Iterator[Progress]:
    """Tell of the beginning and the end of what is done within the context; also of its end by an exception."""
    progress = Progress(emit, task, total=total, unit=unit)
    progress.begin()
    try:
        yield progress
    finally:
        progress.end()
