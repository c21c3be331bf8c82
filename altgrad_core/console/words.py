"""The one place that puts events and numbers into words, for the screen, plain lines and files alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from altgrad_core.training.events import Event

_GPU_LINES = 16


def clock(seconds: float | None) -> str:
    """Return h:mm:ss, ``-:--:--`` when unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "-:--:--"
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def perplexity(value: float) -> str:
    """Return a perplexity in at most 8 characters."""
    return f"{value:.1f}" if value < 100_000 else f"{value:.1e}"


def percent(fraction: float) -> str:
    """Return a rate in percent, two digits behind the point; what is not zero is not shown as zero."""
    if 0 < fraction < 0.0001:
        return "<0.01 %"
    return f"{100 * fraction:.2f} %"


def signed_percent(value: float) -> str:
    """Return a difference in percent."""
    return f"{value:+.2f} %" if abs(value) < 1000 else f"{value:+.0e} %"


def count(number: float) -> str:
    """Return a large number in at most 6 characters: 812,544 becomes 812.5K."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(number) >= scale:
            return f"{number / scale:.1f}{unit}"
    return f"{number:.0f}"


def reading(value: float | None, unit: str) -> str:
    """Return what an instrument shows, N/A when it shows nothing."""
    return "N/A" if value is None else f"{value:.0f} {unit}"


def gib(mib: float | None) -> str:
    """Return MiB as GiB."""
    return "N/A" if mib is None else f"{mib / 1024:.1f}"


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
            threads = f"{facts['cpu_threads']} CPU threads · " if facts["cpu_threads"] else ""
            return [
                f"device     {facts['device']} · {facts['device_name']} · {threads}torch {packages['torch']} · "
                f"Python {facts['python']}"
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
                f"dataset    {facts['name']} · {facts['documents']:,} documents · {facts['train_tokens']:,} training and "
                f"{facts['val_tokens']:,} validation tokens",
                f"tokenizer  {facts['tokenizer']} · vocabulary {facts['vocab_size']:,}",
            ]
        case "batch":
            ranks = f" x {facts['world_size']} ranks" if facts.get("world_size", 1) > 1 else ""
            return [
                f"batch      {facts['batch_size']} sequences x {facts['accumulate']} accumulated{ranks} x "
                f"{facts['block_size']:,} tokens = {facts['tokens_per_step']:,} tokens a step",
                f"           {facts['steps']:,} steps · {facts['epochs']:.3g} epochs",
            ]
        case "distributed":
            return [_distributed(facts)]
        case "gpus":
            return _gpus(facts["gpus"])
        case "recipe":
            skipped = facts["left_alone"]
            kinds = " + ".join(facts.get("kinds", ["linear"]))
            text = f"{len(facts['converted'])} of {facts['linear_layers']} {kinds} layers cast their operands"
            lines = [f"recipe     {facts['name']} · {facts['compute']} compute · {text} · backend {facts['backend']}"]
            reasons: dict[str, list[str]] = {}
            for name, reason in skipped.items():
                reasons.setdefault(reason, []).append(name)
            if facts["converted"]:
                lines += [f"           not {', '.join(names)}: {reason}" for reason, names in reasons.items()]
                lines += [
                    f"           GEMMs of {len(names)}: {why}" for why, names in facts.get("backends", {}).items()
                ]
            return lines
    return []


def _distributed(facts: dict[str, Any]) -> str:
    if facts["world_size"] == 1:
        return "ranks      one process, nothing is exchanged"
    nodes = f"{facts['nodes']} node{'s' if facts['nodes'] > 1 else ''}"
    text = f"ranks      {facts['world_size']} on {nodes} · {facts['backend']} {facts['backend_version']}"
    return f"{text} · all-reduce test {facts['all_reduce_ms']:.2f} ms for {size(facts['all_reduce_bytes'])}"


def _gpus(gpus: list[dict[str, Any]]) -> list[str]:
    lines = []
    digits = len(str(max(gpu["rank"] for gpu in gpus[:_GPU_LINES])))
    for gpu in gpus[:_GPU_LINES]:
        total, limit = gpu.get("total_mib"), gpu.get("power_limit_w")
        facts = [gpu["name"], f"{gib(total)} GiB", "N/A W" if limit is None else f"{limit:.0f} W"]
        lines.append(f"[rank {gpu['rank']:{digits}}] GPU on {gpu['node']}: {' · '.join(facts)} · {gpu['uuid']}")
    if len(gpus) > _GPU_LINES:
        lines.append(f"... and {len(gpus) - _GPU_LINES} more GPUs")
    return lines


def event_line(event: Event) -> tuple[str, str] | None:
    """Return (level, text) for an event that deserves a line of its own, None for the others."""
    match event["event"]:
        case "log":
            rank = f"[rank {event['rank']}] " if "rank" in event else ""
            return event["level"], f"{rank}{event['message']}"
        case "alert":
            level = "error" if event["action"] == "stop" else "warning"
            return level, f"step {event['step']}: {event['message']}"
        case "checkpoint":
            what = f"checkpoint {event['path']} ({event['kind']})"
            cost = f"{size(event['bytes'])} in {event['seconds']:.2f} s, training waited {event['blocked_s']:.2f} s"
            return "info", f"step {event['step']}: {what}, {cost}, state {event['state_hash'][:12]}"
        case "anomaly":
            first = "; ".join(f"first {place['kind']}: {place['phase']}, {place['where']}" for place in event["first"])
            return "warning", f"step {event['step']}: recorded in {event['path']}" + (f"; {first}" if first else "")
        case "sinks":
            texts = sink_lines(event["sinks"])
            return ("warning", " ".join(texts)) if texts else None
        case "comm":
            text = f"{event['op']} of {size(event['bytes'])} over {event['ranks']} ranks took {event['milliseconds']:.2f} ms"
            return "info", f"step {event['step']}: {text}"
        case "status" if event["status"] == "running":
            start = f"resumed at step {event['step']}" if event["resumed"] else "started"
            return "info", f"{start}, process {event['pid']}" if event["pid"] else start
        case "status":
            reason = f": {event['reason']}" if event.get("reason") else ""
            level = {"done": "info", "interrupted": "warning"}.get(event["status"], "error")
            return level, f"{event['status']}{reason}"
    return None


def beyond(log_end: str, reason: str) -> list[str]:
    """Return the last lines of a log without the reason of the failure, with which they end: it is told already."""
    return log_end.strip().removesuffix(reason.strip()).rstrip().splitlines()


def sink_lines(sinks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each sink that did not get, or could not keep, all events of its run."""
    return [
        f"The sink '{name}' was {outcome['status']}, {outcome['missed']:,} events are missing in it: {outcome['reason']}."
        for name, outcome in sinks.items()
        if outcome["status"] != "complete"
    ]
