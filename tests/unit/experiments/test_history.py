"""What is read back from ``events.jsonl`` while and after a run writes it."""

from __future__ import annotations

import json
from pathlib import Path

from altgrad_core.experiments.history import last_metrics


def write(path: Path, steps: list[int], values: str = "") -> Path:
    events = [{"event": "metrics", "step": s, "values": {"train/loss": n, "x": values}} for n, s in enumerate(steps)]
    path.write_text("".join(f"{json.dumps(event)}\n" for event in events))
    return path


def test_the_last_metrics_are_those_of_this_history(tmp_path: Path) -> None:
    """A stretch that crashed at step 9 went on from step 5: at step 7, what it logged of 8 and 9 has not happened."""
    path = write(tmp_path / "events.jsonl", [*range(1, 10), 6, 7])
    found = last_metrics(path, 3, 7)
    assert [event["step"] for event in found] == [5, 6, 7]
    assert [event["values"]["train/loss"] for event in found] == [4, 9, 10], "the later line wins"
    assert [event["step"] for event in last_metrics(path, 20, 3)] == [1, 2, 3]
    assert last_metrics(path, 3, 0) == []
    assert last_metrics(tmp_path / "none.jsonl", 3, 5) == []


def test_a_long_crashed_stretch_does_not_hide_them(tmp_path: Path) -> None:
    """More than the end of the file that is read first lies between."""
    path = write(tmp_path / "events.jsonl", [*range(1, 400), 6], "x" * 10_000)
    assert [event["step"] for event in last_metrics(path, 4, 6)] == [3, 4, 5, 6]
