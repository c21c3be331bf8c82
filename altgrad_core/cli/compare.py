"""``altgrad compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or of an experiment for all of its runs.")],
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="Compare with this run, not with the experiment's baseline.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show runs side by side: loss, distance from the baseline, gradients, overflow, speed."""
    import json

    from rich.console import Console

    from altgrad_core.analysis import compare as comparing
    from altgrad_core.analysis.runs import find_runs
    from altgrad_core.console.terminal import table_width

    comparison = comparing.compare([run for folder in runs for run in find_runs(folder)], baseline)
    if json_:
        typer.echo(json.dumps(comparison.as_dict(), indent=2, ensure_ascii=False))
        return
    console = Console()
    width = console.width = table_width(console)
    console.print(comparing.table(comparison, width))
    console.print()
    for verdict in comparison.verdicts:
        console.print(verdict, highlight=False, markup=False)
