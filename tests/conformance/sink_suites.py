"""How the built-in sinks are built, read back and made to fail, for the public suite."""

from __future__ import annotations

import contextlib
import csv
import resource
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

from aim_reader import aim_rows, aim_runs
from altgrad_aim.sink import AimSink
from altgrad_csv.sink import CsvSink

from altgrad_core.testing import SinkConformance
from altgrad_core.testing.sinkevents import Row


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``size`` bytes, with the error that a full disk gives."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class CsvConformance(SinkConformance):
    """How ``metrics.csv`` is read, and a disk that is full."""

    def build(self, folder: Path) -> CsvSink:
        return CsvSink(folder / "metrics.csv")

    def stored(self, folder: Path) -> list[Row]:
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return [(int(step), name, float(value)) for step, name, value in list(csv.reader(file))[1:]]

    def failing(self, folder: Path) -> AbstractContextManager[None]:
        return full_disk((folder / "metrics.csv").stat().st_size + 7)


class AimConformance(SinkConformance):
    """A repository beside the runs folder, read through Aim's own classes."""

    cannot: ClassVar = {"order": "Aim keeps a sequence for each metric"}

    def build(self, folder: Path) -> AimSink:
        return AimSink("", folder)

    def stored(self, folder: Path) -> list[Row]:
        return aim_rows(aim_runs(folder.parents[2])[folder.name])

    def failing(self, folder: Path) -> AbstractContextManager[None]:
        """Let Aim's write-ahead logs take some of an event's values, each of which is about 2 KB there."""
        logs = folder.parents[2].glob(".aim/*/chunks/*/*.log")
        return full_disk(max(log.stat().st_size for log in logs) + 4000)
