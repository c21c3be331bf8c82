"""Events: everything a run tells, one JSON object each, in the order in which it happened.

``events.jsonl`` in the run folder is the truth; console, report and every metric sink read the same events.
Metric values are floats; JSON has no NaN or infinity, so these travel as the strings ``"NaN"``, ``"Infinity"`` and
``"-Infinity"``, and ``float()`` reads all three back.

| event | keys beside ``time`` (Unix seconds) and ``event`` |
| --- | --- |
| ``status`` | ``status``: running, done, failed, stopped, interrupted; ``step``; ``reason``; running: ``pid``, ``resumed`` |
| ``init`` | ``what``: model, data, batch, recipe, environment, distributed, gpus, alerts; ``facts``: name -> value |
| ``metrics`` | ``step``; ``values``: metric name -> float |
| ``evaluation`` | ``step``; ``state``: begin, end (values come as ``metrics``); end: ``patience_used`` of ``patience`` |
| ``task`` | ``task``: its name; ``state``: begin, progress, end; ``done`` of ``total`` ``unit`` |
| ``gpus`` | ``samples``: the fields of ``...hardware.GpuSample``, one for each GPU; an unreadable one is missing |
| ``host`` | the fields of ``...hardware.HostSample`` |
| ``comm`` | ``op``: such as all_reduce; ``milliseconds``; ``bytes`` of payload; ``ranks`` that took part |
| ``alert`` | ``step`` and the fields of ``altgrad_core.training.alerts.Alert`` |
| ``checkpoint`` | ``step``; ``kind``: step, best, anomaly, interrupt, final; the fields of ``...checkpoint.Saved`` |
| ``log`` | ``level``: info, warning, error; ``message``; ``rank`` when one of several processes says it |

Every event of ``altgrad simulate`` carries ``"simulated": true`` and its metrics are named ``simulated/train/loss`` and so
on, so that they stay recognizable in sinks that keep nothing but names and values.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

Event = dict[str, Any]


class MetricSink(Protocol):
    """Receives a run's events in order. A sink that raises is dropped with one warning; training goes on."""

    def write(self, event: Event) -> None:
        """Take one event; must not keep a reference to change it."""

    def close(self) -> None:
        """Finish; called once, also after an interruption."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on in the same place (JSON types only), such as a tracker's run id."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back ``state_dict``; called before the first ``write`` of a resumed run."""


SIMULATED = "simulated"


def marked_as_simulated(event: Event) -> Event:
    """Return the event as a simulation must emit it."""
    marked = {**event, SIMULATED: True}
    if "values" in event:
        marked["values"] = {f"{SIMULATED}/{name}": value for name, value in event["values"].items()}
    return marked


def to_json(value: float) -> float | str:
    """Return ``value``, or its name when JSON has no number for it."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def metrics_of(event: Event) -> dict[str, float]:
    """Return the metric values of a ``metrics`` event as floats; empty for other events."""
    return {name: float(value) for name, value in event.get("values", {}).items()}
