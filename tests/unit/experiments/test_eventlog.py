from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from altgrad_core.errors import AltgradError, RunFailed
from altgrad_core.experiments.eventfile import EventReader, EventTail
from altgrad_core.experiments.eventlog import EventLog


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize("rest", [b'{"event": "metr', b"x" * 200_000])
@pytest.mark.parametrize("start", [b"", b'{"event": "log"}\n'])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, start: bytes, rest: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(start + rest)
    log = EventLog(path)
    log.emit({"event": "status", "status": "running"})
    log.close()
    assert [e["event"] for e in lines(path)] == ["log"] * bool(start) + ["status"]


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
    path.write_text('{"event": "log", "n": 0}\n')
    tail = EventTail(path)
    assert tail.new() == []
    with path.open("a") as file:
        file.write('{"event": "log", "n": 1}\n{"event": "log", "n": 2')
        file.flush()
        assert tail.new() == [{"event": "log", "n": 1}]
        file.write("}\n")
        file.flush()
        assert tail.new() == [{"event": "log", "n": 2}]
        file.write("{{{\n")
        file.flush()
        with pytest.raises(AltgradError, match=r"events\.jsonl, behind byte \d+: expected one JSON object"):
            tail.new()


def test_a_damaged_status_line_is_named(tmp_path: Path) -> None:
    from altgrad_core.experiments.history import last_status

    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "status", "status": "running"}\n{"event": "status", garbage\n{"event": "status", "sta')
    with pytest.raises(AltgradError, match=r"events\.jsonl:2: expected one JSON object with an event"):
        last_status(path)
    path.write_text('{"event": "status", "status": "running"}\n{"event": "status", "sta')
    assert last_status(path)["status"] == "running"


def test_any_text_is_a_line_and_comes_back(tmp_path: Path) -> None:
    """Also half of a surrogate pair, which the names of files that are not UTF-8 become in Python."""
    log = EventLog(tmp_path / "events.jsonl")
    texts = ["ünïcode 漢字 🚀", "line\nbreak \r \x85 \u2028", "a file named \udcff", "\x00", "x" * 300_000, ""]
    places = [0]
    for text in texts:
        log.log(text)
        places.append((tmp_path / "events.jsonl").stat().st_size)
    log.close()
    assert [e["message"] for e in lines(tmp_path / "events.jsonl")] == texts
    reader = EventReader(tmp_path / "events.jsonl")
    for number in [0, 1, 2, 3, 4, 5, 4, 0, 5]:
        event, after = reader.read(places[number], places[-1])
        assert event["message"] == texts[number]
        assert after == places[number + 1]
    reader.close()


def test_threads_share_one_log(tmp_path: Path) -> None:
    """Whole lines, every thread's in its order, and times that never go back although the clock does."""
    log = EventLog(tmp_path / "events.jsonl")
    clock = itertools.cycle([50.0, 20.0, 60.0, 10.0])

    def write(name: str) -> None:
        for number in range(2000):
            log.emit({"event": "log", "name": name, "number": number, "rest": "x" * number})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("altgrad_core.experiments.eventfile.time.time", lambda: next(clock))
        threads = [threading.Thread(target=write, args=[name]) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    log.close()
    written = lines(tmp_path / "events.jsonl")
    assert len(written) == 8000
    for name in "abcd":
        assert [e["number"] for e in written if e["name"] == name] == list(range(2000))
    times = [e["time"] for e in written]
    assert times == sorted(times)


@pytest.mark.parametrize("reader", ["events_of", "last_status", "last_metrics", "metrics_at", "load_run"])
@pytest.mark.parametrize("line", ["{half", '["status"]', '{"status": 1}', "\x00\x00"])
def test_every_reader_names_a_damaged_line(tmp_path: Path, reader: str, line: str) -> None:
    import altgrad_core as altgrad
    from altgrad_core.experiments import history

    (tmp_path / "run.toml").write_text('name = "r"')
    path = tmp_path / "events.jsonl"
    path.write_text(f'{{"time": 1, "event": "log", "level": "info", "message": "x"}}\n{line} "status"\n')
    read = {
        "events_of": lambda: list(history.events_of(path)),
        "last_status": lambda: history.last_status(path),
        "last_metrics": lambda: history.last_metrics(path, 3, 9),
        "metrics_at": lambda: history.metrics_at(path, 1),
        "load_run": lambda: altgrad.load_run(tmp_path),
    }[reader]
    with pytest.raises(AltgradError, match=r"events\.jsonl.*: expected one JSON object with an event, got .*--fresh"):
        read()


def test_an_event_file_that_cannot_be_written_is_a_clear_failure(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()  # also root cannot write to a folder
    with pytest.raises(RunFailed, match=r"Could not open .*events\.jsonl.*Make the file and its folder writable"):
        EventLog(tmp_path / "events.jsonl")
