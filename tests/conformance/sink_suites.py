"""How the built-in sinks are built, read back and made to fail, for the public suite."""

from __future__ import annotations

import contextlib
import csv
import resource
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

import pytest
from aim_reader import aim_rows, aim_runs
from altgrad_aim.sink import AimSink
from altgrad_csv.sink import CsvSink
from wandb_parts import offline_file, records, rows

from altgrad_core.testing import SinkConformance
from altgrad_core.testing.sinkevents import Row
from altgrad_core.training.events import MetricSink


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


class TensorBoardConformance(SinkConformance):
    """Event files in the run's folder, read record by record."""

    single_precision = True

    def build(self, folder: Path) -> MetricSink:
        from altgrad_tensorboard.sink import TensorBoardSink

        return TensorBoardSink(folder, folder)

    def stored(self, folder: Path) -> list[Row]:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from tensorboard.util.tensor_util import make_ndarray

        return [
            (record.step, value.tag, float(make_ndarray(value.tensor)))
            for file in sorted(folder.glob("events.out.tfevents.*"))
            for record in EventFileLoader(str(file)).Load()
            for value in record.summary.value
            if value.metadata.plugin_data.plugin_name == "scalars"
        ]

    def failing(self, folder: Path) -> AbstractContextManager[None]:
        return full_disk(max(file.stat().st_size for file in folder.glob("events.out.tfevents.*")) + 7)


class WandbConformance(SinkConformance):
    """Without a server: the file for ``wandb sync`` in the run's folder."""

    cannot: ClassVar = {
        "order": "a row of W&B holds a step's metrics by name",
        "failing_store": "W&B writes in a process of its own, whose disk the suite cannot fill",
    }

    @pytest.fixture(autouse=True)
    def fresh_session(self) -> Iterator[None]:
        """The process in which W&B writes is one for all sinks of this one."""
        yield
        import wandb

        wandb.teardown()

    def build(self, folder: Path) -> MetricSink:
        from altgrad_wandb.plugin import WandbOptions
        from altgrad_wandb.sink import WandbSink

        return WandbSink(WandbOptions(mode="offline"), folder)

    def stored(self, folder: Path) -> list[Row]:
        file, deadline = offline_file(folder), time.monotonic() + 30
        while not any(record.WhichOneof("record_type") == "exit" for record in records(file)):
            assert time.monotonic() < deadline, "W&B does not end its file"
            time.sleep(0.05)
        return [
            (int(row["_step"]), name, value)
            for row in rows(file)
            for name, value in row.items()
            if not name.startswith(("_", "alerts/", "simulated/alerts/"))
        ]


class AimConformance(SinkConformance):
    """A repository beside the runs folder, read through Aim's own classes."""

    cannot: ClassVar = {"order": "Aim keeps a sequence for each metric"}
    own_variables: ClassVar = ("AIM_TELEMETRY",)

    def build(self, folder: Path) -> AimSink:
        return AimSink("", folder)

    def stored(self, folder: Path) -> list[Row]:
        return aim_rows(aim_runs(folder.parents[2])[folder.name])

    def failing(self, folder: Path) -> AbstractContextManager[None]:
        """Let Aim's write-ahead logs take some of an event's values, each of which is about 2 KB there."""
        logs = folder.parents[2].glob(".aim/*/chunks/*/*.log")
        return full_disk(max(log.stat().st_size for log in logs) + 4000)
