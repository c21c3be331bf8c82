"""``altgrad bench cast|layer|step``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

    from altgrad_core.bench.variants import Variant

app = typer.Typer(help="Measure this machine against BF16 and the peers that are installed.", no_args_is_help=True)
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Timed turns of each way.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the result to this file as well.")]
Only = Annotated[list[str] | None, typer.Option("--only", help="This way only (bf16 is always there); repeatable.")]
Compile = Annotated[bool, typer.Option("--compile", help="Through torch.compile.")]


@app.command()
def cast(
    shape: Annotated[str, typer.Option("--shape", help="ROWSxCOLUMNS.")] = "4096x1024",
    device: Device = "auto",
    rounds: Rounds = 20,
    json_: Json = None,
) -> None:
    """Casts of a BF16 matrix, beside a copy of it."""
    from altgrad_core.bench.cast import bench_cast
    from altgrad_core.errors import AltgradError

    rows, _, columns = shape.lower().partition("x")
    if not (rows.isdecimal() and columns.isdecimal()):
        raise AltgradError(f"--shape is ROWSxCOLUMNS, such as 4096x1024; got '{shape}'.")
    chosen = _device(device)
    _finish([bench_cast((int(rows), int(columns)), chosen, rounds=rounds)], chosen, json_)


@app.command()
def layer(
    shapes: Annotated[str, typer.Option("--shapes", help="MxKxN,... (samples, inputs, outputs).")] = "2048x768x3072",
    device: Device = "auto",
    rounds: Rounds = 20,
    only: Only = None,
    compile_: Compile = False,
    json_: Json = None,
) -> None:
    """A linear layer forward and backward, beside BF16."""
    from altgrad_core.bench.layer import bench_layer
    from altgrad_core.bench.verify_native import Shape

    chosen, ways = _device(device), _ways(only, compile_)
    found = [bench_layer(Shape.parse(text), ways, chosen, rounds=rounds) for text in shapes.split(",")]
    _finish(found, chosen, json_)


@app.command()
def step(
    size: Annotated[str, typer.Option("--size", help="tiny, 30M, 124M, 350M, 760M or 1.3B.")] = "30M",
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens of a step.")] = 8192,
    micro: Annotated[int, typer.Option("--micro", min=1, help="Tokens of a micro-batch.")] = 8192,
    device: Device = "auto",
    rounds: Rounds = 10,
    only: Only = None,
    compile_: Compile = False,
    json_: Json = None,
) -> None:
    """A training step of a GPT, beside BF16."""
    from altgrad_core.bench.step import SIZES, bench_step
    from altgrad_core.errors import AltgradError, unknown

    if size not in SIZES:
        raise AltgradError(unknown("size", size, tuple(SIZES)))
    chosen = _device(device)
    found = bench_step(size, _ways(only, compile_), chosen, tokens=tokens, micro=micro, rounds=rounds)
    _finish([found], chosen, json_)


def _device(name: str) -> torch.device:
    from altgrad_core.experiments.environment import choose_device

    return choose_device(name)


def _ways(only: list[str] | None, compiled: bool) -> dict[str, Variant]:
    from altgrad_core.bench.variants import variants
    from altgrad_core.errors import AltgradError, unknown

    every = variants(compiled=compiled)
    for name in only or ():
        if name not in every:
            raise AltgradError(unknown("way", name, tuple(every)))
    return {name: way for name, way in every.items() if not only or name in only or name == "bf16"}


def _finish(results: list[dict[str, Any]], device: torch.device, target: Path | None) -> None:
    import json

    from rich.console import Console

    from altgrad_core.bench.tables import show
    from altgrad_core.experiments.environment import environment
    from altgrad_core.files import write_whole

    facts = environment(device)
    show(results, facts, Console(highlight=False, soft_wrap=True))
    if target is not None:
        write_whole(target, json.dumps({"environment": facts, "results": results}, indent=1) + "\n")
