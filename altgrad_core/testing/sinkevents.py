"""The events that the conformance suite feeds to sinks, and the rows that a sink has to store of them."""

from __future__ import annotations

import ctypes
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from altgrad_core.training.events import Event, metrics_of, numbers_to_json

Row = tuple[int, str, float]
"""Step, metric, value."""

TIME = 1_750_000_000.0  # Unix seconds of the first event
LAYERS = ("token_embedding.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.up.input")


def timed(events: Iterable[Event]) -> list[Event]:
    """Return the events as a run writes them: stamped, and without numbers that JSON does not have."""
    return [numbers_to_json({"time": TIME + number, **event}) for number, event in enumerate(events)]


def other_events(step: int) -> list[Event]:
    """Return one event of every kind that events.py lists, but for metrics, and one that a later version may bring."""
    return [
        {"event": "status", "status": "running", "step": step, "reason": "", "pid": 1, "resumed": False},
        {"event": "init", "what": "model", "facts": {"kind": "gpt", "parameters": 7, "groups": {"head": 7}, "options": None}},
        {
            "event": "histograms", "step": step,
            "formats": {"e5m2": {"min_positive": 2.0**-16, "min_normal": 2.0**-14, "max_finite": 57344.0, "codes": 248}},
            "casts": {
                layer: {
                    "format": "e5m2", "elements": 16, "zeros": 3, "underflow": 1, "subnormal": 2, "overflow": 0, "nan": 0,
                    "inf": 0, "codes": 9, "first": -18, "counts": counts,
                }
                for layer, counts in ((LAYERS[2], [1, 0, 5, 7]), ("blocks.0.mlp.down.grad_output", []))
            },
        },
        {"event": "evaluation", "step": step, "state": "begin"},
        {"event": "evaluation", "step": step, "state": "end", "patience_used": 1, "patience": 3},
        {"event": "task", "task": "opening the data", "state": "progress", "done": 1, "total": None, "unit": ""},
        {"event": "gpus", "samples": [{"index": 0, "utilization": None, "memory_bytes": 1e9}]},
        {"event": "host", "cpu_percent": 12.5, "memory_bytes": 1e9},
        {"event": "comm", "op": "all_reduce", "milliseconds": 1.5, "bytes": 4096, "ranks": 2},
        {
            "event": "alert", "step": step, "alert": "overflow", "action": "log", "value": 0.25, "threshold": 0.01,
            "message": "Überlauf in «blocks.0»: 25 %, \ud800 and more", "layer": "blocks.0.mlp.up.input",
        },
        {"event": "alert", "step": step, "alert": "nan", "action": "stop", "value": "NaN", "threshold": "Infinity",
         "message": "the loss is NaN", "layer": None},
        {"event": "checkpoint", "step": step, "kind": "step", "name": "step-000001", "seconds": 0.5, "blocked_s": 0.1},
        {"event": "anomaly", "step": step, "path": "anomalies/step-000001", "first": []},
        {"event": "log", "level": "warning", "message": "损失 \U0001f525\x00\n\t\udfff"},
        {"event": "weather", "step": step, "outside": {"rain": [1.5, None, "NaN"]}},
        {"event": "sinks", "sinks": {"csv": {"status": "complete", "missed": 0, "reason": ""}}},
        {"event": "status", "status": "done", "step": step, "reason": ""},
    ]  # fmt: skip


def course(steps: Iterable[int], *, salt: float = 0.0) -> list[Event]:
    """Return the events of a small training; another ``salt`` gives other values under the same names.

    Every step has its loss, every second one metrics of layers and an evaluation of its own.
    """
    events: list[Event] = []
    for step in steps:
        values = {"train/loss": 4.0 / (step + 1) + salt, "train/lr": 1e-3 * step}
        if step % 2 == 0:
            values |= {f"overflow_rate/{layer}": (step + i + salt) / 7 for i, layer in enumerate(LAYERS)}
        events.append({"event": "metrics", "step": step, "values": values})
        if step % 2 == 0:
            events += [
                {"event": "evaluation", "step": step, "state": "begin"},
                {"event": "metrics", "step": step, "values": {"val/loss": 4.5 / (step + 1) + salt}},
                {"event": "evaluation", "step": step, "state": "end", "patience_used": 0, "patience": None},
                {"event": "alert", "step": step, "alert": "overflow", "action": "log", "value": 0.25,
                 "threshold": 0.01, "message": f"overflow in step {step}", "layer": LAYERS[2]},
            ]  # fmt: skip
        events.append({"event": "log", "level": "info", "message": f"step {step} is done"})
    return timed(events)


def rows_of(events: Iterable[Event]) -> list[Row]:
    """Return what a sink has to store of the events."""
    return [
        (event["step"], name, value)
        for event in events
        if event["event"] == "metrics"
        for name, value in metrics_of(event).items()
    ]


def as_float32(rows: Iterable[Row]) -> list[Row]:
    """Return the rows as a store with single precision holds them."""
    return [(step, name, ctypes.c_float(value).value) for step, name, value in rows]


def by_metric(rows: Iterable[Row]) -> list[Row]:
    """Return the rows metric by metric, each in the order that its rows had."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row[1]].append(row)
    return [row for name in sorted(found) for row in found[name]]


def difference(got: Sequence[Row], expected: Sequence[Row]) -> str:
    """Return in words how what was stored differs from what had to be; empty when it does not."""
    mine, due = Counter((step, name) for step, name, _ in got), Counter((step, name) for step, name, _ in expected)
    said = []
    for what, rows in (
        ("missing", due - mine),
        ("there twice", Counter({row: count for row, count in (mine - due).items() if row in due})),
        ("not of this run", Counter({row: count for row, count in mine.items() if row not in due})),
    ):
        if rows:
            shown = ", ".join(f"step {step} of {json.dumps(name)}" for step, name in list(rows)[:3])
            said.append(f"{rows.total()} of {len(expected)} values {what}: {shown}")
    if said:
        return "; ".join(said)
    values = {(step, name): value for step, name, value in expected}
    for step, name, value in got:
        if not _same(value, values[step, name]):
            return f"another value: step {step} of {json.dumps(name)} is {value!r} and was {values[step, name]!r}"
    for place, (one, other) in enumerate(zip(got, expected, strict=True)):
        if one[:2] != other[:2]:
            return f"another order: row {place + 1} is {one} and not {other}"
    return ""


def _same(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or a == b
