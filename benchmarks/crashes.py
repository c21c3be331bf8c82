"""Kills real trainings with SIGKILL at random moments and checks that nothing is lost and every bit comes out right.

    python benchmarks/crashes.py [--kills 120] [--seed 0] [--jobs 2] [--output benchmarks/results/crashes-cpu.json]

Four small runs (bf16; e5m2 with delayed scaling; stochastic rounding of everything that a recipe casts; e4m3fn with dropout
and accumulation) are trained once without interruption. Then each is trained again and again by worker processes that
are killed: at any time, start-up included; as soon as a checkpoint is being written, an old one removed, a pointer moved,
or an evaluation has begun. After every kill

* the run counts as interrupted, every checkpoint with a final name is whole, and the newest one is not older than before;
* a reader of ``events.jsonl`` finds whole lines and no step missing up to the last one.

When a run has come to its end, its final checkpoint has the state hash of the uninterrupted one, every metric (but those
that measure the machine) is the same at every step, and the rows of the CSV sink are the same: none lost, none doubled.
Then it starts over, until so many kills are done.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import machine

import altgrad_core as altgrad
from altgrad_core.experiments.assembly import open_checkpoints
from altgrad_core.experiments.config import dump_run, load_experiment
from altgrad_core.experiments.folder import RunFolder
from altgrad_core.experiments.schema import RunConfig
from altgrad_core.experiments.verify_resume import TIMES

EXPERIMENT = """
[experiment]
name = "crashes"
[defaults.model]
n_layer = 2
n_head = 2
n_embd = 32
block_size = 32
[defaults.data]
kind = "text"
path = "text"
tokenizer = "bytes"
[defaults.train]
steps = 60
batch_size = 4
warmup_steps = 5
learning_rate = 3e-3
eval_every = 7
eval_batches = 2
[defaults.checkpoint]
every = 3
keep = 2
[defaults.probes]
gradients = { every = 2 }
stability = { every = 2 }
updates = { every = 3 }
shadow = { every = 5 }

[[run]]
name = "bf16"
recipe = "bf16"
[[run]]
name = "e5m2-delayed"
recipe = { base = "e5m2", scaling = { kind = "delayed", history = 4 } }
[[run]]
name = "stochastic"
[run.recipe]
base = "e5m2"
scaling = { kind = "delayed", history = 4 }
gradient = { format = "e5m2", rounding = "stochastic" }
weight_storage = { format = "e5m6", rounding = "stochastic" }
optimizer_state = { format = "e5m6", rounding = "stochastic" }
saved_activations = { format = "e4m3fn", rounding = "stochastic" }
[[run]]
name = "dropout"
recipe = "e4m3fn"
model = { dropout = 0.1 }
train = { accumulate = 2 }

[[sink]]
kind = "csv"
"""
# What a kill waits for, and how often it is chosen.
MOMENTS = {"any": 4, "step": 3, "save": 4, "rotation": 3, "pointer": 3, "evaluation": 2}
GRACE_S = 300.0


class Crashed(AssertionError):
    """Something that must hold after a crash does not."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="Runs that are tortured at the same time.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "crashes-cpu.json")
    arguments = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="altgrad-crashes-") as folder:
        result = campaign(Path(folder), kills=arguments.kills, seed=arguments.seed, jobs=arguments.jobs)
    result = {
        "command": f"python benchmarks/crashes.py --kills {arguments.kills} --seed {arguments.seed}",
        "machine": machine(),
        "seconds": round(time.perf_counter() - started),
        **result,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["kills"], indent=1))
    print(f"{result['completed_runs']} runs came to their end, each with the bits of the uninterrupted one.")


def campaign(folder: Path, *, kills: int, seed: int, jobs: int, only: str = "") -> dict[str, Any]:
    """Kill ``kills`` trainings in ``folder`` and return what was counted; raises ``Crashed`` when anything is wrong.

    ``only`` names the one run to torture.
    """
    os.environ["ALTGRAD_CACHE"] = str(folder / "cache")
    os.environ["OMP_NUM_THREADS"] = "1"
    text = folder / "text"
    text.mkdir()
    for number in range(20):
        (text / f"{number}.txt").write_text(f"Document {number}. " + "The quick brown fox jumps over it. " * 20)
    file = folder / "crashes.toml"
    file.write_text(EXPERIMENT.replace('"text"\ntokenizer', f'"{text}"\ntokenizer'))
    configs = [run for run in load_experiment(file).runs if only in ("", run.name)]
    share = [kills // len(configs) + (number < kills % len(configs)) for number in range(len(configs))]
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        work = [
            pool.submit(_torture, config, folder, count, random.Random(f"{seed} {config.name}"))
            for config, count in zip(configs, share, strict=True)
        ]
        counts = [one.result() for one in work]
    happened: Counter[str] = Counter()
    for count in counts:
        happened.update(count)
    completed = happened.pop("completed")
    return {"kills": {"total": sum(happened.values()), **dict(sorted(happened.items()))}, "completed_runs": completed}


def _torture(config: RunConfig, folder: Path, kills: int, dice: random.Random) -> Counter[str]:
    straight = RunFolder(folder / "straight" / config.name)
    seconds = _train(config, straight)
    done: Counter[str] = Counter()
    number = 0
    while sum(done.values()) - done["completed"] < kills:
        run = RunFolder(folder / "killed" / f"{config.name}-{number}")
        number += 1
        _begin(config, run)
        newest = -1
        while True:
            enough = sum(done.values()) - done["completed"] >= kills
            moment = "" if enough else dice.choices(list(MOMENTS), list(MOMENTS.values()))[0]
            killed_in = _kill_once(run, moment, dice, seconds)
            if not killed_in:
                break
            done[killed_in] += 1
            newest = _check_after_crash(config, run, newest)
        _check_end(config, run, straight)
        done["completed"] += 1
    return done


def _begin(config: RunConfig, run: RunFolder) -> None:
    run.path.mkdir(parents=True)
    run.config.write_text(dump_run(config))


def _start(run: RunFolder) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "altgrad_core.experiments.worker", str(run.path), "--device", "cpu"]
    with run.log.open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)


