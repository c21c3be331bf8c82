"""``altgrad verify-resume``: does a run that was interrupted end with the bits of one that was not, on this machine?

Each run is trained twice, by real worker processes in folders of their own: straight for N steps; and for k steps, after
which the process ends and another one resumes it to step N. Everything in the two final checkpoints is compared bit by
bit (weights, optimizer, scaling state, generators, probes, alerts, the best one so far), and so is every metric but times,
line by line: none may be missing, none there twice. A run with the sink ``csv`` is trained with it, and its rows are
compared likewise; other sinks are left out, since they may write to where others look.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import torch

from altgrad_core.errors import RunFailed
from altgrad_core.experiments.assembly import open_checkpoints
from altgrad_core.experiments.config import dump_run
from altgrad_core.experiments.folder import RunFolder
from altgrad_core.experiments.history import events_of, last_status
from altgrad_core.experiments.schema import RunConfig
from altgrad_core.files import write_whole
from altgrad_core.training.events import metrics_of

TIMES = ("train/tokens_per_s", "train/step_s", "train/probe_s")
"""Metrics that measure the machine and differ from one execution to the next."""
_CSV, _ROWS = "csv", "metrics.csv"


@attrs.frozen(kw_only=True)
class Resumption:
    """What the comparison of one run found."""

    run: str
    """The run's name."""
    steps: int
    """N, the steps that both trainings did."""
    interrupted_at: int
    """k, the steps after which the second one was interrupted."""
    compared: int
    """How many tensors, values and metrics were compared."""
    differences: tuple[str, ...]
    """What is not the same, one sentence each; empty when resuming is exact."""


def verify_resume(config: RunConfig, folder: Path, *, steps: int, interrupt_at: int, device: str) -> Resumption:
    """Train ``config`` twice for ``steps`` steps in ``folder``, once interrupted, and return what differs.

    A training that an alert stops earlier is compared up to there, and interrupted before its last step at the latest.
    Raises ``RunFailed`` with the end of the worker's log when a training does not get that far.
    """
    sinks = tuple(sink for sink in config.sinks if sink.kind == _CSV)
    short = attrs.evolve(config, train=attrs.evolve(config.train, steps=steps), sinks=sinks)
    straight, resumed = RunFolder(folder / "straight"), RunFolder(folder / "resumed")
    for run in (straight, resumed):
        write_whole(run.config, dump_run(short))
    _execute(straight, device)
    ended = last_status(straight.events)
    assert ended is not None, "it has just ended"
    steps = ended["step"]
    interrupt_at = min(interrupt_at, steps - 1)
    _execute(resumed, device, stop_at=interrupt_at)
    _execute(resumed, device)
    one, other = _facts(short, straight), _facts(short, resumed)
    return Resumption(
        run=config.name,
        steps=steps,
        interrupted_at=interrupt_at,
        compared=len(one),
        differences=tuple(_differences(one, other)),
    )


def _execute(run: RunFolder, device: str, stop_at: int | None = None) -> None:
    """Let a worker process execute the run; ``RunFailed`` when it does not end as it should."""
    command = [sys.executable, "-m", "altgrad_core.experiments.worker", str(run.path), "--device", device]
    command += ["--parent", str(os.getpid())]  # when this process is killed, the training ends, too
    if stop_at is not None:
        command += ["--stop-at", str(stop_at)]
    expected, wanted = (0, ["done", "stopped"]) if stop_at is None else (128, ["interrupted"])
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    status = run.status()
    if done.returncode != expected or status not in wanted:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise RunFailed(f"The training in {run.path} ended as {status}, exit status {done.returncode}.\n{said}")


def _facts(config: RunConfig, run: RunFolder) -> dict[str, Any]:
    """Return everything that must be the same, by name: state of the last checkpoint, and the metrics."""
    found = open_checkpoints(config, run, print).load_newest()
    assert found is not None, "a training that ended well has saved its last step"
    kept = {name: found.notes[name] for name in ("best", "told")}
    facts = dict(_leaves("", {**found.state, **kept}))
    metrics = [
        (event["step"], name, value)
        for event in events_of(run.events)
        if event["event"] == "metrics"
        for name, value in metrics_of(event).items()
    ]
    facts |= _in_order("metric", metrics)
    histograms = [
        (event["step"], name, facts)
        for event in events_of(run.events)
        if event["event"] == "histograms"
        for name, facts in event["casts"].items()
    ]
    facts |= _in_order("histogram", histograms)
    if config.sinks:
        with (run.path / _ROWS).open(newline="", encoding="utf-8") as file:
            rows = [(int(step), name, value) for step, name, value in list(csv.reader(file))[1:]]
        facts |= _in_order(f"{_ROWS}: metric", rows)
    return facts


def _in_order(what: str, metrics: list[tuple[int, str, Any]]) -> dict[str, Any]:
    """Return (step, metric, value) under names that tell them apart; one that comes again has its own."""
    facts: dict[str, Any] = {}
    times: Counter[str] = Counter()
    for step, metric, value in metrics:
        if metric in TIMES:
            continue
        name = f"{what} {metric} at step {step}"
        times[name] += 1
        facts[name if times[name] == 1 else f"{name}, for the {times[name]}. time"] = value
    return facts


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _leaves(f"{path}/{key}" if path else str(key), item)
    else:
        yield path, value


def _differences(one: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    if list(one) != list(other) and one.keys() == other.keys():
        at = next(index for index, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
        yield f"the order: {list(one)[at]} against {list(other)[at]}"
    for name in dict.fromkeys([*one, *other]):
        if name not in one or name not in other:
            yield f"{name} is only in the {'straight' if name in one else 'resumed'} training"
            continue
        a, b = one[name], other[name]
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            if a.dtype != b.dtype or a.shape != b.shape:
                yield f"{name}: {a.dtype} {list(a.shape)} against {b.dtype} {list(b.shape)}"
            elif unequal := _unequal(a, b):
                yield f"{name}: {unequal:,} of {a.numel():,} elements differ"
        elif repr(a) != repr(b):  # by text, so that a NaN equals itself
            yield f"{name}: {a!r} against {b!r}"


def _unequal(a: torch.Tensor, b: torch.Tensor) -> int:
    """Count the elements whose bytes differ."""
    if a.numel() == 0:
        return 0
    size = a.element_size()
    bytes_a, bytes_b = (t.contiguous().view(-1).view(torch.uint8).view(-1, size) for t in (a, b))
    return int((bytes_a != bytes_b).any(dim=1).sum())
