from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from altgrad_core.errors import RunFailed
from altgrad_core.experiments.eventlog import EventLog, EventTail


class Recorder:
    def __init__(self, fail_at: int | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        self.fail_at, self.closed, self.state = fail_at, 0, {"id": "first"}

    def write(self, event: dict[str, Any]) -> None:
        if self.fail_at == len(self.events):
            raise RuntimeError("store is gone")
        self.events.append(event)

    def close(self) -> None:
        self.closed += 1

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("rest", [b'{"event": "metr', b"x" * 200_000])
@pytest.mark.parametrize("start", [b"", b'{"event": "log"}\n'])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, start: bytes, rest: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(start + rest)
    log = EventLog(path)
    log.emit({"event": "status", "status": "running"})
    log.close()
    assert [e["event"] for e in lines(path)] == ["log"] * bool(start) + ["status"]


def test_sinks_get_all_events_in_order_after_their_state(tmp_path: Path) -> None:
    sink = Recorder()
    log = EventLog(tmp_path / "events.jsonl")
    log.add_sink("s", lambda: sink)
    log.log("early")
    assert sink.events == []
    log.load_state_dict({"s": {"id": "kept"}})
    log.start_sinks(tmp_path / "sinks.json")
    assert sink.state == {"id": "kept"}
    log.log("later")
    log.close()
    assert [e["message"] for e in sink.events] == ["early", "later"]
    assert sink.closed == 1


def test_a_run_that_starts_over_gives_sinks_their_first_state(tmp_path: Path) -> None:
    for attempt in ("first", "second"):
        sink = Recorder()
        sink.state = {"id": attempt}
        log = EventLog(tmp_path / "events.jsonl")
        log.add_sink("s", lambda sink=sink: sink)
        log.start_sinks(tmp_path / "sinks.json")
        log.close()
        assert sink.state == {"id": "first"}


def test_a_failing_sink_is_dropped_with_one_warning(tmp_path: Path) -> None:
    bad, good = Recorder(fail_at=1), Recorder()
    log = EventLog(tmp_path / "events.jsonl")
    log.add_sink("bad", lambda: bad)
    log.add_sink("good", lambda: good)
    log.add_sink("absent", lambda: 1 / 0)
    log.start_sinks(tmp_path / "sinks.json")
    for number in range(5):
        log.emit({"event": "metrics", "step": number, "values": {}})
    log.close()
    warnings = [e["message"] for e in lines(tmp_path / "events.jsonl") if e.get("level") == "warning"]
    assert [w.split("'")[1] for w in warnings] == ["absent", "bad"]
    assert "store is gone" in warnings[1]
    assert bad.closed == 1
    assert [e["step"] for e in good.events if e["event"] == "metrics"] == [0, 1, 2, 3, 4]


def test_a_full_disk_is_a_run_failure() -> None:
    log = EventLog(Path("/dev/full"))
    with pytest.raises(RunFailed, match=r"/dev/full.*kept"):
        log.emit({"event": "log", "level": "info", "message": "x"})
    log.close()


def test_non_finite_floats_must_be_spelled_out(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    with pytest.raises(ValueError, match="JSON compliant"):
        log.emit({"event": "metrics", "step": 1, "values": {"x": float("nan")}})
    log.close()


def test_the_tail_reads_complete_new_lines_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"n": 0}\n')
    tail = EventTail(path)
    assert tail.new() == []
    with path.open("a") as file:
        file.write('{"n": 1}\n{"n": 2')
        file.flush()
        assert tail.new() == [{"n": 1}]
        file.write("}\n")
        file.flush()
        assert tail.new() == [{"n": 2}]


def test_a_damaged_status_line_is_named(tmp_path: Path) -> None:
    from altgrad_core.errors import AltgradError
    from altgrad_core.experiments.folder import last_status

    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "status", "status": "running"}\n{"event": "status", garbage\n{"event": "status", "sta')
    with pytest.raises(AltgradError, match=r"events\.jsonl:2 is not an event"):
        last_status(path)
    path.write_text('{"event": "status", "status": "running"}\n{"event": "status", "sta')
    assert last_status(path)["status"] == "running"
