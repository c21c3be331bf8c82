"""Native FP8 on the GPU at hand: what is right, and how fast, in about ten minutes.

    python benchmarks/native_gpu.py [--minutes 10] [--fresh]
    python benchmarks/native_gpu.py --device cpu --sizes tiny      # tries the script, in half a minute

Works off a list of pieces, the most telling first: ``altgrad verify-native`` for the layers of GPTs and three scalings;
single layers; training steps of GPTs of 30 M to 1.3 B parameters with 8 K and 64 K tokens, through torch.compile, and one
eager for the share of the casts. All ways of a piece take turns with BF16 in one process. Times are medians of device
events, memory is the peak of a step.

After each way the file ``benchmarks/results/native-<device>.json`` is written anew, so that whatever goes wrong later, an
error, a full memory, the end of the time, costs nothing that was measured. Started again, the script goes on with the
pieces that are missing. A piece that fails is noted with its error.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from altgrad_core.bench.layer import bench_layer
from altgrad_core.bench.step import NO_TIME, SIZES, bench_step
from altgrad_core.bench.tables import show
from altgrad_core.bench.variants import problem, variants
from altgrad_core.bench.verify_native import Shape, verify
from altgrad_core.experiments.environment import choose_device, environment
from altgrad_core.files import write_whole

WAYS = (
    "bf16", "native tensorwise", "native rowwise", "torchao tensorwise", "torchao rowwise", "native delayed",
    "emulated tensorwise", "transformer engine",
)  # fmt: skip
SCALINGS = {"tensorwise": "hybrid", "rowwise": {"base": "e4m3fn", "scaling": "rowwise"}, "blockwise": "deepseek-v3"}
Keep = Callable[[dict[str, Any]], None]


def layers(size: str, tokens: int) -> list[Shape]:
    """The linear layers of a GPT."""
    width, vocabulary = SIZES[size].width, SIZES[size].vocabulary
    pairs = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width), (width, vocabulary)]
    return [Shape(m=tokens, k=k, n=n) for k, n in pairs]


def pieces(
    sizes: list[str], device: torch.device, rounds: int, enough: Callable[[], bool]
) -> Iterator[tuple[str, Callable[[Keep], Any]]]:
    """Yield the name of each piece, and what measures it."""
    tokens = 8192 if device.type == "cuda" else 256
    first = "124M" if "124M" in sizes else sizes[0]
    eager, compiled = (
        {name: way for name, way in variants(compiled=how).items() if name in WAYS} for how in (False, True)
    )
    verified = [first] if first == sizes[-1] else [first, sizes[-1]]
    for size in verified:
        for scaling, recipe in SCALINGS.items():
            shapes = layers(size, tokens)
            yield (
                f"verify {size} {scaling}",
                lambda keep, shapes=shapes, recipe=recipe: verify(shapes, recipe, device, rounds=rounds),
            )
    ordered = sorted(sizes, key=lambda size: (size not in (first, sizes[-1]), size))
    micro = 8192 if device.type == "cuda" else 256

    def step(size: str, count: int, ways: dict[str, Any], keep: Keep) -> Any:
        small = micro // 2 if SIZES[size].width >= 1536 else micro  # with two models in 80 GB
        return bench_step(
            size, ways, device, tokens=count, micro=min(count, small), rounds=rounds, keep=keep, enough=enough
        )

    yield f"step {first} {tokens} eager", functools.partial(step, first, tokens, eager)
    for count in (tokens, 8 * tokens):
        for size in ordered:
            yield f"step {size} {count} compiled", functools.partial(step, size, count, compiled)
    for size in ordered:
        for shape in layers(size, tokens):
            yield (
                f"layer {shape} compiled",
                lambda keep, shape=shape: bench_layer(shape, compiled, device, rounds=rounds),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="Nothing is begun after this time.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=[name for name in SIZES if name != "tiny"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--fresh", action="store_true", help="Measure anew what the file has.")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    device = choose_device(arguments.device)
    facts = environment(device)
    label = re.sub(r"[^a-z0-9]+", "-", facts["device_name"].lower()).strip("-")
    target = arguments.output or Path(__file__).parent / "results" / f"native-{label}.json"
    report = _begun(target, facts, arguments.fresh)
    work = dict(pieces(arguments.sizes, device, arguments.rounds, lambda: time.monotonic() > deadline))
    for name, measure in work.items():
        if name in report["done"]:
            continue
        left = deadline - time.monotonic()
        if left <= 0:
            break
        print(f"[{left / 60:4.1f} min left] {name}", flush=True)
        keep = functools.partial(_keep, report, target, name)
        try:
            result = measure(keep)
            if NO_TIME not in result.get("absent", {}).values():
                report["done"].append(name)
        except Exception as error:  # noted; the other pieces do not depend on it
            result = {**report["pieces"].get(name, {}), "failed": problem(error)}
            print(f"    {result['failed']}", flush=True)
        keep(result)
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    report["not_reached"] = [name for name in work if name not in report["done"]]
    _write(report, target)
    _print(report)
    print(f"\n{target}: {len(report['done'])} of {len(work)} pieces")
    if report["not_reached"]:
        print("Not done: " + "; ".join(report["not_reached"]) + ". Start the script again to go on.")


def _begun(target: Path, facts: dict[str, Any], fresh: bool) -> dict[str, Any]:
    """Return the report so far: that of the file, where it is of this machine and these versions."""
    try:
        found = json.loads(target.read_text())
    except (OSError, ValueError):
        found = {}
    same = found.get("environment") == facts and not fresh
    return (
        found
        if same
        else {"command": "python benchmarks/native_gpu.py", "environment": facts, "done": [], "pieces": {}}
    )


def _keep(report: dict[str, Any], target: Path, name: str, result: dict[str, Any]) -> None:
    report["pieces"][name] = result
    _write(report, target)


def _write(report: dict[str, Any], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, json.dumps(report, indent=1) + "\n")


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    tables = [result for result in report["pieces"].values() if result.get("rows")]
    show(tables, report["environment"], console)
    for name, result in report["pieces"].items():
        if "verdict" in result:
            console.print(f"{name}: {result['verdict']}", markup=False)
            for row in result["shapes"]:
                console.print(f"    {row['m']}x{row['k']}x{row['n']}: {row['verdict']}", markup=False)
        if "failed" in result:
            console.print(f"{name}: failed, {result['failed']}", markup=False)


if __name__ == "__main__":
    main()
