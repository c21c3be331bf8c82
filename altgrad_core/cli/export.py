"""``altgrad export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or of an experiment for all of its runs.")],
    to: Annotated[
        str | None,
        typer.Option("--to", help="csv or parquet; by default what the name of --output ends in, else csv."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write this file; by default standard output.")
    ] = None,
    what: Annotated[str, typer.Option("--what", help="metrics, alerts, checkpoints or histograms.")] = "metrics",
) -> None:
    """Write what runs measured as one long table: run, step, metric, value.

    Of a step that was logged twice, because the run was resumed, the last value stands. NaN and infinities are kept.
    """
    from altgrad_core.analysis import export as exporting
    from altgrad_core.analysis.runs import find_runs
    from altgrad_core.errors import AltgradError

    if to is None and output is not None and output.suffix not in (".parquet", ".csv"):
        raise AltgradError(
            f"--output {output}: '{output.suffix}' is no known ending; use .csv or .parquet, or say --to csv."
        )
    if to is None:
        to = "parquet" if output is not None and output.suffix == ".parquet" else "csv"
    found = [run for folder in runs for run in find_runs(folder)]
    if output is not None:
        exporting.export_to(output, found, to, what)
        typer.echo(output)
        return
    if to == "parquet":
        raise AltgradError("Parquet is no text: name a file with --output FILE.")
    typer.echo(exporting.export(found, to, what), nl=False)
