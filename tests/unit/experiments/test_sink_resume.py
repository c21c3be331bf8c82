"""After crashes a sink holds what it would hold without them, wherever it stood in the log when they came."""

from __future__ import annotations

import csv
import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from altgrad_csv.sink import CsvSink

from altgrad_core.experiments.eventlog import EventLog
from altgrad_core.experiments.folder import RunFolder
from altgrad_core.experiments.history import fed_sinks
from altgrad_core.experiments.sinkrunner import Patience

PATIENCE = Patience(attempts=2, first_pause_s=0.001, stalled_s=20.0, hurried_s=0.05)


class Ledger:
    """Keeps steps in ``store``, which outlives it like a disk, and writes only as much as it is allowed to."""

    def __init__(self, store: list[int]) -> None:
        self.store, self.fails_after = store, 10**9
        self._allowed = threading.Semaphore(0)
        self.dead = False

    def allow(self, events: int) -> None:
        if events:
            self._allowed.release(events)

    def die(self) -> None:
        self.dead = True
        self.allow(1)

    def write(self, event: dict[str, Any]) -> None:
        self._allowed.acquire()
        if self.dead:
            raise SystemExit
        self.fails_after -= 1
        if self.fails_after < 0:
            self._allowed.release()
            raise OSError("the store is gone")
        if event["event"] == "metrics":
            self.store.append(event["step"])

    def close(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"rows": len(self.store)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert len(self.store) >= state["rows"]
        del self.store[state["rows"] :]


@pytest.mark.parametrize("seed", range(60))
def test_nothing_is_lost_or_doubled(tmp_path: Path, seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Random lags, checkpoints, crashes with torn lines, sinks that fail for a stretch or are not named in it."""
    chance = random.Random(seed)
    stores: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    steps, saved = 60, [(0, {})]
    while True:
        if chance.random() < 0.2 and len(saved) > 1:
            saved.pop()  # the newest checkpoint is damaged
        step, state = saved[-1]
        straight = len(saved) > 8 or chance.random() < 0.05  # this stretch comes to the end
        named = stores if straight else [name for name in stores if chance.random() < 0.8]
        sinks = {name: Ledger(stores[name]) for name in named}
        if sinks and not straight and chance.random() < 0.4:
            chance.choice(list(sinks.values())).fails_after = chance.randint(0, 20)
        log = EventLog(tmp_path / "events.jsonl", PATIENCE)
        for name, sink in sinks.items():
            log.add_sink(name, lambda sink=sink: sink)
        log.log("before the sinks")
        log.load_state_dict(json.loads(json.dumps(state)))
        log.start_sinks(tmp_path / "sinks.json")
        crash = None if straight else chance.randint(step, steps)
        while step < steps and step != crash:
            step += 1
            log.emit({"event": "metrics", "step": step, "values": {}})
            for sink in sinks.values():
                sink.allow(chance.choice([0, 0, 1, 1, 3]))
            if chance.random() < 0.15:
                saved.append((step, log.state_dict()))
                log.log("checkpoint")
        if straight:
            for sink in sinks.values():
                sink.allow(10_000)
            log.close()
            break
        kill(log, sinks)
        if chance.random() < 0.5:
            with (tmp_path / "events.jsonl").open("ab") as file:
                file.write(b'{"event": "metrics", "st')
    for name, store in stores.items():
        assert store == list(range(1, steps + 1)), name
    (summary,) = [e for e in events_of(tmp_path) if e["event"] == "sinks"]
    assert {outcome["missed"] for outcome in summary["sinks"].values()} == {0}
    capfd.readouterr()


@pytest.mark.parametrize("seed", range(20))
def test_a_finished_run_feeds_its_sinks_until_they_have_all(tmp_path: Path, seed: int) -> None:
    """However often the feeding is cut off, and whether the end was told to anybody or not."""
    chance = random.Random(seed)
    stores: dict[str, list[int]] = {"a": [], "b": [], "late": []}
    folder, path = RunFolder(tmp_path), tmp_path / "events.jsonl"
    state: dict[str, Any] = {}
    for steps in (range(1, 21), range(11, 41)):  # the first stretch crashes after step 20 and is repeated from step 10
        log = EventLog(path, PATIENCE)
        sinks = {name: Ledger(stores[name]) for name in ("a", "b")}
        for name, sink in sinks.items():
            log.add_sink(name, lambda sink=sink: sink)
        log.load_state_dict(json.loads(json.dumps(state)))
        log.start_sinks(folder.sinks)
        log.emit({"event": "status", "status": "running"})
        for step in steps:
            log.emit({"event": "metrics", "step": step, "values": {}})
            state = log.state_dict() if step == 10 else state
            for sink in sinks.values():
                sink.allow(chance.choice([0, 1, 3]))
        if steps[-1] == 40:
            log.training_ended()
            log.emit({"event": "status", "status": "done"})
        kill(log, sinks)
    while missing := [name for name in stores if name not in fed_sinks(path)]:
        log = EventLog(path, PATIENCE)
        sinks = {name: Ledger(stores[name]) for name in missing}
        for name, sink in sinks.items():
            log.add_sink(name, lambda sink=sink: sink)
            sink.allow(chance.choice([0, 10, 10_000]))
            sink.fails_after = chance.choice([5, 10**9])
        log.feed_sinks(folder.sinks)
        if chance.random() < 0.5:
            kill(log, sinks)
        else:
            log.close(in_a_hurry=lambda: True)  # a sink that gets no further is abandoned
            for sink in sinks.values():
                sink.die()
    assert all(store == list(range(1, 41)) for store in stores.values()), stores


class Book:
    """Keeps all kinds of events in ``store``; a state that goes back takes them away again."""

    def __init__(self, store: list[str], *, closes: bool = True, says: bool = False) -> None:
        self.store, self.closes, self.says = store, closes, says

    def write(self, event: dict[str, Any]) -> str | None:
        self.store.append(event.get("status", event["event"]))
        return f"that was event {len(self.store)}" if self.says else None

    def close(self) -> None:
        if not self.closes:
            raise OSError("the server is gone")

    def state_dict(self) -> dict[str, Any]:
        return {"rows": len(self.store)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del self.store[state["rows"] :]


def ended(folder: RunFolder, sinks: dict[str, Book], options: dict[str, str], *, feed: bool = False) -> EventLog:
    """Return the log of a run that is done, or of a feeding of it, after its close."""
    log = EventLog(folder.events, PATIENCE)
    for name, sink in sinks.items():
        log.add_sink(name, lambda sink=sink: sink, options[name])
    if feed:
        log.feed_sinks(folder.sinks)
    else:
        log.start_sinks(folder.sinks)
        log.emit({"event": "metrics", "step": 1, "values": {}})
        log.training_ended()
        log.emit({"event": "status", "status": "done"})
    log.close()
    return log


def test_a_sink_that_could_not_be_closed_hears_of_the_end_once_more(tmp_path: Path) -> None:
    """It may have known how the run ended, and told nobody."""
    folder, store = RunFolder(tmp_path), list[str]()
    ended(folder, {"book": Book(store, closes=False)}, {"book": "x"})
    assert fed_sinks(folder.events) == {}
    for closes in (False, True):
        again: list[str] = store.copy()
        ended(folder, {"book": Book(again, closes=closes)}, {"book": "x"}, feed=True)
        assert again[:2] == ["metrics", "done"]
        assert again.count("metrics") == again.count("done") == 1
    assert fed_sinks(folder.events) == {"book": "x"}


def test_a_sink_is_known_by_its_options_and_not_by_its_place_in_the_file(tmp_path: Path) -> None:
    folder, first, second = RunFolder(tmp_path), list[str](), list[str]()
    ended(folder, {"book": Book(first, closes=False)}, {"book": "first"})
    got = len(first)
    ended(folder, {"book": Book(second), "book-2": Book(first)}, {"book": "second", "book-2": "first"}, feed=True)
    assert fed_sinks(folder.events) == {"book": "second", "book-2": "first"}
    assert first.count("metrics") == 1 < got
    assert second.count("metrics") == 1
    assert not [e for e in events_of(tmp_path) if "options" in e.get("message", "")]


def test_what_a_sink_has_to_say_to_each_event_comes_to_an_end(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    ended(folder, {"book": Book([], says=True)}, {"book": "x"})
    said = [e["message"] for e in events_of(tmp_path) if e["event"] == "log"]
    assert said[0] == "The sink 'book': that was event 1"
    assert 1 < len(said) <= 20


def kill(log: EventLog, sinks: dict[str, Ledger]) -> None:
    """End a process as ``kill -9`` does, as far as that is possible within one."""
    for runner in log._runners.values():
        runner.abandon()
    for sink in sinks.values():
        sink.die()
    for runner in log._runners.values():
        runner.wait(20)
    log._file.close()


def events_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_bytes().splitlines()]


def test_a_sink_named_later_gets_the_history_first(tmp_path: Path) -> None:
    one = csv_run(tmp_path, range(5), sink=False)
    csv_run(tmp_path, range(5, 8), state=one)
    assert rows(tmp_path) == [str(step) for step in range(8)]


def test_a_csv_file_that_is_gone_is_made_anew(tmp_path: Path) -> None:
    state = csv_run(tmp_path, range(5))
    (tmp_path / "metrics.csv").unlink()
    csv_run(tmp_path, range(5, 8), state=state)
    assert rows(tmp_path) == [str(step) for step in range(8)]
    (warning,) = [e["message"] for e in events_of(tmp_path) if e.get("level") == "warning"]
    assert "'csv' gets all events of the run anew" in warning
    assert "and has 0" in warning


def test_a_log_that_lost_its_end_is_said_and_the_run_goes_on(tmp_path: Path) -> None:
    """As after a power cut, which the checkpoint survived and the last events did not."""
    state = csv_run(tmp_path, range(5))
    lines = (tmp_path / "events.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "events.jsonl").write_bytes(b"".join(lines[:3]))
    csv_run(tmp_path, range(5, 8), state=state)
    assert rows(tmp_path) == [str(step) for step in range(8)]
    (warning,) = [e["message"] for e in events_of(tmp_path) if e.get("level") == "warning"]
    assert "bytes before the place of the checkpoint" in warning


def test_a_damaged_log_disables_the_sink_that_must_read_it(tmp_path: Path) -> None:
    csv_run(tmp_path, range(5), sink=False)
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"step": 3', b'"step": !'))
    csv_run(tmp_path, range(5, 8), state={"place": path.stat().st_size})
    *_, last = events_of_damaged(path)
    assert last["sinks"]["csv"]["status"] == "disabled"
    assert "expected one JSON object with an event" in last["sinks"]["csv"]["reason"]
    assert rows(tmp_path) == ["0", "1", "2"]


def events_of_damaged(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines() if b'"step": !' not in line]


def test_a_write_that_failed_half_way_leaves_no_half_row(tmp_path: Path) -> None:
    """A full disk takes a part of what is written before it raises."""
    sink = CsvSink(tmp_path / "metrics.csv")

    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.calls = file, 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            self.calls += 1
            if self.calls % 2:
                return self.file.write(data[:7])
            raise OSError(28, "No space left on device")

    real = sink._file
    sink.write({"event": "metrics", "step": 1, "values": {"x": 1.5, "y": "NaN"}})
    sink._file = Full(real)
    event = {"event": "metrics", "step": 2, "values": {"verlust/größe": 1e-300, "z": "-Infinity"}}
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            sink.write(event)
    sink._file = real
    sink.write({"event": "log", "message": "no row"})
    sink.write(event)
    assert sink.state_dict() == {"bytes": (tmp_path / "metrics.csv").stat().st_size}
    sink.close()
    with (tmp_path / "metrics.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["step", "metric", "value"], ["1", "x", "1.5"], ["1", "y", "NaN"], ["2", "verlust/größe", "1e-300"],
            ["2", "z", "-Infinity"],
        ]  # fmt: skip


def csv_run(folder: Path, steps: range, *, state: Any = None, sink: bool = True) -> dict[str, Any]:
    """One stretch with the sink ``csv``; returns what a checkpoint at its end holds."""
    log = EventLog(folder / "events.jsonl", PATIENCE)
    if sink:
        log.add_sink("csv", lambda: CsvSink(folder / "metrics.csv"))
    log.load_state_dict(state or {})
    log.start_sinks(folder / "sinks.json")
    for step in steps:
        log.emit({"event": "metrics", "step": step, "values": {"x": step}})
    end = log.state_dict()["place"]
    while sink and steps.start == 0 and log.state_dict()["sinks"].get("csv", {}).get("place") != end:
        time.sleep(0.001)
    state = log.state_dict()
    log.close()
    return state


def test_a_sink_whose_options_changed_starts_anew_and_says_so(tmp_path: Path) -> None:
    stores: dict[str, list[int]] = {"a": [], "b": []}

    def stretch(steps: range, state: dict[str, Any], options: str, store: str) -> dict[str, Any]:
        sink = Ledger(stores[store])
        sink.allow(10_000)
        log = EventLog(tmp_path / "events.jsonl", PATIENCE)
        log.add_sink("ledger", lambda: sink, options)
        log.load_state_dict(state)
        log.start_sinks(tmp_path / "sinks.json")
        for step in steps:
            log.emit({"event": "metrics", "step": step, "values": {}})
        end = log.state_dict()["place"]
        while log.state_dict()["sinks"].get("ledger", {}).get("place") != end:
            time.sleep(0.001)
        state = json.loads(json.dumps(log.state_dict()))
        log.close()
        return state

    def warnings() -> list[str]:
        return [e["message"] for e in events_of(tmp_path) if e.get("level") == "warning"]

    first = stretch(range(3), {}, "project = one", "a")
    stretch(range(3, 5), first, "project = one", "a")
    assert stores == {"a": [0, 1, 2, 3, 4], "b": []}
    assert warnings() == []
    second = stretch(range(3, 6), first, "project = two", "b")
    assert stores["b"] == [0, 1, 2, 3, 4, 5]
    assert warnings() == ["The options of the sink 'ledger' have changed: it starts anew, with all events of the run."]
    stretch(range(6, 8), second, "project = two", "b")
    assert stores == {"a": [0, 1, 2, 3, 4], "b": list(range(8))}
    assert len(warnings()) == 1


def rows(folder: Path) -> list[str]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        header, *steps = [row[0] for row in csv.reader(file)]
    assert header == "step"
    return steps
