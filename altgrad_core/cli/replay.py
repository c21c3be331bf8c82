"""``altgrad replay``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from altgrad_core.experiments.replay import Replay

_WORST = 8
_METRICS = (
    "train/loss",
    "train/grad_norm",
    "grad_cos_sim",
    "shadow_grad_snr_db",
    "overflow_rate",
    "underflow_rate",
    "sqnr_db",
    "dead_neuron_frac",
    "bit_stall_rate",
)


def replay(
    moment: Annotated[str, typer.Argument(metavar="RUN@STEP", help="A run's folder and the number of a step.")],
    recipe: Annotated[str | None, typer.Option("--recipe", help="Do the step once more with this recipe.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help='Or with this key changed: recipe.scaling="delayed"; repeatable.')
    ] = None,
    layers: Annotated[int, typer.Option("--layers", min=0, help="How many of the worst layers to show.")] = _WORST,
    json_: Annotated[
        bool, typer.Option("--json", help="Print every metric and every cast's statistics as JSON.")
    ] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Re-run one step of a run exactly, measure everything, and name the first layer and operand in trouble.

    Starts from the newest checkpoint before the step and trains up to it; writes nothing.
    """
    import json

    from rich.console import Console

    from altgrad_core.experiments.fork import parse_moment
    from altgrad_core.experiments.replay import replay as run_again
    from altgrad_core.spelling import shown
    from altgrad_core.training.events import numbers_to_json

    overrides = ([] if recipe is None else [f"recipe={shown(recipe)}"]) + (set_ or [])
    found = run_again(parse_moment(moment), overrides, device=device, say=lambda text: typer.echo(text, err=True))
    if json_:
        typer.echo(json.dumps(numbers_to_json(found.as_dict()), indent=1))
        return
    console = Console(highlight=False)
    console.print(_origin(found), markup=False, soft_wrap=True)
    console.print(_table(found))
    for execution in found.executions:
        for place in execution.findings.first:
            console.print(f"{execution.recipe}: first {place.kind}: {place}", markup=False, soft_wrap=True)
        if not execution.findings.first:
            console.print(f"{execution.recipe}: every number finite, nothing clamped", markup=False, soft_wrap=True)
    if layers:
        console.print(_worst(found, layers))


def _origin(found: Replay) -> str:
    start = "the run's beginning" if found.checkpoint is None else found.checkpoint
    again = f", {found.retrained} steps trained again" if found.retrained else ""
    verdict = {
        True: "loss and gradient norm are those of the run, bit for bit.",
        False: "loss or gradient norm differ from the run's: other data, another environment, or another AltGrad (see "
        "env.json).",
        None: "the run logged no loss at this step.",
    }[found.exact]
    return f"Step {found.step}, from {start}{again}: {verdict}"


def _table(found: Replay) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric")
    table.add_column("logged", justify="right")
    for execution in found.executions:
        table.add_column(execution.recipe + (" (changed)" if execution.changed else ""), justify="right")
    for name in _METRICS:
        values = [execution.metrics.get(name) for execution in found.executions]
        if any(value is not None for value in values):
            table.add_row(name, _number(found.recorded.get(name)), *map(_number, values))
    return table


def _worst(found: Replay, count: int) -> Table:
    """Return the casts with the highest overflow, then underflow, of the last execution."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    casts = [execution.findings.casts for execution in found.executions]
    names = sorted(casts[-1], key=lambda name: (-casts[-1][name].overflow_rate, -casts[-1][name].underflow_rate))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title="Casts that lost most", title_justify="left")
    table.add_column("layer.operand", overflow="fold")
    for execution in found.executions:
        for what in ("overflow", "underflow", "SQNR dB"):
            table.add_column(f"{execution.recipe}\n{what}", justify="right")
    for name in names[:count]:
        cells = []
        for its in casts:
            seen = its.get(name)
            cells += ["-"] * 3 if seen is None else [
                f"{seen.overflow_rate:.3%}", f"{seen.underflow_rate:.3%}", f"{seen.sqnr_db:.1f}",
            ]  # fmt: skip
        table.add_row(name, *cells)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
