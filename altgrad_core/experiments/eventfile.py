"""``events.jsonl`` itself: whole lines, appended in one order by any thread of the worker, and read back.

A line is on its way to the disk before ``append`` returns, so ``kill -9`` loses at most the line being written; its torn
rest is cut off when the run is resumed. A power cut loses what came after the last ``sync``, which every checkpoint waits
for. A place in the file is its distance from the beginning in bytes; every place that is handed out is the beginning of a
line.
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
from altgrad_core.files import sync_folder
from altgrad_core.training.events import Event

_BLOCK_BYTES = 1 << 16


def parse_event(line: bytes, where: str) -> Event:
    """Return the event of a whole line; an ``AltgradError`` names ``where`` it stands when it is none."""
    try:
        event = json.loads(line)
        if not isinstance(event, dict) or "event" not in event:
            raise ValueError("no event")
    except ValueError as error:
        raise not_an_event(line.decode(errors="replace"), where, error) from None
    return event


def not_an_event(text: str, where: str, error: Exception) -> AltgradError:
    """Return the error for a line that does not hold what an event holds."""
    shown = repr(text if len(text) <= 60 else text[:60] + "...")
    return AltgradError(
        f"{where}: expected one JSON object with an event, got {shown} ({type(error).__name__}: {error}). Only a torn last "
        "line is tolerated. Remove the line if it is known to be damaged, or run the experiment again with --fresh."
    )


class EventFile:
    """Open for appending by one process; ``RunFailed`` when it cannot be written to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.exists() and (whole := whole_lines(path)) < path.stat().st_size:
                os.truncate(path, whole)
            self._file = path.open("ab+", buffering=0)
        except OSError as error:
            raise RunFailed(
                f"Could not open {path}: {error}. Nothing was changed. Make the file and its folder writable, then give the "
                "same command again."
            ) from error
        self.start = self._file.seek(0, 2)
        """Place at which this process began to append."""
        self.end = self.start
        """Place after the last event."""
        self.grown = threading.Condition()
        """Held while an event is appended, notified after it."""
        self._latest = 0.0
        self._named = False  # whether the folder's entry is on the disk for sure

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

    def sync(self) -> None:
        """Wait until what was appended before is on the disk; a disk that fails is a ``RunFailed``. Blocks no ``append``."""
        try:
            os.fdatasync(self._file.fileno())
            if not self._named:
                sync_folder(self.path.parent)
                self._named = True
        except OSError as error:
            raise RunFailed(
                f"Could not bring {self.path} to the disk: {error}. Earlier checkpoints are untouched. Mend the disk, then "
                "give the same command again with --retry-failed."
            ) from error

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
        event = parse_event(self._block[offset:newline], f"{self.path}, byte {place}")
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
        where = f"{self.path}, behind byte {self._position}"
        self._position += end
        return [parse_event(line, where) for line in block[:end].splitlines()]


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
