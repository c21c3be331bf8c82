"""What each installed sink costs a training step at 300 metrics a step, as a ratio to the same steps without any.

    python benchmarks/trackers.py [--rounds 6] [--steps 8] [--metrics 300]

In the manner of ``sinks.py``: one real engine, blocks that take turns, "none" twice for the noise. A block begins when its
sink has taken a first event, so that starting a tracker (a second, once a run) is not counted; what its own processes
compute is. W&B runs offline. Takes two to three minutes on two quiet cores. Figures go to
``benchmarks/results/trackers-cpu.json``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
from pathlib import Path

from machine import keep_freed_memory, machine
from sinks import ratios, take_turns
from step import make_engine

RUN = 'experiment = "trackers"\nname = "block"\n[train]\nsteps = 1000000\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=8, help="Steps in a block.")
    parser.add_argument("--metrics", type=int, default=300, help="Metrics of a step.")
    arguments = parser.parse_args()
    keep_freed_memory()
    import torch

    from altgrad_core.experiments.sinkrunner import Patience
    from altgrad_core.plugins import installed

    os.environ |= {"WANDB_MODE": "offline", "AIM_TELEMETRY": "0"}
    extensions = [installed().get("sink", name) for name in installed().names("sink")]
    builds = {"none": None, "none, again": None}
    builds |= {extension.name: _builder(extension) for extension in extensions if not extension.missing}
    engine = make_engine("e5m2", ["stability", "gradients", "updates"], torch.device("cpu"), small=True)
    logged: set[int] = set()

    def shape(event: dict) -> dict:
        """Return the event with just so many metrics."""
        if event["event"] != "metrics":
            return event
        values = list(event["values"].items())[: arguments.metrics]
        values += [(f"made_up/layer.{number}", 0.1 * number) for number in range(arguments.metrics - len(values))]
        logged.add(len(values))
        return {**event, "values": dict(values)}

    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder, "runs", "trackers")  # beside which Aim puts its repository
        runs.mkdir(parents=True)
        times = take_turns(engine, builds, arguments.rounds, arguments.steps, runs, Patience(), shape, begun=True)
    assert logged == {arguments.metrics}
    result = {
        "command": f"python benchmarks/trackers.py --rounds {arguments.rounds} --steps {arguments.steps}",
        "machine": machine(),
        "metrics_a_step": arguments.metrics,
        "step_ms_without": round(1000 * statistics.median(itertools.chain(*times["none"])), 2),
        "ratio": ratios(times),
    }
    target = Path(__file__).parent / "results" / "trackers-cpu.json"
    target.write_text(json.dumps(result, indent=1) + "\n")


def _builder(extension):
    def build(folder: Path):
        (folder / "run.toml").write_text(RUN)
        return extension.value(extension.options(), folder)

    return build


if __name__ == "__main__":
    main()
