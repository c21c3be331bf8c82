"""A run's folder: where things are, who holds it, and what state the run is in.

The state is what the last ``status`` event says, except that a run is *running* only while a living process holds
the lock: the operating system drops the lock with the process, also after ``kill -9``.
"""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from altgrad_core.errors import AltgradError
from altgrad_core.experiments.history import last_status
from altgrad_core.experiments.schema import Status

FINISHED: tuple[Status, ...] = ("done", "stopped")
"""States that no further training follows; the others are to be resumed or mended."""
_PATIENCE_S = 1.0


@attrs.frozen
class RunFolder:
    """``runs/<experiment>/<run>``."""

    path: Path

    @property
    def config(self) -> Path:
        """The run's complete configuration."""
        return self.path / "run.toml"

    @property
    def parent_config(self) -> Path:
        """Of a fork: the ``run.toml`` of its parent when it branched off, so that the parent may go."""
        return self.path / "parent.toml"

    @property
    def environment(self) -> Path:
        """Versions, device, git commit."""
        return self.path / "env.json"

    @property
    def events(self) -> Path:
        """The truth: one JSON object a line."""
        return self.path / "events.jsonl"

    @property
    def sinks(self) -> Path:
        """What the run's sinks need beside the checkpoints; see ``SinkStates``."""
        return self.path / "sinks.json"

    @property
    def log(self) -> Path:
        """What the worker process printed."""
        return self.path / "log.txt"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoint backends store."""
        return self.path / "checkpoints"

    @property
    def has_checkpoints(self) -> bool:
        """Whether the run has saved a checkpoint of its own; what a fork began with is none."""
        return self.checkpoints.is_dir() and any(self.checkpoints.glob("step-*"))

    @property
    def anomalies(self) -> Path:
        """What the flight recorder leaves."""
        return self.path / "anomalies"

    @property
    def lock(self) -> Path:
        """Locked by the worker for as long as it lives; names it."""
        return self.path / "run.lock"

    @property
    def log_size(self) -> int:
        """How many bytes the run's workers have printed; every start goes on in the same file."""
        return self.log.stat().st_size if self.log.exists() else 0

    def log_end(self, start: int = 0, lines: int = 15) -> str:
        """Return the last lines that the run's workers printed behind byte ``start``; empty when they printed nothing."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(start)
            text = file.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def status(self) -> Status:
        """Return the state of the run; see the module's text."""
        if self.holder() is not None:
            return "running"
        last = last_status(self.events)
        if last is None:  # with checkpoints it did train, and its events are lost
            return "interrupted" if self.has_checkpoints else "pending"
        status: Status = last["status"]
        return "interrupted" if status == "running" else status

    def holder(self) -> str | None:
        """Return who holds the run ("pid 123 on host"), None when nobody does."""
        return holder_of(self.lock)


def holder_of(lock: Path) -> str | None:
    """Return who holds a lock of ``hold`` ("pid 123 on host"), None when nobody does."""
    if not lock.exists():
        return None
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().decode().strip() or "another process"
    return None


@contextmanager
def hold(lock: Path, what: str) -> Iterator[None]:
    """Hold ``lock`` for as long as the context; an ``AltgradError`` says who holds ``what`` when it is taken."""
    try:
        file = lock.open("a+")
    except OSError as error:
        raise AltgradError(f"Could not open {lock}: {error}. Make the folder writable, or choose another.") from error
    with file:
        # Somebody who only asks for the holder locks for a moment too: that is waited out.
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    raise AltgradError(f"{what} is held by {holder}. Wait for it, or stop that process.") from None
                time.sleep(0.01)
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield
