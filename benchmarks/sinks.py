"""What a sink costs a training step, the worst ones included, as ratios to the same steps without any.

    python benchmarks/sinks.py [--rounds 12] [--steps 8]

One real engine (the small GPT, E5M2 operands, per-layer statistics at every step: some hundred metrics an event) trains
block after block; each block has an event log and a sink of its own, and the variants take turns in an order that is drawn
anew each round. A step's time includes telling its events. "none" comes twice: the second says what the noise is. Then one
real ``altgrad run`` with all the bad sinks shows that it ends, and how. Figures go to ``benchmarks/results/sinks-cpu.json``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import keep_freed_memory, machine
from step import make_engine

PLUGIN = """
import time

from altgrad_core import hookimpl


class Sleeps:
    '''Takes 10 s for every event.'''

    def __init__(self):
        self.stopped = False

    def write(self, event):
        time.sleep(10)

    def close(self):
        self.stopped = True

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Raises(Sleeps):
    '''Never takes an event.'''

    def write(self, event):
        raise ConnectionError("no route to the tracker")


class Allocates(Sleeps):
    '''Keeps 1 MB for every event.'''

    def __init__(self):
        super().__init__()
        self.kept = []

    def write(self, event):
        self.kept.append(bytearray(b"x" * 1_000_000))


class Computes(Sleeps):
    '''Computes in Python for 1 ms an event: what a tracker does that formats and packs some hundred values.'''

    def write(self, event):
        end = time.perf_counter() + 0.001
        while time.perf_counter() < end:
            pass


class Never(Sleeps):
    '''Computes in Python all the time.'''

    def write(self, event):
        while not self.stopped:
            pass


@hookimpl
def altgrad_register_sinks(register):
    for kind in (Sleeps, Raises, Allocates):
        register(kind.__name__.lower(), lambda options, folder, kind=kind: kind())
"""
VARIANTS = {
    "none": None,
    "none, again": None,
    "csv": "csv",
    "sleeps 10 s a call": "Sleeps",
    "raises at every call": "Raises",
    "keeps 1 MB an event": "Allocates",
    "1 ms of Python an event": "Computes",
    "Python without end": "Never",
}
EXPERIMENT = """
[experiment]
name = "sinks"
[defaults.train]
steps = 30
eval_batches = 2
[[run]]
name = "bad"
recipe = "e5m2"
[[sink]]
kind = "sleeps"
[[sink]]
kind = "raises"
[[sink]]
kind = "allocates"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=8, help="Steps in a block.")
    arguments = parser.parse_args()
    keep_freed_memory()
    import torch

    from altgrad_core.experiments.sinkrunner import Patience

    engine = make_engine("e5m2", ["stability", "gradients", "updates"], torch.device("cpu"), small=True)
    with tempfile.TemporaryDirectory() as folder:
        builds = {name: _builder(kind) for name, kind in VARIANTS.items()}
        times = take_turns(engine, builds, arguments.rounds, arguments.steps, Path(folder), Patience(stalled_s=0.05))
        ended = _real_run(Path(folder))
    result = {
        "command": f"python benchmarks/sinks.py --rounds {arguments.rounds} --steps {arguments.steps}",
        "machine": machine(),
        "step_ms_without": round(1000 * statistics.median(itertools.chain(*times["none"])), 2),
        "ratio": ratios(times),
        "real_run": ended,
    }
    print(json.dumps(ended, indent=1))
    target = Path(__file__).parent / "results" / "sinks-cpu.json"
    target.write_text(json.dumps(result, indent=1) + "\n")


def take_turns(
    engine, builds, rounds: int, steps: int, folder: Path, patience, shape=lambda event: event, begun: bool = False
):
    """Return variant -> the seconds of each step of each of its blocks; ``builds`` are None where there is no sink.

    ``shape`` changes what the log is told of each step; ``begun``: a block waits until its sink has taken an event.
    """
    times: dict[str, list[list[float]]] = {name: [] for name in builds}
    order, chance = list(builds), random.Random(0)
    _block(engine, None, steps, folder / "warm", patience, shape, begun)
    for number in range(rounds):
        chance.shuffle(order)
        for position, name in enumerate(order):
            place = folder / f"{number}-{position}"
            times[name].append(_block(engine, builds[name], steps, place, patience, shape, begun))
    return times


def ratios(times: dict[str, list[list[float]]]) -> dict[str, dict[str, object]]:
    """Print and return each variant's step time over that of both blocks without a sink in the same round."""
    found = {}
    print(f"{'sink':28}{'x none':>8}{'middle half of the rounds':>28}")
    for name, blocks in times.items():
        each = []
        for number, block in enumerate(blocks):
            others = [times[n][number] for n in ("none", "none, again") if n != name]
            each.append(statistics.median(block) / statistics.median(itertools.chain(*others)))
        low, middle, high = statistics.quantiles(each, n=4)
        found[name] = {"median": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)]}
        print(f"{name:28}{middle:8.3f}{low:19.3f} - {high:.3f}")
    return found


def _builder(kind: str | None):
    from altgrad_csv.sink import CsvSink

    names: dict = {}
    exec(PLUGIN, names)
    if kind == "csv":
        return lambda folder: CsvSink(folder / "metrics.csv")
    return kind and (lambda folder: names[kind]())


def _block(engine, build, steps: int, folder: Path, patience, shape, begun: bool) -> list[float]:
    from altgrad_core.experiments.eventlog import EventLog

    folder.mkdir()
    log = EventLog(folder / "events.jsonl", patience)
    built = []
    if build is not None:
        log.add_sink("sink", lambda: built.append(build(folder)) or built[0])
    log.start_sinks(folder / "sinks.json")
    if begun:
        log.log("A block begins.")
        while build and log.state_dict()["sinks"].get("sink", {}).get("place") != log.state_dict()["place"]:
            time.sleep(0.01)
    engine.emit = lambda event: log.emit(shape(event))
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - started)
    log.close()
    for sink in built:
        sink.stopped = True  # an abandoned one must not disturb the next block
    return times


def _real_run(folder: Path) -> dict[str, object]:
    """Train with all bad sinks in a worker process, as a user would, and say how it ends."""
    info = folder / "site" / "bad_sinks-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "site" / "bad_sinks.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-sinks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[altgrad]\nbad = bad_sinks\n")
    (folder / "sinks.toml").write_text(EXPERIMENT)
    done = subprocess.run(
        [sys.executable, "-m", "altgrad_core.cli", "run", "sinks.toml"], cwd=folder, check=False,
        env={**os.environ, "PYTHONPATH": str(folder / "site")}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    events = [json.loads(line) for line in (folder / "runs/sinks/bad/events.jsonl").read_text().splitlines()]
    status = next(event for event in events if event["event"] == "status" and event["status"] != "running")
    return {
        "exit_status": done.returncode,
        "status": status["status"],
        "seconds_from_the_last_step_to_the_end": round(events[-1]["time"] - status["time"], 1),
        "events": len(events),
        "sinks": events[-1]["sinks"],
    }


if __name__ == "__main__":
    main()
