"""``altgrad run``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from altgrad_core.analysis.compare import Comparison
    from altgrad_core.analysis.runs import Run
    from altgrad_core.console.screen import PlainScreen
    from altgrad_core.experiments.schema import Experiment, Status


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
    from altgrad_core.analysis.compare import compare
    from altgrad_core.analysis.report import write_report
    from altgrad_core.analysis.runs import load_experiment_runs
    from altgrad_core.console.screen import make_screen
    from altgrad_core.console.terminal import restored, terminal
    from altgrad_core.experiments.folder import FINISHED
    from altgrad_core.experiments.guard import Guarded
    from altgrad_core.experiments.runner import Interrupted, run_experiment

    console = terminal()
    screen = make_screen(console)
    shown = Guarded(screen, prints=True)
    folder = runs / experiment.name
    # Also before and after the training, when nothing waits for a checkpoint, a signal leaves a sane terminal.
    with restored(lambda: shown.attempt(screen.close)):
        try:
            statuses = run_experiment(
                experiment,
                runs,
                shown,
                only=only,
                fresh=fresh,
                retry_failed=retry_failed,
                jobs=jobs,
                device=device,
            )
        except Interrupted as interrupted:
            shown.attempt(screen.close)
            again = "Interrupted. Give the same command again to go on from the checkpoints."
            shown.attempt(lambda: console.print(again))
            raise typer.Exit(interrupted.exit_status) from None
        results = in_file_order(load_experiment_runs(folder), experiment)
        shown.attempt(lambda: screen.close(table_follows=len(results) > 1))
        comparison, report = compare(results), write_report(folder)
        shown.attempt(lambda: _conclude(console, screen, comparison, report, results, statuses))
    if any(status not in FINISHED for status in statuses.values()):
        raise typer.Exit(1)


def _conclude(
    console: Console,
    screen: PlainScreen,
    comparison: Comparison,
    report: Path,
    results: Sequence[Run],
    statuses: Mapping[str, Status],
) -> None:
    """Print how the runs compare, where the report is, and what is to be done about those that are not finished."""
    from altgrad_core.analysis.compare import seeds_table, table
    from altgrad_core.console.terminal import table_width
    from altgrad_core.console.words import beyond, sink_lines
    from altgrad_core.experiments.folder import FINISHED, RunFolder

    width = console.width = table_width(console)
    if len(results) > 1:
        console.print(table(comparison, width))
    if comparison.groups:
        console.print()
        console.print(seeds_table(comparison))
        console.print()
    for verdict in comparison.verdicts:
        console.print(verdict, highlight=False, markup=False)
    console.print(f"Report: {report}", highlight=False, markup=False, soft_wrap=True)
    for result in results:
        for line in sink_lines(result.sinks) if result.name in statuses else ():
            console.print(f"{result.name}: {line}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    failed = {result.name: result for result in results if statuses.get(result.name, "done") not in FINISHED}
    for name, result in failed.items():
        log = RunFolder(result.folder)
        log_end = screen.log_ends[name] if name in screen.log_ends else log.log_end()
        lines = beyond(log_end, result.reason)
        if lines:
            said = f"{name} {statuses[name]}; the end of {log.log}:"
            console.print(said, style="bold red", highlight=False, markup=False, soft_wrap=True)
        for line in lines:
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    if any(statuses[name] == "failed" for name in failed):
        console.print("Mend the cause, then give the same command with --retry-failed.", highlight=False)
    elif failed:  # killed, by the system for want of memory perhaps: nothing is to be retried, it goes on
        console.print("Give the same command again to go on from the checkpoints.", highlight=False)
