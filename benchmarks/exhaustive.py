"""Every float32 there is, against ml_dtypes: 2^32 inputs a format, two saturation modes, the C++ and the torch kernel.

    python benchmarks/exhaustive.py [--formats e4m3fn e5m2 ...] [--kernel native torch] [--from 0] [--to 4294967296]
                                    [--jobs 1] [--output benchmarks/results/exhaustive.json]

For each bit pattern x

    saturation none     quantize(x)  ==  x.astype(ml_dtypes' dtype).astype(float32)
    saturation finite   quantize(x)  ==  clip(x, -max, max).astype(ml_dtypes' dtype).astype(float32)

where == is equality of the 32 bits, signs of zeros included, and NaN goes with any NaN. One thing is ours alone: fp6 and
fp4 have no NaN, ml_dtypes makes -0 of it, AltGrad keeps it. ml_dtypes rounds 0.08 * 10^9 numbers a second, so that a
format takes some 90 seconds on one core. The exit status is the number of formats with a difference.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from machine import KERNELS, has_native_kernel, keep_freed_memory, kernel_digest, machine, use_kernel

from altgrad_core.numerics import FloatFormat, get_format
from altgrad_core.numerics.cast import quantize

DTYPES = {
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3": ml_dtypes.float8_e4m3,
    "e3m4": ml_dtypes.float8_e3m4,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e4m3b11fnuz": ml_dtypes.float8_e4m3b11fnuz,
    "e3m2fn": ml_dtypes.float6_e3m2fn,
    "e2m3fn": ml_dtypes.float6_e2m3fn,
    "e2m1fn": ml_dtypes.float4_e2m1fn,
}
SATURATIONS = ("none", "finite")
ALL = 2**32
CHUNK = 2**24

Floats = npt.NDArray[np.float32]


def oracle(x: Floats, name: str) -> Floats:
    """Return ml_dtypes' values of x as float32; their codes take a byte each, so that a table reads them."""
    codes = x.astype(DTYPES[name]).view(np.uint8)
    return np.arange(256, dtype=np.uint8).view(DTYPES[name]).astype(np.float32)[codes]


def expected(x: Floats, name: str, largest: float) -> dict[str, Floats]:
    """Return what each saturation mode should give."""
    nan = np.isnan(x)
    plain = oracle(x, name)
    clipped = np.clip(x, -largest, largest)
    different = clipped.view(np.int32) != x.view(np.int32)
    finite = plain
    if different.any():
        finite = plain.copy()
        inputs = clipped[different]
        # Above the largest value every input is clipped to the same one, NaN apart.
        one = inputs.size and (inputs.view(np.int32) == inputs.view(np.int32)[0]).all()
        finite[different] = oracle(inputs[:1], name) if one else oracle(inputs, name)
    for values in (plain, finite):
        values[nan] = np.nan
    return {"none": plain, "finite": finite}


def chunks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    for begin in range(start, stop, CHUNK):
        yield begin, min(begin + CHUNK, stop)


def check(job: tuple[str, int, int, tuple[str, ...]]) -> dict[str, object]:
    """Compare one range of bit patterns; runs in a process of its own."""
    torch.set_num_threads(1)
    name, start, stop, kernels = job
    format = get_format(name)
    assert isinstance(format, FloatFormat)
    differences = {f"{kernel} {saturation}": 0 for kernel in kernels for saturation in SATURATIONS}
    examples: list[dict[str, object]] = []
    for begin, end in chunks(start, stop):
        x = np.arange(begin, end, dtype=np.uint32).view(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            wanted = expected(x, name, format.max_finite)
        for kernel in kernels:
            use_kernel(kernel)
            for saturation in SATURATIONS:
                got = quantize(torch.from_numpy(x), format, saturation=saturation).numpy()
                bad = got.view(np.int32) != wanted[saturation].view(np.int32)
                if bad.any():
                    bad &= ~(np.isnan(wanted[saturation]) & np.isnan(got))
                count = int(bad.sum())
                differences[f"{kernel} {saturation}"] += count
                for place in np.flatnonzero(bad)[: 3 if len(examples) < 10 else 0]:
                    found = {"input": f"0x{begin + int(place):08x}", "value": repr(float(x[place]))}
                    found |= {"got": repr(float(got[place])), "ml_dtypes": repr(float(wanted[saturation][place]))}
                    examples.append(found | {"kernel": kernel, "saturation": saturation})
    return {"inputs": stop - start, "differences": differences, "examples": examples}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", choices=list(DTYPES), default=list(DTYPES), metavar="NAME")
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--from", dest="start", type=lambda text: int(text, 0), default=0, help="first bit pattern")
    parser.add_argument("--to", dest="stop", type=lambda text: int(text, 0), default=ALL, help="one past the last")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "exhaustive.json")
    arguments = parser.parse_args()
    if not 0 <= arguments.start < arguments.stop <= ALL or arguments.jobs < 1:
        parser.error("0 <= --from < --to <= 2**32 and --jobs >= 1 are needed")
    if "native" in arguments.kernel and not has_native_kernel():
        parser.error("there is no native kernel on this machine (altgrad_core.numerics.native.status() says why)")
    kernels = tuple(arguments.kernel)
    report: dict[str, dict[str, object]] = {}
    if arguments.output.exists():  # a run over some formats adds to the file
        report = json.loads(arguments.output.read_text())["formats"]
    failed = 0
    # Each range is a process's work for a while, and the progress that is shown.
    step = min(2**28, -(-(arguments.stop - arguments.start) // arguments.jobs))
    context = multiprocessing.get_context("spawn")
    with context.Pool(arguments.jobs, initializer=keep_freed_memory) as pool:
        for name in arguments.formats:
            began, digest = time.perf_counter(), kernel_digest()
            jobs = [
                (name, start, min(start + step, arguments.stop), kernels)
                for start in range(arguments.start, arguments.stop, step)
            ]
            differences: dict[str, int] = {}
            examples: list[object] = []
            inputs = 0
            for part in pool.imap(check, jobs):
                inputs += part["inputs"]
                for key, count in part["differences"].items():
                    differences[key] = differences.get(key, 0) + count
                examples += part["examples"]
                print(f"\r{name:12} {inputs / 2**20:6.0f} Mi", end="", file=sys.stderr, flush=True)
            seconds = time.perf_counter() - began
            failed += any(differences.values())
            report[name] = {
                "from": f"0x{arguments.start:08x}",
                "to": f"0x{arguments.stop:x}",
                "inputs": inputs,
                "kernels": digest if kernel_digest() == digest else "changed while they ran: run again",
                "differences": differences,
                "examples": examples[:10],
                "seconds": round(seconds, 1),
            }
            counts = ", ".join(f"{key}: {count}" for key, count in differences.items())
            print(f"\r{name:12} {inputs} inputs, differences {counts}; {seconds:.0f} s", flush=True)
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"machine": machine(), "formats": report}, indent=2)
            arguments.output.write_text(text + "\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
