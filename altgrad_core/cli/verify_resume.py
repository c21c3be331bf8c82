"""``altgrad verify-resume``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_SHOWN = 20


def verify_resume(
    file: Annotated[Path, typer.Argument(help="The experiment file.")] = Path("experiments.toml"),
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only this run (name or pattern); repeatable.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a key in every run (train.batch_size=4) or in one (RUN:...)."),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=2, help="Steps to train.")] = 20,
    at: Annotated[
        int | None, typer.Option("--at", min=1, help="Step to interrupt at; half of --steps if not given.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Prove that resuming is exact on this machine: train straight, train with an interruption, compare bit for bit.

    Runs are trained in a folder that is removed afterwards. Exit status 1 when anything differs.
    """
    import signal
    import sys
    import tempfile

    from rich.console import Console
    from rich.progress import track

    from altgrad_core.errors import AltgradError
    from altgrad_core.experiments.config import load_experiment
    from altgrad_core.experiments.runner import select_runs
    from altgrad_core.experiments.verify_resume import verify_resume as verify

    interrupt_at = steps // 2 if at is None else at
    if interrupt_at >= steps:
        raise AltgradError(f"--at is below --steps, {steps}; got {interrupt_at}.")
    console = Console(highlight=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # an exit that removes the folder
    selected = select_runs(load_experiment(file, overrides=set_ or ()), only or ())
    found = []
    with tempfile.TemporaryDirectory(prefix="altgrad-verify-resume-") as folder:
        for run in track(selected, "Training", console=console, disable=not console.is_terminal, transient=True):
            one = verify(run, Path(folder) / run.name, steps=steps, interrupt_at=interrupt_at, device=device)
            found.append(one)
            verdict = f"{len(one.differences):,} DIFFER" if one.differences else "all the same, bit for bit"
            console.print(
                f"{one.run}: {one.steps} steps straight, and interrupted after {one.interrupted_at}: "
                f"{one.compared:,} tensors, values and metrics compared, {verdict}",
                markup=False,
            )
            for line in one.differences[:_SHOWN]:
                console.print(f"  {line}", markup=False)
            if len(one.differences) > _SHOWN:
                console.print(f"  and {len(one.differences) - _SHOWN:,} more")
    if any(one.differences for one in found):
        raise typer.Exit(1)
