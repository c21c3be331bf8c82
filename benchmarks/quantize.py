"""How fast a cast is on this CPU, beside a copy, torch's own cast, ml_dtypes and gfloat.

    python benchmarks/quantize.py [--threads 1] [--rounds 15] [--output benchmarks/results/quantize-cpu.json]

All contenders run in turn within each round, so that a neighbour on the machine slows all of them; each warms up
first, and each figure is the median over the rounds. ``Gelem/s`` is 10^9 elements a second, ``x torch`` the ratio to
torch's own ``clamp().to(float8_e4m3fn).float()`` of the same tensor, ``x copy`` that to ``clone()``. glibc is told to
keep freed memory: otherwise tensors of 32 MB and more are page faults first, and a copy of 16 M elements is eight
times slower.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from altgrad_core.numerics import get_format
from altgrad_core.numerics.cast import cast

SIZES = {"64K": 2**16, "1M": 2**20, "16M": 2**24}
# gfloat rounds 0.03 * 10^9 elements a second: beyond this it would take most of the time.
GFLOAT_LIMIT = 2**16
ML_DTYPES_LIMIT = 2**20


def contenders(x: Tensor) -> dict[str, Callable[[], object]]:
    array, half = x.numpy(), x.bfloat16()
    e4m3fn, e5m2 = get_format("e4m3fn"), get_format("e5m2")
    scale = torch.tensor(0.25)
    runs: dict[str, Callable[[], object]] = {
        "clone": x.clone,
        "torch e4m3fn": lambda: x.clamp(-448.0, 448.0).to(torch.float8_e4m3fn).float(),
        "torch e5m2": lambda: x.clamp(-57344.0, 57344.0).to(torch.float8_e5m2).float(),
        "altgrad e5m2": lambda: cast(x, e5m2, dtype=torch.float32),
        "altgrad e4m3fn": lambda: cast(x, e4m3fn, dtype=torch.float32),
        "altgrad e4m3fn to bfloat16": lambda: cast(x, e4m3fn),
        "altgrad e4m3fn bfloat16 to bfloat16": lambda: cast(half, e4m3fn),
        "altgrad e4m3fn scaled": lambda: cast(x, e4m3fn, scale=scale, dtype=torch.float32),
        "altgrad e4m3fn scaled, statistics": lambda: cast(x, e4m3fn, scale=scale, dtype=torch.float32, statistics=True),
    }
    if x.numel() <= ML_DTYPES_LIMIT:
        runs["ml_dtypes e4m3fn"] = lambda: array.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    if x.numel() <= GFLOAT_LIMIT:
        runs["gfloat e4m3fn"] = lambda: gfloat.round_ndarray(gfloat.formats.format_info_ocp_e4m3, array, sat=True)
    return runs


def measure(runs: dict[str, Callable[[], object]], rounds: int, repeats: int) -> dict[str, float]:
    """Return the median seconds of each; in its turn each runs once to warm up and then ``repeats`` times."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            seconds[name].append((time.perf_counter() - start) / repeats)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def keep_freed_memory() -> bool:
    """Stop glibc from returning large blocks to the system; False where there is no glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    return bool(mallopt(-4, 0) and mallopt(-1, 2**31 - 1) and mallopt(-2, 512 << 20))


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "quantize-cpu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    kept = keep_freed_memory()
    machine = {
        "cpu": cpu_model(),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "ml_dtypes": ml_dtypes.__version__,
        "python": platform.python_version(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "rounds": arguments.rounds,
        "freed_memory_kept": kept,
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    results = {}
    for label, size in SIZES.items():
        # A few elements overflow and a few underflow, as in training.
        x = torch.randn(size, generator=torch.Generator().manual_seed(0)) * 60
        seconds = measure(contenders(x), arguments.rounds, max(1, 2**19 // size))
        print(f"\n{label} float32 elements\n{'':38}{'Gelem/s':>9}{'x copy':>9}{'x torch':>9}")
        results[label] = {}
        for name, taken in seconds.items():
            row = {
                "gelem_per_s": round(size / taken / 1e9, 4),
                "x_clone": round(seconds["clone"] / taken, 4),
                "x_torch_e4m3fn": round(seconds["torch e4m3fn"] / taken, 3),
            }
            results[label][name] = row
            print(f"{name:38}{row['gelem_per_s']:9.3f}{row['x_clone']:9.3f}{row['x_torch_e4m3fn']:9.2f}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