def _train(config: RunConfig, run: RunFolder) -> float:
    """Train without interruption; returns the seconds that it took."""
    _begin(config, run)
    started = time.perf_counter()
    worker = _start(run)
    if worker.wait() != 0:
        raise Crashed(f"{run.path} did not train: {run.log.read_text()[-2000:]}")
    return time.perf_counter() - started


def _kill_once(run: RunFolder, moment: str, dice: random.Random, seconds: float) -> str:
    """Start the run and kill it at a moment; returns what it was doing, empty when it came to its end before."""
    worker = _start(run)
    if moment:
        deadline = time.perf_counter() + GRACE_S
        began = time.perf_counter()
        waits = _waits(run, moment, dice, seconds, run.events.stat().st_size if run.events.exists() else 0)
        while worker.poll() is None and not waits(time.perf_counter() - began):
            if time.perf_counter() > deadline:
                raise Crashed(f"{run.path} hangs")
            time.sleep(0.0003)
        time.sleep(dice.uniform(0, 0.004))
        worker.kill()
    status = worker.wait()
    if status == 0:
        return ""
    if status != -9:
        raise Crashed(f"{run.path} ended with {status}: {run.log.read_text()[-2000:]}")
    return _activity(run)


def _waits(run: RunFolder, moment: str, dice: random.Random, seconds: float, size: int) -> Callable[[float], bool]:
    """Return a function of the seconds since the start that tells whether the moment has come."""
    if moment == "any":
        after = dice.uniform(0, seconds)
        return lambda elapsed: elapsed > after
    if moment == "step":
        grown = size + dice.randrange(2_000, 200_000)
        return lambda elapsed: run.events.exists() and run.events.stat().st_size > grown
    if moment == "evaluation":
        return lambda elapsed: (
            run.events.exists() and run.events.stat().st_size > size and _last_event(run) == "evaluation"
        )
    prefix = {"save": ".saving-step", "rotation": ".deleted-", "pointer": ".saving-latest"}[moment]
    skip = dice.randrange(4)  # not always the first one after the start
    seen: set[int] = set()

    def comes(elapsed: float) -> bool:
        try:
            found = next((entry for entry in os.scandir(run.checkpoints) if entry.name.startswith(prefix)), None)
            if found is not None:
                seen.add(found.inode())
        except OSError:
            return False
        return found is not None and len(seen) > skip

    return comes


def _activity(run: RunFolder) -> str:
    """Return what a killed worker was doing, by what it left."""
    names = os.listdir(run.checkpoints) if run.checkpoints.is_dir() else []
    for prefix, what in ((".deleted-", "rotation"), (".saving-step", "save"), (".saving-", "pointer")):
        if any(name.startswith(prefix) for name in names):
            return what
    if not run.events.exists():
        return "start-up"
    return "evaluation" if _last_event(run) == "evaluation" else "step"


def _last_event(run: RunFolder) -> str:
    with run.events.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - 4096))
        last = file.read().split(b"\n")[-2:-1]
    if not last or b'"evaluation"' not in last[0]:
        return ""
    return "evaluation" if b'"begin"' in last[0] else ""


def _check_after_crash(config: RunConfig, run: RunFolder, newest: int) -> int:
    """Check what must hold after a kill; returns the step of the newest checkpoint."""
    if not run.events.exists():
        return newest
    status = run.status()
    if status not in ("interrupted", "pending"):
        raise Crashed(f"{run.path} was killed and is {status}")
    read = altgrad.load_run(run.path)
    steps = read.metrics("train/loss")[0]
    if steps != list(range(1, len(steps) + 1)):
        raise Crashed(f"{run.path} logged the steps {steps}")
    backend = open_checkpoints(config, run, print).backend
    there = [name for name in backend.names() if name.startswith("step-")]
    for name in there:
        backend.verify(name)
    last = max((int(name.rpartition("-")[2]) for name in there), default=-1)
    if last < newest:
        raise Crashed(f"{run.path} had the checkpoint of step {newest}, now {there}")
    pointed = backend.pointed("latest")
    if pointed is not None and pointed not in there:
        raise Crashed(f"{run.path}: latest names {pointed}, there are {there}")
    return last


def _check_end(config: RunConfig, run: RunFolder, straight: RunFolder) -> None:
    """Check that a run that was killed on its way ended as the uninterrupted one."""
    name = f"step-{config.train.steps:06d}"
    mine, theirs = (open_checkpoints(config, one, print).backend.verify(name).state_hash for one in (run, straight))
    if mine != theirs:
        raise Crashed(f"{run.path} ended with state {mine}, the uninterrupted run with {theirs}")
    if _metrics(run) != _metrics(straight):
        raise Crashed(f"the metrics of {run.path} are not those of the uninterrupted run")
    if _rows(run) != _rows(straight):
        raise Crashed(f"the rows of {run.path}/metrics.csv are not those of the uninterrupted run")


def _metrics(run: RunFolder) -> dict[str, str]:
    read = altgrad.load_run(run.path)
    return {name: repr(read.metrics(name)) for name in read.metric_names() if name not in TIMES}


def _rows(run: RunFolder) -> list[str]:
    rows = (run.path / "metrics.csv").read_text().splitlines()
    return [row for row in rows if row.split(",")[1] not in TIMES]


if __name__ == "__main__":
    main()
