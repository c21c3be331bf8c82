"""Registers the sink ``tensorboard``: scalars, settings and alerts of a run as event files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from altgrad_core.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    from altgrad_tensorboard.sink import TensorBoardSink


@attrs.frozen(kw_only=True)
class TensorBoardOptions:
    """``[[sink]]`` with ``kind = "tensorboard"``."""

    logdir: str | None = None
    """Folder for the event files of all runs, as ``<logdir>/<experiment>/<run>``; the run's own folder when not given."""


def build(options: TensorBoardOptions, run_folder: Path) -> TensorBoardSink:
    """Write event files for ``tensorboard --logdir runs/<experiment>``."""
    from altgrad_tensorboard.sink import TensorBoardSink

    if options.logdir is None:
        return TensorBoardSink(run_folder, run_folder)
    return TensorBoardSink(Path(options.logdir).expanduser() / run_folder.parent.name / run_folder.name, run_folder)


@hookimpl
def altgrad_register_sinks(register: Register) -> None:
    """Register ``tensorboard``."""
    register("tensorboard", build, TensorBoardOptions, needs="tensorboard")
