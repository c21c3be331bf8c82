"""What the events of a run say, gathered in one pass over ``events.jsonl``.

The file is appended to, also after a resume, so a step may be there twice. The later line wins for each (step, metric);
what a crashed stretch logged beyond the checkpoint stays until it is written again.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from altgrad_core.errors import AltgradError
from altgrad_core.experiments.eventfile import not_an_event
from altgrad_core.experiments.history import events_of
from altgrad_core.training.events import PREPARING, SIMULATED, Event, metrics_of
from altgrad_core.training.histograms import CastHistogram, histograms_of

_GIB = 2**30
# name in `RunLog.machine` -> field of a GPU's sample, what is taken of several GPUs, factor to the unit of the name
_GPU: Mapping[str, tuple[str, Callable[[Sequence[float]], float], float]] = {
    "gpu_memory_gib": ("used_mib", max, 1 / 1024),
    "gpu_utilization_percent": ("utilization", statistics.fmean, 1.0),
    "gpu_power_w": ("power_w", sum, 1.0),
    "gpu_temperature_c": ("temperature_c", max, 1.0),
}


@attrs.define
class RunLog:
    """What is gathered; ``altgrad_core.analysis.runs.Run`` says what each part is."""

    status: str = "pending"
    reason: str = ""
    values: dict[int, dict[str, float]] = attrs.field(factory=dict)
    histograms: dict[int, dict[str, CastHistogram]] = attrs.field(factory=dict)
    alerts: dict[tuple[int, str], Event] = attrs.field(factory=dict)
    checkpoints: dict[str, Event] = attrs.field(factory=dict)
    facts: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    sinks: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    machine: dict[str, tuple[list[float], list[float]]] = attrs.field(factory=dict)
    stretches: int = 0
    finished_s: float = 0.0
    started: float | None = None
    first: float | None = None
    heard: float = 0.0
    """Time of the last event that the stretch told for sure: what comes behind may be of a start that was killed, too."""

    def read(self, path: Path) -> None:
        """Take all events of a file; raises ``AltgradError`` for a line that is none, but for a torn last one."""
        for number, event in enumerate(events_of(path), 1):
            try:
                self.take(event)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise not_an_event(json.dumps(event), f"{path}:{number}", error) from error

    def take(self, event: Event) -> None:
        """Take the next event."""
        kind, time = event["event"], float(event["time"])
        if event.get(SIMULATED):
            raise AltgradError(
                "An event of a simulation (altgrad simulate) stands among those of a run; nothing of it was measured."
            )
        if kind == "metrics":
            values = metrics_of(event)
            self.values.setdefault(int(event["step"]), {}).update(values)
        elif kind == "histograms":
            self.histograms[int(event["step"])] = histograms_of(event)
        elif kind == "alert":
            self.alerts[int(event["step"]), event["alert"]] = event
        elif kind == "checkpoint":
            if event["kind"] != "resumed" or event["path"] not in self.checkpoints:
                self.checkpoints[event["path"]] = event
        elif kind == "init":
            self.facts.setdefault(event["what"], {}).update(event["facts"])
        elif kind == "host":
            self._sampled(
                time, {"process_memory_gib": event["process_bytes"] / _GIB, "cpu_percent": event["cpu_percent"]}
            )
        elif kind == "gpus":
            self._sampled(time, _of_gpus(event["samples"]))
        elif kind == "sinks":
            self.sinks |= event["sinks"]
        elif kind == "status":
            self.status, self.reason = event["status"], event.get("reason") or ""
            if self.status == "running":
                self._close(self.heard)  # a crash leaves no status: the stretch ended with its last event
                self.started = time
                self.sinks = {}
                self.stretches += 1
            else:
                self._close(time)
        if kind not in PREPARING:
            self.heard = time
        self.first = time if self.first is None else self.first

    def wall_time_s(self) -> float:
        """Return the seconds between the start and the last event of each stretch, summed."""
        return self._at(self.heard)

    def _at(self, time: float) -> float:
        return self.finished_s + (0.0 if self.started is None else max(0.0, time - self.started))

    def _close(self, time: float) -> None:
        self.finished_s, self.started = self._at(time), None

    def _sampled(self, time: float, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            times, samples = self.machine.setdefault(name, ([], []))
            times.append(self._at(time))
            samples.append(float(value))


def _of_gpus(samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found = {}
    for name, (field, reduce, factor) in _GPU.items():
        values = [float(sample[field]) for sample in samples if field in sample]
        if values:
            found[name] = factor * reduce(values)
    return found
