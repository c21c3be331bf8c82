"""How fast a cast is on this CPU, beside a copy, torch's own casts and every peer that is installed.

    python benchmarks/quantize.py [--threads 1 2] [--sizes 64K 1M 16M] [--dtypes float32 bfloat16] [--rounds 15]
                                  [--output benchmarks/results/quantize-cpu.json]

Each number of threads has a process of its own. In it all contenders take turns within each round, so that a neighbour
on the machine slows all of them, and a ratio is the median over the rounds of the ratios within a round. Each warms up
before its turn, returns a tensor of the input's dtype in memory of its own, and finds glibc told to keep freed memory:
otherwise tensors of 32 MB and more are page faults first, and a copy of 16 M elements is eight times slower. A call that
takes longer than 50 ms is measured in the first five rounds only.

Prints a table for each size and, in the end, a line for each bar that AltGrad wants to reach.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import contenders
import torch
from contenders import FORMATS, SLOW_LIMIT, Contender
from machine import has_native_kernel, keep_freed_memory, machine, use_kernel

SIZES = {"64K": 2**16, "1M": 2**20, "16M": 2**24}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LONG_S, LONG_ROUNDS, TURN_S = 0.05, 5, 0.0005
WARM_S = 0.003  # a processor that goes over to wide vectors is slow for the first half millisecond

Rows = dict[str, dict[str, float]]


def measure(runs: list[Contender], rounds: int) -> dict[str, list[float]]:
    """Return each contender's seconds a call, one number for each round that it took part in."""
    seconds: dict[str, list[float]] = {one.name: [] for one in runs}
    for number in range(rounds):
        for one in runs:
            taken = seconds[one.name]
            if number >= LONG_ROUNDS and min(taken) > LONG_S:
                continue
            if one.kernel:
                use_kernel(one.kernel)
            one.run()  # the first after another kernel loads it
            once, ready = math.inf, time.perf_counter() + WARM_S
            while (start := time.perf_counter()) < ready:
                one.run()
                once = min(once, time.perf_counter() - start)
            repeats = max(1, min(50, round(TURN_S / once)))
            start = time.perf_counter()
            for _ in range(repeats):
                one.run()
            taken.append((time.perf_counter() - start) / repeats)
    return seconds


def ratio(seconds: dict[str, list[float]], faster: str, slower: str) -> float:
    """Return how many times as fast the first is, the median over the rounds that both took part in."""
    return statistics.median(b / a for a, b in zip(seconds[faster], seconds[slower], strict=False))


def rows_of(seconds: dict[str, list[float]], size: int) -> Rows:
    return {
        name: {
            "gelem_per_s": round(size / statistics.median(taken) / 1e9, 4),
            "x_clone": round(ratio(seconds, name, "clone"), 4),
            "x_torch_e4m3fn": round(ratio(seconds, name, "torch e4m3fn"), 3),
        }
        for name, taken in seconds.items()
    }


def work(arguments: argparse.Namespace) -> dict[str, object]:
    """Measure with one number of threads: what a child process does."""
    torch.set_num_threads(arguments.threads[0])
    kept, native = keep_freed_memory(), has_native_kernel()
    results: dict[str, dict[str, object]] = {}
    bars: list[dict[str, object]] = []
    state: dict[str, str] = {}
    for dtype, label in ((dtype, label) for dtype in arguments.dtypes for label in arguments.sizes):
        size = SIZES[label]
        # A few elements overflow and a few underflow, as in training; MX wants a matrix.
        x = (torch.randn(size, generator=torch.Generator().manual_seed(0)) * 60).to(DTYPES[dtype]).view(-1, 1024)
        runs = contenders.torch_casts(x) + contenders.altgrad(x, native)
        if not arguments.no_compile:
            compiled, problem = contenders.that_run(contenders.altgrad_compiled, x)
            runs += compiled
            state["altgrad compiled"] = problem or "measured"
        if size <= SLOW_LIMIT:
            found, versions = contenders.peers(x)
            runs += found
            state |= versions
        seconds = measure(runs, arguments.rounds)
        results.setdefault(dtype, {})[label] = rows_of(seconds, size)
        print_rows(f"{label} {dtype}, {arguments.threads[0]} thread(s)", rows_of(seconds, size))
        where = {"dtype": dtype, "size": label, "threads": arguments.threads[0]}
        bars += [{**where, **bar} for bar in judge(seconds, runs, label, native)]
    return {"results": results, "bars": bars, "peers": state, "native_kernel": native, "freed_memory_kept": kept}


