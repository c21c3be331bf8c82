"""Events as a run tells them, and the folder of a run, for sinks that are tested alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tomli_w

from altgrad_core.training.events import numbers_to_json

Event = dict[str, Any]
TIME = 1_750_000_000.0


def make_run(folder: Path, name: str = "e5m2", **more: Any) -> Path:
    """Return the folder of a run with a ``run.toml``; ``more`` are further tables of it."""
    run = folder / "small" / name
    run.mkdir(parents=True)
    table = {"experiment": "small", "name": name, "baseline": False, "train": {"steps": 12}, **more}
    (run / "run.toml").write_text(tomli_w.dumps(table))
    return run


def metrics(step: int, **values: float) -> Event:
    return {"time": TIME + step, "event": "metrics", "step": step, "values": numbers_to_json(values)}


def training(steps: Iterable[int], *, eval_every: int = 4, layers: int = 3) -> Iterator[Event]:
    """Yield the events of some steps; the loss of step 5 is NaN, and there is an alert at step 6."""
    for step in steps:
        loss = math.nan if step == 5 else 1 / (step + 1)
        if step:
            per_layer = {f"grad_norm_l2/blocks.{layer}.mlp.up.weight": step + layer / 10 for layer in range(layers)}
            yield metrics(step, **{"train/loss": loss, "train/lr": 1e-3, **per_layer})
        if step == 6:
            yield {
                "time": TIME + step, "event": "alert", "step": step, "alert": "overflow", "action": "log", "value": 0.5,
                "threshold": 0.01, "message": "The mean overflow rate is 50 %.", "layer": "blocks.0.mlp.up.input",
            }  # fmt: skip
        if step % eval_every == 0:
            yield {"time": TIME + step, "event": "evaluation", "step": step, "state": "begin"}
            yield metrics(step, **{"val/loss": loss + 0.5})
            yield {"time": TIME + step, "event": "evaluation", "step": step, "state": "end"}


def histograms(step: int) -> Event:
    """A cast with values, and one of zeros alone."""
    common = {"format": "e5m2", "underflow": 1, "subnormal": 2, "overflow": 0, "nan": 0, "inf": 0, "codes": 9}
    return {
        "time": TIME + step, "event": "histograms", "step": step,
        "formats": {"e5m2": {"min_positive": 2.0**-16, "min_normal": 2.0**-14, "max_finite": 57344.0, "codes": 248}},
        "casts": {
            "blocks.0.mlp.up.input": {**common, "elements": 16, "zeros": 3, "first": -18, "counts": [1, 0, 5, 7]},
            "blocks.0.mlp.up.grad_output": {**common, "elements": 4, "zeros": 4, "first": 0, "counts": []},
        },
    }  # fmt: skip


def status(word: str, step: int = 0) -> Event:
    return {"time": TIME + step, "event": "status", "status": word, "step": step, "reason": ""}


def feed(sink: Any, events: Iterable[Event]) -> list[str]:
    """Give the sink events of its own, as the runner does, and return what it had to say."""
    return [said for event in events if (said := sink.write(json.loads(json.dumps(event))))]
