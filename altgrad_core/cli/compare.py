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
    loss_target: Annotated[
        float | None,
        typer.Option(
            "--loss-target",
            help="Count the steps to this loss, in nats a token; by default to 1 % above the baseline's final loss.",
            show_default=False,
        ),
    ] = None,
    assert_within: Annotated[
        str | None,
        typer.Option(
            "--assert-within",
            metavar="PERCENT%",
            help="Exit with status 1 unless every run is done and ends within this distance of the baseline's loss, "
            "above or below: 1% for a loss of 2.02 against 2.00.",
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show runs side by side: loss, distance from the baseline, gradients, overflow, speed, alerts.

    Runs that differ only in their seed are also shown as one, with mean and standard deviation.
    """
    import json

    from rich.console import Console

    from altgrad_core.analysis import compare as comparing
    from altgrad_core.analysis.runs import find_runs
    from altgrad_core.analysis.within import beyond, parse_limit
    from altgrad_core.console.terminal import table_width

    limit = None if assert_within is None else parse_limit(assert_within)
    found = [run for folder in runs for run in find_runs(folder)]
    comparison = comparing.compare(found, baseline, loss_target=loss_target)
    failures = [] if limit is None else beyond(comparison, limit)
    if json_:
        answer = comparison.as_dict()
        if limit is not None:
            answer["assert_within"] = {"limit_percent": limit, "failures": failures}
        typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        console = Console()
        width = console.width = table_width(console)
        for block in comparing.blocks(comparison, width):
            console.print(block)
            console.print()
        for verdict in comparison.verdicts:
            console.print(verdict, highlight=False, markup=False)
        if limit is not None and not failures:
            console.print(f"All are within {limit:g} % of the baseline.", highlight=False)
    for failure in failures:
        typer.echo(failure, err=True)
    if failures:
        raise typer.Exit(1)
