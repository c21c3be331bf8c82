"""What the console costs: a frame for 1 to 256 GPUs, an event, and its share of a training's time.

    python benchmarks/console.py [--seconds 40]

The frame and event costs are medians of this process's CPU time. The share is measured on a real training: `altgrad run`
of a small GPT on a terminal (a pty) of 100 x 30; the console is the process that starts the training, so its share is the
CPU time of that process alone, from the first step on, over the time that passed. Written to
``benchmarks/results/console-cpu.json``.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path

import psutil
from machine import cpu_model
from rich.color import ColorSystem

from altgrad_core.console.canvas import Look
from altgrad_core.console.frame import frame
from altgrad_core.console.state import RunState, ScreenState
from altgrad_core.simulation.stream import Simulation, simulate

SIZES = ((80, 24), (200, 60))
TERMINAL = (100, 30)
EXPERIMENT = """
[experiment]
name = "console-cost"
[defaults.train]
steps = 100000
eval_every = 0
warmup_steps = 10
[[run]]
name = "e5m2"
recipe = "e5m2"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=40, help="How long the real training is watched.")
    arguments = parser.parse_args()
    frames = {f"{gpus} GPUs, {w}x{h}": frame_ms(gpus, w, h) for gpus in (1, 8, 64, 256) for w, h in SIZES}
    events = {f"{gpus} GPUs": event_us(gpus) for gpus in (1, 64, 256)}
    share = share_of_training(arguments.seconds)
    print(f"{'frame':24}{'ms':>8}{'of the time at 4 a second':>28}")
    for name, milliseconds in frames.items():
        print(f"{name:24}{milliseconds:8.2f}{4 * milliseconds / 1000:27.2%}")
    for name, microseconds in events.items():
        print(f"event, mean of a simulation, {name}: {microseconds:.1f} us")
    print(f"share of a training's time: {share['share']:.3%} ({share['steps']} steps in {share['seconds']:.0f} s)")
    result = {
        "command": "python benchmarks/console.py",
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "frame_ms": {name: round(value, 3) for name, value in frames.items()},
        "event_us": {name: round(value, 2) for name, value in events.items()},
        "training": share,
        "bar": {"at_most": 0.01, "measured": share["share"]},
    }
    target = Path(__file__).parent / "results" / "console-cpu.json"
    target.write_text(json.dumps(result, indent=1) + "\n")


def told(gpus: int) -> tuple[ScreenState, list[dict]]:
    simulation = Simulation(gpus=gpus, nodes=-(-gpus // 8), steps=200, faults="many")
    events = list(simulate(simulation, time.time()))
    screen = ScreenState(title="cost")
    run = screen.runs["r"] = RunState("r", steps=200)
    for event in events[:-20]:
        run.take(event)
    return screen, events


def frame_ms(gpus: int, width: int, height: int) -> float:
    """Median CPU time of a frame brought to its control codes, in milliseconds."""
    screen, _ = told(gpus)
    look, times = Look(color=ColorSystem.EIGHT_BIT), []
    for _ in range(60):
        started = time.process_time_ns()
        lines = frame(screen, width - 1, height - max(3, height // 5), screen.latest)
        "".join(line.drawn(look) for line in lines)
        times.append((time.process_time_ns() - started) / 1e6)
    return statistics.median(times)


def event_us(gpus: int) -> float:
    """Mean CPU time in which an event is reduced, in microseconds."""
    _, events = told(gpus)
    times = []
    for _ in range(5):
        run = RunState("r")
        started = time.process_time_ns()
        for event in events:
            run.take(event)
        times.append((time.process_time_ns() - started) / 1e3 / len(events))
    return statistics.median(times)


def open_terminal(columns: int, rows: int) -> tuple[int, int]:
    """A pty of a size; one that is just opened says 0 x 0."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    return ours, theirs


def share_of_training(seconds: float) -> dict[str, float]:
    """CPU time of `altgrad run`'s own process, over the time, while it shows a training."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "e.toml").write_text(EXPERIMENT)
        ours, theirs = open_terminal(*TERMINAL)
        command = [sys.executable, "-m", "altgrad_core.cli", "run", "e.toml"]
        environment = {**os.environ, "TERM": "xterm-256color"}
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment)
        os.close(theirs)
        said: list[int] = []
        threading.Thread(target=_drain, args=(ours, said), daemon=True).start()
        events = Path(folder) / "runs" / "console-cost" / "e5m2" / "events.jsonl"
        while not (events.exists() and b'"train/loss"' in events.read_bytes()):
            if process.poll() is not None:
                raise SystemExit("the training ended before its first step")
            time.sleep(0.1)
        console = psutil.Process(process.pid)
        before, started, first = console.cpu_times(), time.monotonic(), _steps(events)
        bytes_before = sum(said)
        time.sleep(seconds)
        after, passed, last = console.cpu_times(), time.monotonic() - started, _steps(events)
        sent = sum(said) - bytes_before
        process.send_signal(2)
        process.wait(timeout=60)
    cpu = after.user + after.system - before.user - before.system
    return {
        "share": round(cpu / passed, 5),
        "cpu_s": round(cpu, 3),
        "seconds": round(passed, 1),
        "steps": last - first,
        "bytes_to_the_terminal_per_s": round(sent / passed),
    }


def _steps(events: Path) -> int:
    return events.read_bytes().count(b'"train/loss"')


def _drain(terminal: int, said: list[int]) -> None:
    while True:
        try:
            block = os.read(terminal, 65536)
        except OSError:
            return
        said.append(len(block))


if __name__ == "__main__":
    main()
