"""``sinks.json`` of a run: what its sinks need that no checkpoint holds, being older than the first or newer than the last."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from altgrad_core.files import write_whole


class SinkStates:
    """The states that sinks had when they were first built, and where they stood when the training had ended.

    A file that cannot be read stands for none, which ``warn`` is told: no training fails for what its sinks need.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._path, self._lock = path, threading.Lock()
        self.first: dict[str, dict[str, Any]] = {}
        """``options`` (their hash) and ``state``, by the sink's name."""
        self.end: dict[str, Any] | None = None
        """``EventLog.state_dict()`` of a run that is finished; None for others."""
        if not path.exists():
            return
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            self.first, self.end = dict(kept["first"]), kept["end"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            warn(
                f"{path} cannot be read ({type(error).__name__}: {error}). Sinks go on from the checkpoint, or get all events "
                "of the run anew."
            )

    def keep_first(self, name: str, options: str, state: Any) -> None:
        """Keep the state of a sink that was just built. For any thread."""
        with self._lock:
            self.first[name] = {"options": options, "state": state}
            self._write()

    def keep_end(self, state: dict[str, Any] | None) -> None:
        """Keep where the sinks stand, None for a training that goes on."""
        with self._lock:
            if state != self.end:
                self.end = state
                self._write()

    def _write(self) -> None:
        write_whole(self._path, json.dumps({"first": self.first, "end": self.end}))
