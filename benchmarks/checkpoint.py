"""What saving costs a training: no checkpoints, checkpoints in the background, and waiting for each, in one run.

    python benchmarks/checkpoint.py [--saves 10] [--cycles 5] [--every 4] [--seconds 600] [--folder DIR] [--small]

Takes the reference model of ``benchmarks/step.py`` (30 M parameters, FP32 weights and both moments of Adam: 344 MiB a
checkpoint) and measures

* how long training stands still for a save, in the background and waited for, in turns, between no steps at all: the
  smallest and the median of ``saves``; on a machine that is shared with others the smallest says more;
* the mean time of a step: the three ways take turns, a cycle of ``every`` steps each, with one checkpoint after the first
  step; what is still being written at the end of a cycle is waited for, and that is part of its time. ``--cycles 0``
  leaves this out.

Printed and written to ``benchmarks/results/checkpoint-<device>.json``. ``--folder`` says on which disk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from step import _keep_freed_memory, make_engine

WAYS = ("none", "background", "waiting")


class NoSinks:
    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--saves", type=int, default=10, help="Saves of each way without steps.")
    parser.add_argument("--cycles", type=int, default=5, help="Timed cycles of each way.")
    parser.add_argument("--every", type=int, default=4, help="Steps of a cycle, with one checkpoint.")
    parser.add_argument(
        "--seconds", type=float, default=600, help="No cycle begins after this time; two are made anyway."
    )
    parser.add_argument("--folder", type=Path, default=None, help="Where checkpoints go; a temporary folder.")
    parser.add_argument("--small", action="store_true", help="A small model, to try the script.")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    _keep_freed_memory()

    from altgrad_checkpoint.local import LocalBackend

    from altgrad_core.experiments.environment import choose_device, environment
    from altgrad_core.training.checkpoint import Checkpoints

    device, load = choose_device(arguments.device), os.getloadavg()
    engine = make_engine("bf16", [], device, arguments.small)
    saved: list[dict[str, float]] = []
    engine.emit = lambda event: event["event"] == "checkpoint" and saved.append(event)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        engine.checkpoints, engine.sinks = Checkpoints(LocalBackend(Path(folder)), 1, print), NoSinks()
        _cycle(engine, "background", 1)  # warms up, and allocates the copy
        still = _standing_still(engine, arguments.saves)
        started = time.perf_counter()
        for cycle in range(arguments.cycles):
            if cycle >= 2 and time.perf_counter() - started > arguments.seconds:
                break
            for way in WAYS:
                times[way].append(_cycle(engine, way, arguments.every) / arguments.every)
    mib = saved[0]["bytes"] / 2**20
    result = {
        "command": " ".join(["python benchmarks/checkpoint.py", *sys.argv[1:]]),
        "environment": environment(device),
        "load_average": [round(value, 2) for value in load],  # of the machine before; above 0 it was not alone
        "checkpoint_mib": round(mib, 1),
        "training_stands_still_ms": {
            way: {"smallest": _ms(min(values)), "median": _ms(statistics.median(values)), "all": list(map(_ms, values))}
            for way, values in still.items()
        },
    }
    print(f"{mib:.0f} MiB a checkpoint; training stands still for a save, ms (smallest, median of {arguments.saves}):")
    for way, facts in result["training_stands_still_ms"].items():
        print(f"  {way:12}{facts['smallest']:10.1f}{facts['median']:10.1f}")
    if times["none"]:
        medians = {way: statistics.median(values) for way, values in times.items()}
        result |= {
            "steps_between_checkpoints": arguments.every,
            "median_step_ms": {way: _ms(seconds) for way, seconds in medians.items()},
            "ratio_to_none": {way: round(seconds / medians["none"], 4) for way, seconds in medians.items()},
            "all_step_ms": {way: list(map(_ms, values)) for way, values in times.items()},
        }
        print(f"a step with a checkpoint every {arguments.every} steps, ms, and to one without:")
        for way in WAYS:
            print(f"  {way:12}{_ms(medians[way]):10.1f}{medians[way] / medians['none']:10.3f}")
    if not arguments.small:
        target = Path(__file__).parent / "results" / f"checkpoint-{device.type}.json"
        target.write_text(json.dumps(result, indent=1) + "\n")


def _standing_still(engine, saves: int) -> dict[str, list[float]]:
    """Return the seconds for which each save keeps training from going on."""
    still: dict[str, list[float]] = {"background": [], "waiting": []}
    for _ in range(saves):
        for way, values in still.items():
            engine._saved = None  # or the second save of a step would be none
            started = time.perf_counter()
            engine.save("step")
            if way == "waiting":
                engine._settle(wait=True)
            values.append(time.perf_counter() - started)
            engine._settle(wait=True)
    return still


def _cycle(engine, way: str, every: int) -> float:
    """Return the seconds of ``every`` steps with one checkpoint, until that is durable."""
    started = time.perf_counter()
    engine.step()
    if way != "none":
        engine.save("step")
    if way == "waiting":
        engine._settle(wait=True)
    for _ in range(every - 1):
        engine.step()
    engine._settle(wait=True)
    return time.perf_counter() - started


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)


if __name__ == "__main__":
    main()
