"""What the screen knows of a run, reduced from its events, and the one place that puts it into words."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import attrs

from altgrad_core.training.events import Event, metrics_of

_IGNORED_STEPS = 3  # the first steps warm caches up and would spoil the ETA


@attrs.define
class RunProgress:
    """State of one run's training."""

    name: str
    step: int = 0
    steps: int = 0
    values: dict[str, float] = attrs.field(factory=dict)
    activity: str = "starting"
    _started: float = attrs.field(factory=time.monotonic)
    _ended: float | None = None
    _seen: int = 0
    _first: tuple[int, float] | None = None
    _last: tuple[int, float] | None = None

    def take(self, event: Event) -> None:
        """Reduce one event."""
        match event["event"]:
            case "init" if event["what"] == "batch":
                self.steps = event["facts"]["steps"]
            case "status":
                self.activity = event["status"]
                self._ended = None if self.activity == "running" else time.monotonic()
                self.step = event.get("step", self.step)
            case "evaluation":
                self.activity = "evaluating" if event["state"] == "begin" else "running"
            case "metrics":
                self.values.update((n, v) for n, v in metrics_of(event).items() if "/" not in n or n[:5] in _SHOWN)
                if "train/loss" in event["values"]:
                    self.step = event["step"]
                    self._seen += 1
                    self._last = (self.step, event["time"])
                    if self._seen <= _IGNORED_STEPS:
                        self._first = self._last

    @property
    def elapsed_s(self) -> float:
        """Seconds that the screen has followed the run."""
        return (self._ended or time.monotonic()) - self._started

    @property
    def eta_s(self) -> float | None:
        """Seconds that the remaining steps will take at the pace so far; None before there is one."""
        if self._first is None or self._last is None or self._last[0] <= self._first[0]:
            return None
        pace = (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])
        return pace * (self.steps - self.step)

    def numbers(self, *, short: bool = False) -> str:
        """Return loss, perplexity, learning rate and speed in fixed-width fields; ``short`` keeps loss and speed."""
        if "train/loss" not in self.values:
            return ""
        parts = [f"loss {self.values['train/loss']:7.4f}"]
        if not short:
            parts.append(f"ppl {perplexity(self.values['train/perplexity']):>8}")
            parts.append(f"lr {self.values['train/lr']:.2e}")
        parts.append(f"{self.values['train/tokens_per_s']:>8,.0f} tok/s")
        return "  ".join(parts)


_SHOWN = ("train", "val/l", "val/p")


def clock(seconds: float | None) -> str:
    """Return h:mm:ss, ``-:--:--`` when unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "-:--:--"
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def perplexity(value: float) -> str:
    """Return a perplexity in at most 8 characters."""
    return f"{value:.1f}" if value < 100_000 else f"{value:.1e}"


def size(number: int) -> str:
    """Return bytes in the largest binary unit."""
    value, unit = float(number), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def init_lines(event: Event) -> list[str]:
    """Return the lines that tell an ``init`` event."""
    facts = event["facts"]
    match event["what"]:
        case "environment":
            packages = facts["packages"]
            return [
                f"device     {facts['device']} · {facts['device_name']} · {facts['cpu_threads']} CPU threads · "
                f"torch {packages['torch']} · Python {facts['python']}"
            ]
        case "model":
            options = ", ".join(f"{name} {value}" for name, value in facts["options"].items())
            groups = ", ".join(f"{name} {count:,}" for name, count in facts["groups"].items())
            return [
                f"model      {facts['kind']} · {facts['parameters']:,} parameters · {options}",
                f"           {groups}",
            ]
        case "data":
            return [
                f"data       {facts['name']} · {facts['documents']:,} documents · {facts['train_tokens']:,} training and "
                f"{facts['val_tokens']:,} validation tokens",
                f"tokenizer  {facts['tokenizer']} · vocabulary {facts['vocab_size']:,}",
            ]
        case "batch":
            return [
                f"batch      {facts['batch_size']} sequences x {facts['accumulate']} x {facts['block_size']} tokens = "
                f"{facts['tokens_per_step']:,} tokens a step · {facts['steps']:,} steps · {facts['epochs']:.2f} epochs"
            ]
        case "recipe":
            skipped = facts["left_alone"]
            text = f"{len(facts['converted'])} of {facts['linear_layers']} linear layers cast their operands"
            lines = [f"recipe     {facts['name']} · {facts['compute']} compute · {text} · backend {facts['backend']}"]
            reasons: dict[str, list[str]] = {}
            for name, reason in skipped.items():
                reasons.setdefault(reason, []).append(name)
            if facts["converted"]:
                lines += [f"           not {', '.join(names)}: {reason}" for reason, names in reasons.items()]
            return lines
    return []


def event_line(event: Event) -> tuple[str, str] | None:
    """Return (level, text) for an event that deserves a line of its own, None for the others."""
    match event["event"]:
        case "log":
            return event["level"], event["message"]
        case "alert":
            level = "error" if event["action"] == "stop" else "warning"
            return level, f"step {event['step']}: {event['message']}"
        case "checkpoint":
            what = f"checkpoint {event['path']} ({event['kind']})"
            cost = f"{size(event['bytes'])} in {event['seconds']:.2f} s, training waited {event['blocked_s']:.2f} s"
            return "info", f"step {event['step']}: {what}, {cost}, state {event['state_hash'][:12]}"
        case "metrics" if "val/loss" in event["values"]:
            values = metrics_of(event)
            shown = f"loss {values['val/loss']:.4f}  perplexity {perplexity(values['val/perplexity'])}"
            return "info", f"step {event['step']}: validation {shown}"
        case "sinks":
            texts = sink_lines(event["sinks"])
            return ("warning", " ".join(texts)) if texts else None
        case "status" if event["status"] == "running":
            start = f"resumed at step {event['step']}" if event["resumed"] else "started"
            return "info", f"{start}, process {event['pid']}"
        case "status":
            reason = f": {event['reason']}" if event.get("reason") else ""
            level = {"done": "info", "interrupted": "warning"}.get(event["status"], "error")
            return level, f"{event['status']}{reason}"
    return None


def sink_lines(sinks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each sink that did not get, or could not keep, all events of its run."""
    return [
        f"The sink '{name}' was {outcome['status']}, {outcome['missed']:,} events are missing in it: {outcome['reason']}."
        for name, outcome in sinks.items()
        if outcome["status"] != "complete"
    ]
