"""Event files that can be cut: what a run that crashed wrote beyond its checkpoint goes, to the byte.

Every stretch of a run writes a file of its own; TensorBoard reads those of a folder in the order of their names, as one.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event as Record
from tensorboard.compat.proto.event_pb2 import SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter

from altgrad_core.errors import AltgradError

_STEM, _SUFFIX = "events.out.tfevents.", ".altgrad"
_OWNER = "altgrad-run"  # a text file in a folder outside the run's own: the path of the run's folder


def claim(folder: Path, run_folder: Path) -> None:
    """Make ``folder`` that of the event files of the run in ``run_folder``; ``AltgradError`` when it is another run's.

    A run that starts over removes the event files in its folder, so that must not be one of another run.
    """
    folder, run_folder = folder.resolve(), run_folder.resolve()
    if folder == run_folder:
        return
    note = folder / _OWNER
    owner = folder if (folder / "run.toml").exists() else _noted(note, run_folder)
    if owner != run_folder:
        raise AltgradError(
            f"Expected a logdir where {folder} is free, but that has the event files of the run in {owner}, and this is the "
            f"run in {run_folder}: give one of the two another logdir, or none. If it is the same run, which was moved, "
            f"delete {note}."
        )


def _noted(note: Path, run_folder: Path) -> Path:
    """Return the run folder in ``note``, which is made with ``run_folder`` when it is not there."""
    note.parent.mkdir(parents=True, exist_ok=True)
    whole = note.with_name(f"{_OWNER}-{os.getpid()}")
    whole.write_bytes(os.fsencode(run_folder))
    try:
        os.link(whole, note)  # of two runs that begin at once the first one gets the folder
    except FileExistsError:
        return Path(os.fsdecode(note.read_bytes()))
    finally:
        whole.unlink()
    return run_folder


class EventFiles:
    """The event files of one run in ``folder``, numbered from 1; others there are left alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._number = 0  # of the file that was written to last
        self._bytes = 0  # its size
        self._step = -1  # the last step in the files
        self._file: io.FileIO | None = None

    def state(self) -> dict[str, Any]:
        """Return where the files end now."""
        return {"file": self._number, "bytes": self._bytes, "step": self._step}

    def cut(self, state: dict[str, Any]) -> bool:
        """Go back to a ``state``; False, and no file is left, when not all of it is there any more."""
        self._number, self._bytes, self._step = state["file"], state["bytes"], state["step"]
        files = [self._path(number) for number in range(1, self._number + 1)]
        there = all(path.exists() for path in files) and (not files or files[-1].stat().st_size >= self._bytes)
        if not there:
            self._number, self._bytes, self._step = 0, 0, -1
        elif files:
            with files[-1].open("r+b") as file:
                file.truncate(self._bytes)
        self._remove_later()
        return there

    def write(self, record: Record) -> None:
        """Append a record; when it raises, it has left nothing that stays."""
        if self._file is None:
            self._file = self._begin(record.wall_time)
        self._append(self._file, record)
        self._step = max(self._step, record.step)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _begin(self, wall_time: float) -> io.FileIO:
        """Open the file of this stretch."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_later()
        file = self._path(self._number + 1).open("wb", buffering=0)
        before, self._bytes = self._bytes, 0
        try:
            self._append(file, Record(wall_time=wall_time, file_version="brain.Event:2"))
            # A TensorBoard that has read what was cut off forgets it when it sees that these steps begin anew.
            start = SessionLog(status=SessionLog.START)
            self._append(file, Record(wall_time=wall_time, step=self._step + 1, session_log=start))
        except BaseException:
            self._bytes = before
            file.close()
            raise
        self._number += 1
        return file

    def _append(self, file: io.FileIO, record: Record) -> None:
        framed = io.BytesIO()
        RecordWriter(framed).write(record.SerializeToString())
        rest = framed.getvalue()
        end = self._bytes + len(rest)
        file.truncate(self._bytes)  # also takes away what an attempt that failed left
        file.seek(self._bytes)
        while rest:
            rest = rest[file.write(rest) :]
        self._bytes = end

    def _remove_later(self) -> None:
        for path in self.folder.glob(f"{_STEM}*{_SUFFIX}"):
            digits = path.name.removeprefix(_STEM).removesuffix(_SUFFIX)
            if digits.isdecimal() and int(digits) > self._number:
                path.unlink()

    def _path(self, number: int) -> Path:
        return self.folder / f"{_STEM}{number:06d}{_SUFFIX}"
