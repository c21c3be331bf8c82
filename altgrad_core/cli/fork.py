"""``altgrad fork``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def fork(
    moment: Annotated[
        str,
        typer.Argument(metavar="RUN@STEP", help="A run's folder and a checkpoint: a step, latest, best, or a name."),
    ],
    name: Annotated[str, typer.Option("--name", help="Name of the new run, whose folder lies beside its parent's.")],
    recipe: Annotated[str | None, typer.Option("--recipe", help="Train on with this recipe.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="What else is changed: train.steps=600, train.learning_rate=1e-4; repeatable."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Move an earlier fork of that name aside and start over.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Resume the fork when it failed.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Train on from a checkpoint of another run, with another recipe, learning rate or optimizer.

    The same command again resumes the fork, or says that it is done. With nothing changed it repeats its parent, bit for
    bit.
    """
    from altgrad_core.cli.run import train_and_report
    from altgrad_core.experiments.fork import parse_moment, plan_fork
    from altgrad_core.experiments.schema import Experiment
    from altgrad_core.spelling import shown

    parent = parse_moment(moment)
    overrides = ([] if recipe is None else [f"recipe={shown(recipe)}"]) + (set_ or [])
    config = plan_fork(parent, name, overrides, fresh=fresh)
    runs = parent.folder.path.resolve().parent.parent
    if runs.is_relative_to(Path.cwd()):
        runs = runs.relative_to(Path.cwd())
    experiment = Experiment(name=config.experiment, runs=(config,), path=str(parent.folder.config))
    train_and_report(experiment, runs, fresh=fresh, retry_failed=retry_failed, device=device)
