"""Registers the sink ``csv``: every metric as one row of ``metrics.csv`` in the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from altgrad_core.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    from altgrad_csv.sink import CsvSink


def build(options: object, run_folder: Path) -> CsvSink:
    """Append to ``metrics.csv`` beside ``events.jsonl``."""
    from altgrad_csv.sink import CsvSink

    return CsvSink(run_folder / "metrics.csv")


@hookimpl
def altgrad_register_sinks(register: Register) -> None:
    """Register ``csv``."""
    register("csv", build)
