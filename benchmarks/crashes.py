"""Ends real trainings by SIGKILL and SIGTERM at random moments and checks that nothing is lost and every bit comes out right.

    python benchmarks/crashes.py [--kills 120] [--seed 0] [--jobs 2] [--output benchmarks/results/crashes-cpu.json]

Five small runs (bf16; e5m2 with delayed scaling; stochastic rounding of everything that a recipe casts; e4m3fn with dropout
and accumulation; one whose loss spikes are recorded) are trained once without interruption. Then each is trained again and
again by worker processes that are killed: at any time, start-up included; as soon as a checkpoint or an anomaly is being
written, an old one removed, a pointer moved, or an evaluation, that before the first step included, has begun. One in five
gets SIGTERM, which must end it as interrupted after a checkpoint of its last step. After every end

* the run counts as interrupted, every checkpoint with a final name is whole, and the newest one is not older than before;
* a reader of ``events.jsonl`` finds whole lines and no step missing up to the last one.

When a run has come to its end, its final checkpoint has the state hash of the uninterrupted one, every metric (but those
that measure the machine) is the same at every step, the anomalies are the same, and so are the rows of the CSV sink: none
lost, none doubled.
Then it starts over, until so many kills are done.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import os
import random
import signal
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
from altgrad_core.experiments.eventfile import whole_lines
from altgrad_core.experiments.folder import RunFolder
from altgrad_core.experiments.history import last_status
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
[[run]]
name = "anomalies"
recipe = { base = "e3m4", scaling = { kind = "delayed", history = 2 } }
train = { learning_rate = 0.1 }
alerts = { loss_spike = { threshold = 0.5, window = 6, min_losses = 3 } }

[[sink]]
kind = "csv"
"""
# What a kill waits for, and how often it is chosen.
MOMENTS = {"any": 4, "step": 3, "save": 4, "rotation": 3, "pointer": 3, "evaluation": 2, "anomaly": 4}
FIRST_EVALUATION = 0.25
"""How often a run that begins is ended in the evaluation before its first step."""
SIGTERMS = 0.2
"""How often the signal is SIGTERM."""
FOLDERS = {"save": ".saving-step", "rotation": ".deleted-", "pointer": ".saving-latest", "anomaly": ".saving-anomaly"}
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
    """End ``kills`` trainings in ``folder`` and return what was counted; raises ``Crashed`` when anything is wrong.

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
    moments = {name: weight for name, weight in MOMENTS.items() if name != "anomaly" or _anomalies(config, straight)}
    if config.name == "anomalies" and "anomaly" not in moments:
        raise Crashed(f"{straight.path} recorded nothing")
    done: Counter[str] = Counter()
    number = 0
    while sum(done.values()) - done["completed"] < kills:
        run = RunFolder(folder / "killed" / f"{config.name}-{number}")
        number += 1
        _begin(config, run)
        newest = -1
        while True:
            enough = sum(done.values()) - done["completed"] >= kills
            moment = "" if enough else dice.choices(list(moments), list(moments.values()))[0]
            if moment and not run.events.exists() and dice.random() < FIRST_EVALUATION:
                moment = "evaluation"
            number_sent = signal.SIGTERM if dice.random() < SIGTERMS else signal.SIGKILL
            ended_in, status = _end_once(run, moment, number_sent, dice, seconds)
            if not ended_in:
                break
            done[ended_in if status == -signal.SIGKILL else f"SIGTERM in {ended_in}"] += 1
            newest = _check_after_crash(config, run, newest, clean=status == 128 + signal.SIGTERM)
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


class _Before:
    """What there was before a worker started: what the end before left behind is no work of this one."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.size = run.events.stat().st_size if run.events.exists() else 0
        self._left = self._entries()

    def new(self) -> set[tuple[str, int]]:
        """Return names and inodes of what lies in the folder of the checkpoints since then."""
        entries = self._entries()
        self._left &= entries  # an inode may be given to another folder when this one is gone
        return entries - self._left

    def events(self) -> list[dict[str, Any]]:
        """Return the whole lines that the worker has written so far."""
        if not self.run.events.exists():
            return []
        with self.run.events.open("rb") as file:
            file.seek(self.size)
            new = file.read()
        return [json.loads(line) for line in new.split(b"\n")[:-1]]

    def _entries(self) -> set[tuple[str, int]]:
        try:
            return {(entry.name, entry.inode()) for entry in os.scandir(self.run.checkpoints)}
        except OSError:
            return set()


