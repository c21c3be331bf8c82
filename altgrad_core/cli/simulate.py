"""``altgrad simulate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def simulate(
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs, one rank each.")] = 64,
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, help="Hosts; 8 GPUs each when not given.")] = None,
    gpu: Annotated[str, typer.Option("--gpu", help="Which card: a100, b200, h100, h200.")] = "h100",
    model: Annotated[str, typer.Option("--model", help="Which model: gpt2-xl, llama-3.1-8b, ...")] = "llama-3.1-8b",
    dataset: Annotated[str, typer.Option("--dataset", help="Which text: c4-en, openwebtext, ...")] = "fineweb-edu-10bt",
    epochs: Annotated[float | None, typer.Option("--epochs", help="Instead of --steps.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps; 600 when not given.")] = None,
    speed: Annotated[str, typer.Option("--speed", help="Times as fast as the cluster would be, or max.")] = "20",
    seed: Annotated[int, typer.Option("--seed", help="The same seed plays the same story.")] = 0,
    faults: Annotated[str, typer.Option("--faults", help="How often something goes wrong: none, some, many.")] = "some",
    sink: Annotated[
        list[str] | None, typer.Option("--sink", help="Also send everything to this sink; repeatable; 'all'.")
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Where the simulated run's folder lands.")] = Path("runs"),
) -> None:
    """Play a large training that is not there: 64 GPUs on 8 nodes, with faults.

    The same events, screen and sinks as a real run, marked as simulated everywhere. Nothing is trained or measured.
    """
    import math
    import time

    from altgrad_core.console.screen import make_screen
    from altgrad_core.console.terminal import restored, terminal
    from altgrad_core.experiments.pacing import pace
    from altgrad_core.simulation.play import SimulatedRun
    from altgrad_core.simulation.stream import Simulation, plan

    factor = pace(speed)
    simulation = plan(
        Simulation(
            gpus=gpus,
            nodes=-(-gpus // 8) if nodes is None else nodes,
            gpu=gpu,
            model=model,
            dataset=dataset,
            seed=seed,
            faults=faults,  # type: ignore[arg-type]
        ),
        steps=steps,
        epochs=epochs,
    )
    run = SimulatedRun(simulation, runs, sink or ())
    screen = make_screen(terminal(), title=f"{simulation.model} on {gpus} GPUs")
    screen.now = lambda: screen.state.latest or time.time()
    name = run.folder.path.name
    screen.add(name, steps=simulation.steps)
    screen.say(f"Simulates into {run.folder.path}; `altgrad watch {run.folder.path}` shows it elsewhere.")
    fast = "as fast as possible" if math.isinf(factor) else f"{factor:g} times as fast as the cluster would be"
    screen.say(f"Plays {fast}: all times here are the cluster's, the clock in front, too.")
    with restored(screen.close):
        run.play(factor, lambda event: screen.event(name, event), screen.idle)
