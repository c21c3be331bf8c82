"""The sink ``csv``: ``step,metric,value`` rows, in the order of the events.

A resumed run cuts the file back to where its checkpoint was taken, so that no step stands in it twice.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from altgrad_core.training.events import Event


class CsvSink:
    """Writes ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        if self._file.tell() == 0:
            self._writer.writerow(["step", "metric", "value"])

    def write(self, event: Event) -> None:
        """Write the rows of a ``metrics`` event; other events have no place in a CSV file."""
        if event["event"] == "metrics":
            self._writer.writerows([event["step"], name, value] for name, value in event["values"].items())
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the size of the file so far, in bytes."""
        return {"bytes": self._file.tell()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut the file back to the size it had."""
        self._file.truncate(state["bytes"])
        self._file.seek(0, 2)