def _end_once(
    run: RunFolder, moment: str, number: signal.Signals, dice: random.Random, seconds: float
) -> tuple[str, int]:
    """Start the run and end it at a moment by a signal.

    Returns what it was doing, empty when it came to its end before, and the exit status.
    """
    if run.events.exists():  # as the worker does: so that the size is where its own lines begin
        os.truncate(run.events, whole_lines(run.events))
    before = _Before(run)
    worker = _start(run)
    doing = ""
    if moment:
        began = time.perf_counter()
        waits = _waits(before, moment, dice, seconds)
        while worker.poll() is None and not waits(time.perf_counter() - began):
            if time.perf_counter() - began > GRACE_S:
                raise Crashed(f"{run.path} hangs")
            time.sleep(0.0003)
        time.sleep(dice.uniform(0, 0.004))
        if number == signal.SIGTERM:
            doing = _activity(before)  # what it does about it comes after
        worker.send_signal(number)
    try:
        status = worker.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        raise Crashed(f"{run.path} hangs after {number.name}") from None
    if status == 0:
        return "", 0
    if status not in (-number, 128 + number):  # SIGTERM ends an interpreter that has only just started
        raise Crashed(f"{run.path} ended with {status}: {run.log.read_text()[-2000:]}")
    return doing or _activity(before), status


def _waits(before: _Before, moment: str, dice: random.Random, seconds: float) -> Callable[[float], bool]:
    """Return a function of the seconds since the start that tells whether the moment has come."""
    run, size = before.run, before.size
    if moment == "any":
        after = dice.uniform(0, seconds)
        return lambda elapsed: elapsed > after
    if moment == "step":
        grown = size + dice.randrange(2_000, 200_000)
        return lambda elapsed: run.events.exists() and run.events.stat().st_size > grown
    if moment == "evaluation":
        return lambda elapsed: (
            run.events.exists() and run.events.stat().st_size > size and bool(_evaluation(before.run))
        )
    skip = 0 if moment == "anomaly" else dice.randrange(4)  # not always the first one after the start
    seen: set[int] = set()

    def comes(elapsed: float) -> bool:
        found = [inode for name, inode in before.new() if name.startswith(FOLDERS[moment])]
        seen.update(found)
        return bool(found) and len(seen) > skip

    return comes


def _activity(before: _Before) -> str:
    """Return what a worker was doing when it was ended, by what it has left."""
    names = [name for name, _ in before.new()]
    prefixes = ((".deleted-", "rotation"), (".replaced-", "replacement"), (".saving-step", "save"))
    for prefix, what in (*prefixes, (".saving-anomaly", "anomaly"), (".saving-", "pointer")):
        if any(name.startswith(prefix) for name in names):
            return what
    if not any(event["event"] in ("evaluation", "metrics") for event in before.events()):
        return "start-up"
    return _evaluation(before.run) or "step"


def _evaluation(run: RunFolder) -> str:
    """Return whether the last event is the beginning of an evaluation, and of which."""
    with run.events.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - 4096))
        last = file.read().split(b"\n")[-2:-1]
    if not last or b'"evaluation"' not in last[0] or b'"begin"' not in last[0]:
        return ""
    return "first evaluation" if b'"step": 0,' in last[0] else "evaluation"


def _check_after_crash(config: RunConfig, run: RunFolder, newest: int, *, clean: bool) -> int:
    """Check what must hold after an end, a ``clean`` one or a kill; returns the step of the newest checkpoint."""
    if not run.events.exists():
        return newest
    status = run.status()
    # done: killed after its last event, while its sinks were still catching up; the next start completes them.
    if status not in ("interrupted", "pending", "done"):
        raise Crashed(f"{run.path} was killed and is {status}")
    read = altgrad.load_run(run.path)
    steps = read.metrics("train/loss")[0]
    if steps != list(range(1, len(steps) + 1)):
        raise Crashed(f"{run.path} logged the steps {steps}")
    backend = open_checkpoints(config, run, print).backend
    there = [name for name in backend.names() if name.startswith("step-")]
    for name in backend.names():
        backend.verify(name)
    last = max((int(name.rpartition("-")[2]) for name in there), default=-1)
    if last < newest:
        raise Crashed(f"{run.path} had the checkpoint of step {newest}, now {there}")
    ended = last_status(run.events)  # not the last step in the file, which a stretch that was killed may have logged
    if clean and (ended is None or ended["step"] != last):
        raise Crashed(f"{run.path} was interrupted, {ended}, and its newest checkpoint is {last}")
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

    mine, theirs = _anomalies(config, run), _anomalies(config, straight)
    if mine != theirs:
        raise Crashed(f"the anomalies of {run.path} are {sorted(mine)}, not {sorted(theirs)}, or not the same ones")


def _anomalies(config: RunConfig, run: RunFolder) -> dict[str, str]:
    """Return what the flight recorder left: the state of each anomaly and what was found at its step."""
    backend = open_checkpoints(config, run, print).backend
    names = [name for name in backend.names() if name.startswith("anomaly-")]
    found = {name: backend.verify(name).state_hash for name in names}
    for file in run.anomalies.glob("*/*"):
        if file.name in ("anomaly.json", "batch.safetensors"):
            found[f"{file.parent.name}/{file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def _metrics(run: RunFolder) -> dict[str, str]:
    read = altgrad.load_run(run.path)
    return {name: repr(read.metrics(name)) for name in read.metric_names() if name not in TIMES}


def _rows(run: RunFolder) -> list[str]:
    rows = (run.path / "metrics.csv").read_text().splitlines()
    return [row for row in rows if row.split(",")[1] not in TIMES]


if __name__ == "__main__":
    main()
