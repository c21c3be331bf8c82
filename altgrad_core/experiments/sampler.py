"""Samples GPUs and host in a thread of its own, beside the training, however long a step takes or hangs.

What it reads it emits at once: ``EventLog.emit`` may be called from any thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import psutil

from altgrad_core.errors import RunFailed
from altgrad_core.experiments.hardware import HostSample, as_facts
from altgrad_core.experiments.nvml import NvmlReader
from altgrad_core.training.events import Event

PERIOD_S = 2.0
_PATIENCE_S = 10.0


class Sampler:
    """Reads ``gpus`` (None on a machine without) and the host every ``period_s`` seconds inside ``with``, and emits it.

    A reading that fails is a warning, told once; the next one is tried all the same.
    """

    def __init__(self, gpus: NvmlReader | None, emit: Callable[[Event], None], *, period_s: float = PERIOD_S) -> None:
        self._gpus, self._emit, self._period_s = gpus, emit, period_s
        self._process = psutil.Process()
        self._warned: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="altgrad-sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop the thread; one that hangs in the driver is left behind."""
        self._stop.set()
        self._thread.join(_PATIENCE_S)
        if self._gpus is not None and not self._thread.is_alive():
            self._gpus.close()

    def _run(self) -> None:
        psutil.cpu_percent()  # the first call of a thread begins the interval that its next one measures
        while not self._stop.wait(self._period_s):
            with contextlib.suppress(RunFailed):  # a full disk: the training meets it, too, and tells it
                self._tell("host", self._host)
                if self._gpus is not None and not self._tell("GPUs", self._all_gpus):
                    self._emit({"event": "gpus", "samples": []})  # none of them can be read

    def _tell(self, what: str, read: Callable[[], Event]) -> bool:
        """Emit what is read and return True; False, with a warning the first time, when it cannot be read."""
        try:
            event = read()
        except Exception as error:
            if what not in self._warned:
                self._warned.add(what)
                message = f"Could not read the {what}: {type(error).__name__}: {error}. The training goes on."
                self._emit({"event": "log", "level": "warning", "message": message})
            return False
        self._emit(event)
        return True

    def _host(self) -> Event:
        memory = psutil.virtual_memory()
        host = HostSample(
            cpu_percent=psutil.cpu_percent(),
            cores=psutil.cpu_count() or 1,
            used_bytes=memory.total - memory.available,
            total_bytes=memory.total,
            process_bytes=self._process.memory_info().rss,
        )
        return {"event": "host", **as_facts(host)}

    def _all_gpus(self) -> Event:
        assert self._gpus is not None
        return {"event": "gpus", "samples": [as_facts(sample) for sample in self._gpus.sample()]}
