"""``altgrad report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(help="The experiment's folder, runs/<experiment>.")],
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="Compare with this run, not with the experiment's baseline.")
    ] = None,
) -> None:
    """Write an experiment's report: one HTML page that opens anywhere."""
    from altgrad_core.analysis.report import write_report

    typer.echo(write_report(folder, baseline))
