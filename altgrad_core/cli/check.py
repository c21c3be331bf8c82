"""``altgrad check``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from altgrad_core.errors import AltgradError

if TYPE_CHECKING:
    from rich.table import Table

    from altgrad_core.experiments.plan import PlannedSize
    from altgrad_core.experiments.schema import Experiment, RunConfig
    from altgrad_core.plugins import Choice, Extension, Plugins
    from altgrad_core.recipes.recipe import OperandCast, Recipe


def check(
    file: Annotated[Path, typer.Argument(help="The experiment file.")] = Path("experiments.toml"),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a key in every run (train.steps=50) or in one (RUN:train.steps=50)."),
    ] = None,
    no_data: Annotated[
        bool, typer.Option("--no-data", help="Do not open the data; the sizes that depend on it are left out.")
    ] = False,
) -> None:
    """Validate an experiment file and print what it would train.

    Opens the data, and prepares it when it is not in the cache yet, because the vocabulary decides the model's size.
    """
    from rich.console import Console

    from altgrad_core.experiments.config import load_experiment
    from altgrad_core.experiments.plan import needed
    from altgrad_core.plugins import installed

    experiment = load_experiment(file, overrides=set_ or ())
    console = Console(highlight=False, soft_wrap=True)
    plugins = installed()
    sizes = {} if no_data else _sizes(experiment, plugins)
    baseline = f"baseline {experiment.baseline.name}" if experiment.baseline else "no baseline"
    console.print(f"{experiment.path}: experiment {experiment.name}, runs: {len(experiment.runs)}, {baseline}")
    console.print(plan_table(experiment, sizes), soft_wrap=False)
    console.print("\n".join(_details(experiment, sizes)), markup=False)
    if sizes:
        from altgrad_core.experiments.environment import cast_kernel

        console.print(f"Kernel of the casts on the CPU: {cast_kernel()}", markup=False)
    used = needed(experiment, plugins)
    console.print(f"Plugins: {_plugins_text(used)}", markup=False)
    for extension in used:
        if extension.missing:
            console.print(f"Missing: {extension.missing}", markup=False)
    for row in plugins.not_loaded():
        console.print(f"Did not load: {row.name} ({row.status}): {row.reason}", markup=False)


def _sizes(experiment: Experiment, plugins: Plugins) -> dict[str, PlannedSize]:
    from altgrad_core.experiments.plan import measure, open_data
    from altgrad_core.training.data import Workspace

    workspace = Workspace(say=lambda message: typer.echo(message, err=True))
    try:
        data = open_data(experiment.runs, plugins, workspace)
    except AltgradError as error:
        raise AltgradError(
            f"{experiment.path} itself is right, but its data is not: {error}\n"
            "Mend that, or see the rest of the plan with --no-data."
        ) from error
    sizes = {}
    for run in experiment.runs:
        try:
            sizes[run.name] = measure(run, plugins, data[run.name])
        except AltgradError as error:
            raise AltgradError(f"{experiment.path}: the run '{run.name}' cannot train: {error}") from error
    return sizes


def plan_table(experiment: Experiment, sizes: dict[str, PlannedSize]) -> Table:
    """Return the runs as a table; ``sizes`` are by run name, empty when the data was not opened."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from altgrad_core.experiments.plan import tokens_per_step

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for header in ("run", "recipe"):
        table.add_column(header, overflow="fold")
    for header in ("parameters", "steps", "tokens\na step", "tokens\nin all", "epochs", "state\nMiB"):
        table.add_column(header, justify="right", no_wrap=True)
    for run in experiment.runs:
        step, size = tokens_per_step(run), sizes.get(run.name)
        total = step * run.train.steps
        table.add_row(
            f"{run.name} *" if run.baseline else run.name,
            run.recipe.name,
            f"{size.parameters:,}" if size else "-",
            f"{run.train.steps:,}",
            f"{step:,}",
            f"{total:,}",
            epochs_text(total / size.train_tokens) if size else "-",
            f"{size.state_bytes / 2**20:.1f}" if size else "-",
        )
    return table


def epochs_text(count: float) -> str:
    """Return a number of epochs with two decimals; a small part of one keeps a digit that is not 0."""
    return f"{count:.2f}" if count >= 0.01 else f"{count:.1g}"


def _details(experiment: Experiment, sizes: dict[str, PlannedSize]) -> list[str]:
    lines = ["state: FP32 weights and gradients, and the optimizer's state; activations come on top."]
    if experiment.baseline:
        lines.append("*: the others are compared with this run.")
    for run in experiment.runs:
        lines.append(f"Recipe {recipe_text(run.recipe)}{_layers_text(run, sizes)}")
    for run in experiment.runs:
        lines += [f"Model {_choice_text(run.model)}", f"Data {_choice_text(run.data)}"]
        lines.append(f"Probes {', '.join(_choice_text(probe) for probe in run.probes) or 'none'}")
    for run in experiment.runs:
        for pattern in sizes[run.name].unused_overrides if run.name in sizes else ():
            lines.append(f"Warning: {run.name}: the override '{pattern}' matches no layer.")
    return list(dict.fromkeys(lines))


def recipe_text(recipe: Recipe) -> str:
    """Return a recipe in a line: what is cast to what, and the precision of the rest."""
    said = [f"{name} {_cast_text(cast)}" for name, cast in recipe.all_casts().items()] or ["no casts"]
    said += [f"{override} as {override.recipe.name}" for override in recipe.overrides]
    return f"{recipe.name}: {', '.join(said)}, the rest in {recipe.compute}"


def _cast_text(cast: OperandCast) -> str:
    how = [_choice_text(cast.scaling)]
    if cast.rounding != "nearest_even":
        how.append(cast.rounding)
    return f"{cast.format} ({', '.join(how)})"


def _layers_text(run: RunConfig, sizes: dict[str, PlannedSize]) -> str:
    size = sizes.get(run.name)
    if not size:
        return ""
    text = f"; casts {size.cast_layers} of {size.linear_layers} {' + '.join(run.recipe.layers)} layers"
    return text + "".join(f"; GEMMs of {count}: {backend}" for backend, count in size.backends.items())


def _choice_text(choice: Choice) -> str:
    from altgrad_core.spelling import shown
    from altgrad_core.structure import unstructure

    options = unstructure(choice.options)
    return " ".join([choice.kind, *(f"{key}={shown(value)}" for key, value in options.items())])


def _plugins_text(extensions: Iterable[Extension]) -> str:
    offers: dict[str, list[str]] = {}
    for extension in extensions:
        offers.setdefault(extension.plugin, []).append(f"{extension.kind} {extension.name}")
    return "; ".join(f"{plugin} ({', '.join(names)})" for plugin, names in offers.items())