def judge(
    seconds: dict[str, list[float]], runs: list[Contender], label: str, native: bool
) -> Iterator[dict[str, object]]:
    """Yield each bar with what was measured; the slowest format decides where all are meant."""

    def bar(what: str, wanted: float, subject: str, base: str) -> dict[str, object]:
        measured = ratio(seconds, subject, base)
        return {
            "bar": what,
            "wanted": wanted,
            "measured": round(measured, 3),
            "reached": measured >= wanted,
            "of": subject,
            "against": base,
        }

    def slowest(kernel: str) -> str:
        names = [f"altgrad {kernel} {name}" for name in FORMATS if f"altgrad {kernel} {name}" in seconds]
        return max(names, key=lambda name: statistics.median(seconds[name]))

    default = "native" if native else "torch"
    arbitrary = [one.name for one in runs if one.arbitrary]
    for subject in {"altgrad torch e4m3fn": 0, slowest("torch"): 0, slowest(default): 0}:
        yield bar("eager, of torch's e4m3fn cast", 4.0, subject, "torch e4m3fn")
        if arbitrary:
            best = min(arbitrary, key=lambda name: statistics.median(seconds[name]))
            yield bar("eager, of the best peer for arbitrary formats", 10.0, subject, best)
    for subject in {f"altgrad {default} e4m3fn": 0, slowest(default): 0}:
        if label != "64K":
            yield bar("default, of a copy", 0.5 if label == "1M" else 0.9, subject, "clone")
    plain = f"altgrad {default} e4m3fn"
    yield bar("statistics, of the cast alone", 0.8, f"{plain} statistics", plain)
    yield bar("scaled with statistics, of the scaled cast alone", 0.8, f"{plain} scaled statistics", f"{plain} scaled")
    yield bar("stochastic, of nearest", 0.5, f"{plain} stochastic", plain)


def print_rows(title: str, rows: Rows) -> None:
    print(f"\n{title}\n{'':44}{'Gelem/s':>9}{'x copy':>9}{'x torch':>9}")
    for name, row in rows.items():
        print(f"{name:44}{row['gelem_per_s']:9.3f}{row['x_clone']:9.3f}{row['x_torch_e4m3fn']:9.2f}", flush=True)


def print_verdict(bars: list[dict[str, object]]) -> None:
    print(f"\n{'bar':52}{'where':24}{'wanted':>8}{'measured':>10}")
    for bar in sorted(bars, key=lambda bar: str(bar["bar"])):
        where = f"{bar['size']} {bar['dtype']} T={bar['threads']}"
        answer = "yes" if bar["reached"] else "NO"
        print(
            f"{bar['bar']:52}{where:24}{bar['wanted']:8}{bar['measured']:10}  {answer:4}{bar['of']} / {bar['against']}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes half a minute")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "quantize-cpu.json")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        arguments.output.write_text(json.dumps(work(arguments)))
        return
    described = machine() | {"rounds": arguments.rounds}
    print(", ".join(f"{key} {value}" for key, value in described.items()), flush=True)
    report: dict[str, dict[str, object]] = {"machine": described, "results": {}}
    bars: list[dict[str, object]] = []
    for threads in arguments.threads:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "part.json"
            command = [sys.executable, __file__, "--child", "--threads", str(threads), "--output", str(output)]
            command += ["--sizes", *arguments.sizes, "--dtypes", *arguments.dtypes, "--rounds", str(arguments.rounds)]
            command += ["--no-compile"] if arguments.no_compile else []
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
            part = json.loads(output.read_text())
        report["results"][str(threads)] = part["results"]
        bars += part["bars"]
        described |= {key: part[key] for key in ("native_kernel", "freed_memory_kept")}
        report["peers"] = part["peers"]
    print("\npeers: " + "; ".join(f"{name} {state}" for name, state in report["peers"].items()))
    print_verdict(bars)
    report["bars"] = bars
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
