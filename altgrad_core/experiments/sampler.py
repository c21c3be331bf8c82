"""Samples GPUs and host in a thread of its own, beside the training.

The thread only reads. What it read becomes an event in the thread that trains, after the next event there, so that
event log and sinks need no locks; between two events of a long step only the newest sample is kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psutil

from altgrad_core.experiments.hardware import HostSample, as_facts
from altgrad_core.experiments.nvml import NvmlReader
from altgrad_core.training.events import Event

PERIOD_S = 2.0


class Sampler:
    """Reads ``gpus`` (None on a machine without) and the host every ``period_s`` seconds inside ``with``."""

    def __init__(self, gpus: NvmlReader | None, *, period_s: float = PERIOD_S) -> None:
        self._gpus, self._period_s = gpus, period_s
        self._process = psutil.Process()
        self._waiting: list[Event] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="altgrad-sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop the thread; what waits is dropped."""
        self._stop.set()
        self._thread.join()
        if self._gpus is not None:
            self._gpus.close()

    def after(self, emit: Callable[[Event], None]) -> Callable[[Event], None]:
        """Return ``emit`` that also emits what was sampled since."""

        def emit_all(event: Event) -> None:
            emit(event)
            waiting, self._waiting = self._waiting, []
            for sample in waiting:
                emit(sample)

        return emit_all

    def _run(self) -> None:
        psutil.cpu_percent()  # the first call of a thread begins the interval that its next one measures
        while not self._stop.wait(self._period_s):
            self._waiting = self._sample()

    def _sample(self) -> list[Event]:
        memory = psutil.virtual_memory()
        host = HostSample(
            cpu_percent=psutil.cpu_percent(),
            cores=psutil.cpu_count() or 1,
            used_bytes=memory.total - memory.available,
            total_bytes=memory.total,
            process_bytes=self._process.memory_info().rss,
        )
        events: list[dict[str, Any]] = [{"event": "host", **as_facts(host)}]
        if self._gpus is not None:
            events.append({"event": "gpus", "samples": [as_facts(sample) for sample in self._gpus.sample()]})
        return events
