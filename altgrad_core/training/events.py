"""Events: everything a run tells, one JSON object each, in the order in which it happened.

``events.jsonl`` in the run folder is the truth; console, report and every metric sink read the same events.
A ``checkpoint`` event comes when the checkpoint is durable, so metrics of later steps may stand before it.
Metric values are floats; JSON has no NaN or infinity, so these travel as the strings ``"NaN"``, ``"Infinity"`` and
``"-Infinity"``, and ``float()`` reads all three back.

| event | keys beside ``time`` (Unix seconds) and ``event`` |
| --- | --- |
| ``status`` | ``status``: running, done, failed, stopped, interrupted; ``step``; ``reason``; running: ``pid``, ``resumed`` |
| ``init`` | ``what``: model, data, batch, recipe, environment, distributed, gpus, alerts; ``facts``: name -> value |
| ``metrics`` | ``step``; ``values``: metric name -> float |
| ``histograms`` | ``step``; ``casts``: ``layer.operand`` -> the fields of ``...histograms.CastHistogram`` but ``range``, \
as ``format``, ``first`` and ``counts`` (elements of each binade of x / scale), ``underflow``, ``overflow``, ...; \
``formats``: name -> the fields of ``FormatRange``. Follows the ``metrics`` of its step; a simulation has none |
| ``evaluation`` | ``step``; ``state``: begin, end (values come as ``metrics``); end: ``patience_used`` of ``patience`` |
| ``task`` | ``task``: its name; ``state``: begin, progress, end; ``done`` of ``total`` ``unit`` |
| ``gpus`` | ``samples``: the fields of ``...hardware.GpuSample``, one for each GPU; one left out cannot be read |
| ``host`` | the fields of ``...hardware.HostSample`` |
| ``comm`` | ``op``: such as all_reduce; ``milliseconds``; ``bytes`` of payload; ``ranks`` that took part |
| ``alert`` | ``step`` and the fields of ``altgrad_core.training.alerts.Alert`` |
| ``checkpoint`` | ``step``; ``kind``: step, best, anomaly, interrupt, final, resumed; the fields of ``...checkpoint.Saved``; \
``seconds``: how long saving took in the background (``resumed``: loading); ``blocked_s``: how long training waited for it |
| ``anomaly`` | ``step``; ``path`` of what the flight recorder left; ``first``: fields of ``...postmortem.Place``, at most two |
| ``log`` | ``level``: info, warning, error; ``message``; ``rank`` when one of several processes says it |
| ``sinks`` | comes last; ``sinks``: name -> ``status`` (complete, disabled, abandoned), ``missed`` events, ``reason`` |

Every event of ``altgrad simulate`` carries ``"simulated": true`` and its metrics are named ``simulated/train/loss`` and so
on, so that they stay recognizable in sinks that keep nothing but names and values.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

Event = dict[str, Any]
PREPARING = frozenset({"task", "log"})
"""Kinds of events that a process may tell before its ``status`` event ``running``; all others come after it."""


class StateLost(Exception):
    """Raised by ``load_state_dict``: what the state speaks of is gone. The sink then gets all events of the run anew."""


class MetricSink(Protocol):
    """Receives a run's events in order, in a thread of its own that does nothing else.

    All calls, that of ``build`` included, come from that thread, one after the other. A call that raises is repeated
    after a pause; when it fails too often, the sink is disabled and named at the end of the run. Training waits for none
    of them, but shares the interpreter with them: a call should compute little, and may not draw from the global random
    number generators of Python, NumPy or torch, or use the GPU.
    """

    def write(self, event: Event) -> str | None:
        """Take one event; when it raises, it has taken nothing of it, and gets it again.

        A text that it returns is told to the user as a warning: something went wrong that the sink can live with.
        """

    def close(self) -> str | None:
        """Finish; called once, also after an interruption or a failure. A text is told to the user, as that of ``write``."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a sink needs to go on from here in another process (JSON types only), such as a tracker's run id.

        Called before the first and after every ``write``, so it should be cheap.
        """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where ``state_dict`` returned this; called once, before the first ``write``.

        The events written since will come again, or others in their place. ``StateLost`` when that is impossible.
        """


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


def numbers_to_json(value: Any) -> Any:
    """Return a nested value of dicts, lists and numbers with ``to_json`` applied to every float in it."""
    if isinstance(value, dict):
        return {key: numbers_to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [numbers_to_json(item) for item in value]
    return to_json(value) if isinstance(value, float) else value


def metrics_of(event: Event) -> dict[str, float]:
    """Return the metric values of a ``metrics`` event as floats; empty for other events."""
    return {name: float(value) for name, value in event.get("values", {}).items()}
