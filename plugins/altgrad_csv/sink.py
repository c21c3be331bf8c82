"""The sink ``csv``: ``step,metric,value`` rows, in the order of the events.

A resumed run cuts the file back to where its checkpoint was taken, so that no step stands in it twice.
"""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

from altgrad_core.training.events import Event, StateLost


class CsvSink:
    """Writes ``path``; rows beyond what it wrote itself, or knows by its state, are not of this run and are cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._bytes = 0

    def write(self, event: Event) -> None:
        """Write the rows of a ``metrics`` event; other events have no place in a CSV file."""
        if event["event"] != "metrics":
            return
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        if self._bytes == 0:
            writer.writerow(["step", "metric", "value"])
        writer.writerows([event["step"], name, value] for name, value in event["values"].items())
        rest = rows = text.getvalue().encode(errors="backslashreplace")
        self._file.truncate(self._bytes)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._bytes)
            raise
        self._bytes += len(rows)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the size of the file so far, in bytes."""
        return {"bytes": self._bytes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut the file back to the size it had."""
        size = os.fstat(self._file.fileno()).st_size
        if size < state["bytes"]:
            raise StateLost(f"{self.path} should have at least {state['bytes']} bytes and has {size}.")
        self._bytes = state["bytes"]
        self._file.truncate(self._bytes)
