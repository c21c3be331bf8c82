"""``altgrad run``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from altgrad_core.analysis.runs import Run
    from altgrad_core.experiments.schema import Experiment


def run(
    file: Annotated[Path, typer.Argument(help="The experiment file.")] = Path("experiments.toml"),
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only this run (name or pattern); repeatable.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a key in every run (train.steps=50) or in one (RUN:train.steps=50)."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Move earlier folders of the runs aside and start over.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Resume runs that failed.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Runs trained at the same time.")] = 1,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    runs: Annotated[Path, typer.Option("--runs", help="Where run folders land.")] = Path("runs"),
) -> None:
    """Train what is missing, show it live, compare, and write the report.

    Finished runs are skipped, interrupted ones resume from their newest checkpoint. Ctrl-C saves a checkpoint first.
    """
    from altgrad_core.experiments.config import load_experiment

    experiment = load_experiment(file, overrides=set_ or ())
    train_and_report(
        experiment, runs, only=only or (), fresh=fresh, retry_failed=retry_failed, jobs=jobs, device=device
    )


def in_file_order(results: Sequence[Run], experiment: Experiment) -> list[Run]:
    """Return the baseline, then the runs as the experiment file names them, then those that it does not name any more."""
    order = {run.name: index for index, run in enumerate(experiment.runs)}
    return sorted(results, key=lambda run: (not run.baseline, order.get(run.name, len(order))))


def train_and_report(
    experiment: Experiment,
    runs: Path,
    *,
    only: Sequence[str] = (),
    fresh: bool = False,
    retry_failed: bool = False,
    jobs: int = 1,
    device: str = "auto",
) -> None:
    """Train what is missing, compare, write the report; exits with 1 when a run is not finished, 128 + signal after one."""
    from altgrad_core.analysis.compare import compare, seeds_table, table
    from altgrad_core.analysis.report import write_report
    from altgrad_core.analysis.runs import load_experiment_runs
    from altgrad_core.console.screen import make_screen
    from altgrad_core.console.terminal import table_width, terminal
    from altgrad_core.console.words import beyond, sink_lines
    from altgrad_core.experiments.folder import FINISHED, RunFolder
    from altgrad_core.experiments.runner import Interrupted, run_experiment

    console = terminal()
    screen = make_screen(console)
    folder = runs / experiment.name
    try:
        statuses = run_experiment(
            experiment,
            runs,
            screen,
            only=only,
            fresh=fresh,
            retry_failed=retry_failed,
            jobs=jobs,
            device=device,
        )
        results = in_file_order(load_experiment_runs(folder), experiment)
        screen.close(table_follows=len(results) > 1)
    except Interrupted as interrupted:
        screen.close()
        console.print("Interrupted. Give the same command again to go on from the checkpoints.")
        raise typer.Exit(interrupted.exit_status) from None
    finally:
        screen.close()
    comparison = compare(results)
    width = console.width = table_width(console)
    if len(results) > 1:
        console.print(table(comparison, width, legend=screen.trains))
    if comparison.groups:
        console.print()
        console.print(seeds_table(comparison))
        console.print()
    for verdict in comparison.verdicts:
        console.print(verdict, highlight=False, markup=False)
    console.print(f"Report: {write_report(folder)}", highlight=False, markup=False, soft_wrap=True)
    for result in results:
        for line in sink_lines(result.sinks) if result.name in statuses else ():
            console.print(f"{result.name}: {line}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    reasons = {result.name: result.reason for result in results}
    failed = [name for name, status in statuses.items() if status not in FINISHED]
    for name in failed:
        log = RunFolder(folder / name)
        lines = beyond(log.log_end(), reasons.get(name, ""))
        if lines:
            said = f"{name} {statuses[name]}; the end of {log.log}:"
            console.print(said, style="bold red", highlight=False, markup=False, soft_wrap=True)
        for line in lines:
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    if failed:
        if any(statuses[name] == "failed" for name in failed):
            console.print("Mend the cause, then give the same command with --retry-failed.", highlight=False)
        else:  # killed, by the system for want of memory perhaps: nothing is to be retried, it goes on
            console.print("Give the same command again to go on from the checkpoints.", highlight=False)
        raise typer.Exit(1)
