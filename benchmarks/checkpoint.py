"""What saving costs a training: no checkpoints, checkpoints in the background, and waiting for each, in one run.

    python benchmarks/checkpoint.py [--cycles 5] [--every 4] [--seconds 600] [--folder DIR] [--small]

Trains the reference model of ``benchmarks/step.py`` (30 M parameters, FP32 weights and both moments of Adam: 343 MiB a
checkpoint). The three ways take turns, a cycle of ``every`` steps each, with one checkpoint after the first step of the
cycle; what is still being written at the end of a cycle is waited for, and that is part of its time. Printed and written
to ``benchmarks/results/checkpoint-<device>.json``: the mean time of a step, the time that training stood still, and how
long writing took. ``--folder`` says on which disk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from step import _engine, _keep_freed_memory

WAYS = ("none", "background", "waiting")


class NoSinks:
    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
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
    engine = _engine("bf16", [], device, arguments.small)
    told: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    stalls: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        engine.checkpoints, engine.sinks = Checkpoints(LocalBackend(Path(folder)), 1, print), NoSinks()
        _cycle(engine, "background", 1)  # warms up, and allocates the copy
        started = time.perf_counter()
        for cycle in range(arguments.cycles):
            if cycle >= 2 and time.perf_counter() - started > arguments.seconds:
                break
            for way in WAYS:
                engine.emit = lambda event, way=way: event["event"] == "checkpoint" and told[way].append(event)
                seconds, stalled = _cycle(engine, way, arguments.every)
                times[way].append(seconds / arguments.every)
                stalls[way].append(stalled)
    medians = {way: statistics.median(values) for way, values in times.items()}
    mib = told["background"][0]["bytes"] / 2**20
    print(f"{mib:.0f} MiB a checkpoint, one every {arguments.every} steps")
    print(f"{'':12}{'ms a step':>12}{'x none':>9}{'stands still, ms':>18}{'writing, ms':>13}")
    writing = {way: statistics.median(e["seconds"] for e in events) if events else 0.0 for way, events in told.items()}
    standing = {way: statistics.median(values) for way, values in stalls.items()}
    for way in WAYS:
        print(
            f"{way:12}{1000 * medians[way]:12.1f}{medians[way] / medians['none']:9.3f}{1000 * standing[way]:18.1f}"
            f"{1000 * writing[way]:13.1f}"
        )
    result = {
        "command": f"python benchmarks/checkpoint.py --cycles {arguments.cycles} --every {arguments.every}",
        "environment": environment(device),
        "load_average": [round(value, 2) for value in load],  # of the machine before; above 0 it was not alone
        "cycles": len(times["none"]),
        "checkpoint_mib": round(mib, 1),
        "steps_between_checkpoints": arguments.every,
        "median_step_ms": {way: round(1000 * seconds, 2) for way, seconds in medians.items()},
        "ratio_to_none": {way: round(seconds / medians["none"], 4) for way, seconds in medians.items()},
        "training_stands_still_ms": {way: round(1000 * seconds, 2) for way, seconds in standing.items()},
        "writing_ms": {way: round(1000 * seconds, 2) for way, seconds in writing.items()},
        "all_step_ms": {way: [round(1000 * s, 2) for s in values] for way, values in times.items()},
    }
    if not arguments.small:
        target = Path(__file__).parent / "results" / f"checkpoint-{device.type}.json"
        target.write_text(json.dumps(result, indent=1) + "\n")


def _cycle(engine, way: str, every: int) -> tuple[float, float]:
    """Return the seconds of ``every`` steps with one checkpoint, and the seconds in which training stood still."""
    started = time.perf_counter()
    engine.step()
    saving = time.perf_counter()
    if way != "none":
        engine.save("step")
    if way == "waiting":
        engine._settle(wait=True)
    stalled = time.perf_counter() - saving
    for _ in range(every - 1):
        engine.step()
    ended = time.perf_counter()
    engine._settle(wait=True)
    return time.perf_counter() - started, stalled + time.perf_counter() - ended


if __name__ == "__main__":
    main()
