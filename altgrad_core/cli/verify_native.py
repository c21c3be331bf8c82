"""``altgrad verify-native``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from altgrad_core.bench.verify_native import Shape

# A GPT of 124 M parameters with 4,096 tokens; for a CPU sizes that take a second, one of them to be padded.
_SHAPES = {
    "cuda": "4096x768x2304,4096x768x768,4096x768x3072,4096x3072x768,4096x768x50304",
    "cpu": "256x128x384,256x128x512,100x200x330",
}


def verify_native(
    file: Annotated[
        Path | None, typer.Argument(help="An experiment file: the shapes of its models' linear layers.")
    ] = None,
    shapes: Annotated[
        str | None, typer.Option("--shapes", help="MxKxN,... (samples, inputs, outputs), in place of a file.")
    ] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", help="A recipe, or a format, as in an experiment file.")
    ] = "hybrid",
    scaling: Annotated[
        str | None, typer.Option("--scaling", help="current, delayed, rowwise, blockwise, in place of the recipe's.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    rounds: Annotated[int, typer.Option("--rounds", min=0, help="Timed passes of each layer; 0: no speeds.")] = 10,
    json_: Annotated[
        bool, typer.Option("--json", help="The report as JSON, which ALTGRAD_NATIVE_TABLE takes.")
    ] = False,
) -> None:
    """Check FP8 units against emulation on this machine: codes, sums within a derived bound, and speed.

    Exit status 1 when they do not agree.
    """
    import json

    from altgrad_core.bench.verify_native import Shape, verify
    from altgrad_core.errors import AltgradError
    from altgrad_core.experiments.environment import choose_device

    if file is not None and shapes is not None:
        raise AltgradError("Give an experiment file or --shapes, not both.")
    chosen = choose_device(device)
    found = (
        _shapes_of(file)
        if file is not None
        else [Shape.parse(text) for text in (shapes or _SHAPES[chosen.type]).split(",")]
    )
    spec: str | dict[str, Any] = recipe if scaling is None else {"base": recipe, "scaling": scaling}
    report = verify(found, spec, chosen, rounds=rounds)
    if json_:
        typer.echo(json.dumps(report, indent=2))
    else:
        _show(report)
    if not report["agrees"]:
        raise typer.Exit(1)


def _shapes_of(file: Path) -> list[Shape]:
    """Return the shapes of the linear layers of an experiment's models, each once."""
    import torch

    from altgrad_core.bench.verify_native import Shape
    from altgrad_core.experiments.config import load_experiment
    from altgrad_core.experiments.plan import open_data
    from altgrad_core.plugins import installed
    from altgrad_core.recipes.readers import linear_layers, neurons
    from altgrad_core.training.data import Workspace

    experiment, plugins = load_experiment(file), installed()
    workspace = Workspace(say=lambda message: typer.echo(message, err=True))
    data = open_data(experiment.runs, plugins, workspace)
    found: dict[Shape, None] = {}
    for run in experiment.runs:
        with torch.device("meta"):
            model = plugins.get("model", run.model.kind).value(run.model.options, data[run.name].vocab_size)
        tokens = run.train.batch_size * run.model.options.block_size
        for layer in linear_layers(model):
            assert isinstance(layer.weight, torch.Tensor)
            outputs, inputs = neurons(layer, layer.weight).shape
            found[Shape(m=tokens, k=inputs, n=outputs)] = None
    return list(found)


def _show(report: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    where = f"{report['device']}: {report['hardware']}"
    console.print(f"{where} · torch {report['torch']} · recipe {report['recipe']}", markup=False)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for header in ("MxKxN", "codes", "fprop", "dgrad", "wgrad", "native\nms", "emulated\nms", "BF16\nms"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in report["shapes"]:
        codes, speed = row["codes"], row["speed"] or {}
        same = f"{codes['different']:,} differ" if codes["different"] else "identical"
        table.add_row(
            f"{row['m']}x{row['k']}x{row['n']}",
            same if codes["checked"] else "-",
            *(_gemm_text(row["gemms"].get(gemm)) for gemm in ("fprop", "dgrad", "wgrad")),
            *(f"{speed[key]:.2f}" if key in speed else "-" for key in ("native_ms", "emulated_ms", "bf16_ms")),
        )
    console.print(table, soft_wrap=False)
    console.print(
        "fprop, dgrad, wgrad: largest error of a sum, as a part of the bound for an accumulator of "
        f"{report['accumulation_bits']} bits; below 1 is right.",
        markup=False,
    )
    for row in report["shapes"]:
        console.print(f"{row['m']}x{row['k']}x{row['n']}: {row['verdict']}", markup=False)
    console.print(report["verdict"], markup=False)


def _gemm_text(gemm: dict[str, Any] | None) -> str:
    if gemm is None:
        return "-"
    # Rounded to BF16, a product's error is that rounding's, which comes near its bound in some element of many.
    shown = gemm["fp32_error_to_bound"]
    return f"{gemm['error_to_bound'] if shown is None or gemm['error_to_bound'] > 1 else shown:.4f}"
