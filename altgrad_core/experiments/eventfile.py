"""``events.jsonl`` itself: whole lines, appended in one order by any thread of the worker, and read back.

A line is on its way to the disk before ``append`` returns, so ``kill -9`` loses at most the line being written; its torn
rest is cut off when the run is resumed. A place in the file is its distance from the beginning in bytes; every place
that is handed out is the beginning of a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from io import FileIO
from pathlib import Path

from altgrad_core.errors import AltgradError, RunFailed
from altgrad_core.training.events import Event

_BLOCK_BYTES = 1 << 16


class EventFile:
    """Open for appending by one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and (whole := whole_lines(path)) < path.stat().st_size:
            os.truncate(path, whole)
        self._file = path.open("ab+", buffering=0)
        self.start = self._file.seek(0, 2)
        """Place at which this process began to append."""
        self.end = self.start
        """Place after the last event."""
        self.grown = threading.Condition()
        """Held while an event is appended, notified after it."""
        self._latest = 0.0

    def append(self, event: Event) -> None:
        """Append an event, stamped with the time (never less than that of the event before it in this process).

        A full disk is a ``RunFailed``; what is no JSON, such as a NaN, a ``ValueError`` or ``TypeError``.
        """
        with self.grown:
            now = max(self._latest, round(time.time(), 3))
            text = json.dumps({"time": now, **event}, ensure_ascii=False, allow_nan=False)
            # Half of a surrogate pair, as in the name of a file that is not UTF-8, becomes the JSON escape it is.
            self._write(text.encode(errors="backslashreplace") + b"\n")
            self._latest = now
            self.grown.notify_all()

    def count(self, start: int, end: int) -> int:
        """Return the number of events from the place ``start`` up to ``end``."""
        events = 0
        while start < end and (block := os.pread(self._file.fileno(), min(end - start, 1 << 20), start)):
            events += block.count(b"\n")
            start += len(block)
        return events

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, line: bytes) -> None:
        start = self._file.seek(0, 2)
        end = start + len(line)
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
        self.end = end


class EventReader:
    """Reads single events of a file that is being written; opens it when it reads the first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None
        self._block, self._start = b"", 0

    def read(self, place: int, end: int) -> tuple[Event, int]:
        """Return the event at ``place`` and the place after it; ``end`` is one at which whole lines end.

        Nothing behind ``end`` is looked at: a full disk may have left half a line there that is taken away again.
        """
        if self._file is None:
            self._file = self.path.open("rb", buffering=0)
        offset, size = place - self._start, _BLOCK_BYTES
        newline = self._block.find(b"\n", offset) if 0 <= offset < len(self._block) else -1
        while newline < 0:
            self._file.seek(place)
            self._block, self._start, offset = self._file.read(min(size, end - place)) or b"", place, 0
            newline = self._block.find(b"\n")
            if newline < 0 and len(self._block) < size:
                raise AltgradError(f"{self.path} ends within the event at byte {place}.")
            size *= 4
        try:
            event: Event = json.loads(self._block[offset:newline])
        except ValueError as error:
            raise AltgradError(f"{self.path} is damaged at byte {place}: {error}.") from error
        return event, self._start + newline + 1

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class EventTail:
    """Reads the complete lines that are new in an event file since the last call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = whole_lines(path)

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


def whole_lines(path: Path) -> int:
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
