"""What the integration tests share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from altgrad_checkpoint.local import LocalBackend
from typer.testing import CliRunner

import altgrad_core as altgrad
from altgrad_core.cli.main import app
from altgrad_core.errors import AltgradError

MakeExperiment = Callable[..., Path]


def altgrad_cli(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own and return what it said."""
    command = [sys.executable, "-m", "altgrad_core.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, cwd=cwd)


def altgrad_here(*arguments: object) -> tuple[int, str]:
    """Run the command line in this process, which spares the imports; return the exit status and what it said."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if isinstance(done.exception, AltgradError):
        return done.exception.exit_status, f"{done.output}altgrad: {done.exception}"
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


TIMES = ("train/tokens_per_s", "train/step_s", "train/probe_s")


def comparable_metrics(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Return every metric of a run but those that measure the machine: name -> steps, values."""
    run = altgrad.load_run(folder)
    return {name: run.metrics(name) for name in run.metric_names() if name not in TIMES}


def state_hash(folder: Path, checkpoint: str) -> str:
    """Return the hash of the state in a checkpoint, after checking it."""
    return LocalBackend(folder / "checkpoints").verify(checkpoint).state_hash
