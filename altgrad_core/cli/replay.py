"""``altgrad replay``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from altgrad_core.experiments.replay import Replay, Step
    from altgrad_core.numerics.statistics import CastStatistics

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

    from altgrad_core.errors import AltgradError
    from altgrad_core.experiments.fork import parse_moment
    from altgrad_core.experiments.replay import replay as run_again
    from altgrad_core.spelling import shown
    from altgrad_core.training.events import numbers_to_json

    overrides = ([] if recipe is None else [f"recipe={shown(recipe)}"]) + (set_ or [])
    path, _, place = moment.rpartition("@")
    if not path or not place:
        raise AltgradError(
            f"Expected RUN@STEP, a run's folder and the number of a step, such as runs/e5m2-vs-bf16/e5m2@100, got '{moment}'."
        )
    found = run_again(parse_moment(moment), overrides, device=device, say=lambda text: typer.echo(text, err=True))
    if json_:
        typer.echo(json.dumps(numbers_to_json(found.as_dict()), indent=1))
        return
    show(found, Console(highlight=False), layers)


def show(found: Replay, console: Console, layers: int) -> None:
    """Print what was found, with the ``layers`` casts that lost most."""
    console.print(_origin(found), markup=False, soft_wrap=True)
    console.print(_table(found))
    for execution in found.executions:
        for place in execution.findings.first:
            console.print(f"{_label(execution)}: first {place.kind}: {place}", markup=False, soft_wrap=True)
        if not execution.findings.first:
            console.print(f"{_label(execution)}: every number finite, nothing clamped", markup=False, soft_wrap=True)
    if not layers:
        return
    from altgrad_core.console.terminal import UNBOUND

    if any(execution.findings.casts for execution in found.executions):
        table = _worst(found, layers)
        wanted = console.measure(table, options=console.options.update(width=UNBOUND)).maximum
        console.width = max(console.width, wanted)  # a narrow terminal folds the lines, rather than the names
        console.print()
        console.print(table, crop=False)
    else:
        console.print("Nothing was cast.")


def _label(execution: Step) -> str:
    return execution.recipe + (" (changed)" if execution.changed else "")


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
    table.add_column("metric", no_wrap=True)
    table.add_column("logged", justify="right")
    for execution in found.executions:
        table.add_column(_label(execution), justify="right")
    for name in _METRICS:
        values = [execution.metrics.get(name) for execution in found.executions]
        if any(value is not None for value in values):
            table.add_row(name, *(_number(name, value) for value in (found.recorded.get(name), *values)))
    return table


def _worst(found: Replay, count: int) -> Table:
    """Return the casts that lost most in any execution, the executions one under the other."""
    from rich.table import Table
    from rich.text import Text

    from altgrad_core.analysis.table import MISSING, number, percent

    casts = [execution.findings.casts for execution in found.executions]
    names = dict.fromkeys(name for its in casts for name in its)
    ordered = sorted(names, key=lambda name: max(_lost(its[name]) for its in casts if name in its), reverse=True)
    broken = any(seen.nan or seen.inf for its in casts for seen in its.values())
    several = len(casts) > 1
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title="Casts that lost most", title_justify="left")
    for header in ("layer.operand", *(["recipe"] if several else [])):
        table.add_column(header, no_wrap=True)
    for header in (*(["NaN or inf"] if broken else []), "overflow", "underflow", "SQNR dB"):
        table.add_column(header, justify="right", no_wrap=True)
    for name in ordered[:count]:
        for index, execution in enumerate(found.executions):
            seen = casts[index].get(name)
            cells = [MISSING] * 3 if seen is None else [
                percent(100 * seen.overflow_rate), percent(100 * seen.underflow_rate), number(seen.sqnr_db, 1),
            ]  # fmt: skip
            if broken:
                cells.insert(0, MISSING if seen is None else f"{seen.nan + seen.inf:,.0f}")
            first = [name if index == 0 else "", *([_label(execution)] if several else [])]
            table.add_row(*map(Text, [*first, *cells]))
    return table


def _lost(seen: CastStatistics) -> tuple[float, float, float, float]:
    """Return what orders casts: non-finite inputs, then overflow, underflow, and the lowest SQNR; NaN is no loss."""
    known = (seen.nan + seen.inf, seen.overflow_rate, seen.underflow_rate)
    broken, overflow, underflow = (0.0 if math.isnan(value) else value for value in known)
    return broken, overflow, underflow, -math.inf if math.isnan(seen.sqnr_db) else -seen.sqnr_db


def _number(name: str, value: float | None) -> str:
    from altgrad_core.analysis.table import number, percent

    if value is None or not math.isfinite(value):
        return number(value, 0)
    return percent(100 * value) if name.endswith(("_rate", "_frac")) else f"{value:.6g}"
