from __future__ import annotations

import pytest

from altgrad_core.training import progress
from altgrad_core.training.events import Event
from altgrad_core.training.progress import telling


def test_a_task_is_told_at_most_twice_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now, events = [0.0], list[Event]()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with telling(events.append, "evaluation", total=20, unit="batches") as task:
        for done in range(1, 21):
            now[0] += 0.125
            task.advance(done)
    facts = {"event": "task", "task": "evaluation"}
    begin, *between, end = events
    assert begin == {**facts, "state": "begin", "done": 0, "total": 20, "unit": "batches"}
    assert between == [
        {**facts, "state": "progress", "done": done, "total": 20, "unit": "batches"} for done in (4, 8, 12, 16, 20)
    ]
    assert end == {**facts, "state": "end"}


def test_nothing_is_told_twice_and_the_end_always(monkeypatch: pytest.MonkeyPatch) -> None:
    now, events = [0.0], list[Event]()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def fails() -> None:
        with telling(events.append, "checkpoint", total=9, unit="bytes") as task:
            for _ in range(5):
                now[0] += 1
                task.advance(4)
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fails()
    assert [event["state"] for event in events] == ["begin", "progress", "end"]
