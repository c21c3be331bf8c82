"""What the sink ``aim`` says of a run's end, when the run is opened again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sink_events import feed, make_run, status, training

pytest.importorskip("aim", reason="pip install 'altgrad[aim]'; there is no Aim for Python 3.13 and newer")

from aim_reader import aim_runs
from altgrad_aim.sink import AimSink


def write(run: Path, state: dict[str, Any] | None, events: list[dict[str, Any]]) -> dict[str, Any]:
    """Give the events to a sink that goes on from ``state``, and return the state after them."""
    sink = AimSink("", run)
    if state is not None:
        sink.load_state_dict(state)
    feed(sink, events)
    after = sink.state_dict()
    sink.close()
    return after


def told(root: Path) -> tuple[str, str | None]:
    """Return the status and the status in the outcome that queries find."""
    (run,) = aim_runs(root).values()
    return run["altgrad", "status"], run["outcome"].get("status")


def test_the_outcome_stays_until_the_run_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    (run / "events.jsonl").touch()
    state = write(run, None, [status("running"), *training(range(3)), status("interrupted", 2)])
    assert told(tmp_path) == ("interrupted", "interrupted")
    state = write(run, state, [{"time": 1.0, "event": "sinks", "sinks": {}}])  # opened again, and nothing comes
    assert told(tmp_path) == ("interrupted", "interrupted")
    state = write(run, state, [status("running", 2), *training(range(3, 5))])
    assert told(tmp_path) == ("running", None)
    write(run, state, [status("done", 4)])
    assert told(tmp_path) == ("done", "done")
