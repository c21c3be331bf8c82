"""Reads ``events.jsonl`` from outside the worker: whole lines only, since the last one may be torn or being written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from altgrad_core.experiments.eventfile import parse_event
from altgrad_core.training.events import Event, metrics_of


def events_of(path: Path) -> Iterator[Event]:
    """Yield the events of a file, one a line, oldest first; none when there is no file. A torn last line does not count."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield parse_event(line, f"{path}:{number}")


def last_status(path: Path) -> Event | None:
    """Return the last ``status`` event of a file, None when there is none; a torn last line does not count."""
    return next((event for event in reversed(_ending(path)) if event["event"] == "status"), None)


def fed_sinks(path: Path) -> dict[str, str]:
    """Return the sinks that have got all of a run, by what is told of them after its last ``status`` event.

    By name, with what stands for their options.
    """
    fed: dict[str, str] = {}
    for event in _ending(path):
        for name, outcome in event.get("sinks", {}).items():
            fed.pop(name, None)
            if outcome["status"] == "complete":
                fed[name] = event["options"][name]
    return fed


def _ending(path: Path) -> list[Event]:
    """Return the last ``status`` event of a file and the ``sinks`` events after it."""
    found: list[Event] = []
    if path.is_file():
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if (b'"status"' in line or b'"sinks"' in line) and line.endswith(b"\n"):
                    event = parse_event(line, f"{path}:{number}")
                    if event["event"] == "status":
                        found = [event]
                    elif event["event"] == "sinks":
                        found.append(event)
    return found


def metrics_at(path: Path, step: int) -> dict[str, float]:
    """Return the metrics that a run logged at ``step``, the last value of each."""
    found: dict[str, float] = {}
    for event in events_of(path):
        if event["event"] == "metrics" and event["step"] == step:
            found |= metrics_of(event)
    return found


def last_metrics(path: Path, steps: int, until: int) -> list[Event]:
    """Return the ``metrics`` events of the last ``steps`` logged steps up to step ``until``, in step order.

    The last one wins for a step; later ones were logged by a stretch that crashed.
    Reads the end of the file only, so it costs the same after a week of training.
    """
    found: dict[int, Event] = {}
    tail = 1 << 20
    size = path.stat().st_size if path.exists() else 0
    while True:
        found = {}
        for line in _whole_lines_of_tail(path, tail) if size else []:
            event = parse_event(line, str(path))
            if event["event"] == "metrics" and "train/loss" in event["values"] and event["step"] <= until:
                found[event["step"]] = event
        if len(found) >= steps or tail >= size:
            return [found[step] for step in sorted(found)[-steps:]]
        tail *= 4


def _whole_lines_of_tail(path: Path, tail: int) -> list[bytes]:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - tail))
        *lines, _ = file.read().split(b"\n")
    return lines if tail >= size else lines[1:]
