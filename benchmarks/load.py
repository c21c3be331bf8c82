"""A long simulation as fast as it goes, through every sink that is installed: is anything lost, does memory grow?

    python benchmarks/load.py [--steps 100000] [--gpus 64] [--sinks csv wandb ...]

Plays ``altgrad simulate --speed max`` in a process of its own, whose memory is read twice a second. In the end every sink
must have got every event, and the memory in the last quarter of the time must be that of the second. Figures go to
``benchmarks/results/load-cpu.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import psutil
from machine import machine

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--sinks", nargs="+", default=["all"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = play(Path(folder), arguments)
    print(json.dumps(result, indent=1))
    target = Path(__file__).parent / "results" / "load-cpu.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(not (result["nothing_lost"] and result["memory"]["growth"] < 1.1))


def play(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    options = ["--speed", "max", "--steps", str(arguments.steps), "--gpus", str(arguments.gpus), "--runs", str(folder)]
    options += [option for sink in arguments.sinks for option in ("--sink", sink)]
    started = time.monotonic()
    with (folder / "said.txt").open("wb") as said:
        process = psutil.Popen(
            [sys.executable, "-m", "altgrad_core.cli", "simulate", *options], stdout=said, cwd=folder
        )
    memory: list[float] = []
    while process.poll() is None:
        memory.append(_memory(process))
        time.sleep(0.5)
    seconds = time.monotonic() - started
    (events,) = folder.glob("simulated/*/events.jsonl")
    number, last = 0, b""
    with events.open("rb") as file:
        for line in file:
            number, last = number + 1, line
    sinks = json.loads(last)["sinks"]
    quarter = len(memory) // 4
    second, fourth = _median(memory[quarter : 2 * quarter]), _median(memory[-quarter:])
    return {
        "command": f"python benchmarks/load.py --steps {arguments.steps} --gpus {arguments.gpus}",
        "machine": machine(),
        "exit_status": process.returncode,
        "seconds": round(seconds, 1),
        "events": number,
        "events_mib": round(events.stat().st_size / MIB, 1),
        "sinks": sinks,
        "nothing_lost": bool(sinks) and all(s["status"] == "complete" and not s["missed"] for s in sinks.values()),
        "memory": {
            "mib_in_the_second_quarter": round(second, 1),
            "mib_in_the_last_quarter": round(fourth, 1),
            "growth": round(fourth / second, 3),
        },
    }


def _memory(process: psutil.Process) -> float:
    """Return MiB of the process and of those that its sinks have started."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / MIB


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
