"""Sinks that behave and sinks that do not: who gets what, in which order, and that nothing waits for them."""

from __future__ import annotations

import copy
import json
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from altgrad_core.errors import AltgradError
from altgrad_core.experiments.eventlog import EventLog
from altgrad_core.experiments.sinkrunner import THREAD_PREFIX, Patience

QUICK = Patience(attempts=4, first_pause_s=0.005, blocked_s=0.1, stalled_s=1.0, drained_s=20.0, hurried_s=0.1)


class Recorder:
    """A good sink; subclasses misbehave."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.closed, self.state = 0, {"id": "first"}
        self.threads: set[str] = set()

    def write(self, event: dict[str, Any]) -> None:
        self.threads.add(threading.current_thread().name)
        self.events.append(event)

    def close(self) -> None:
        self.closed += 1

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state

    @property
    def steps(self) -> list[int]:
        return [event["step"] for event in self.events if event["event"] == "metrics"]


class Blocked(Recorder):
    """Does not come back from the calls in ``where`` before it is ``released``."""

    def __init__(self, *where: str) -> None:
        self.where, self.released = where, threading.Event()
        super().__init__()
        self._stop("build")

    def _stop(self, call: str) -> None:
        if call in self.where:
            assert self.released.wait(60)

    def write(self, event: dict[str, Any]) -> None:
        self._stop("write")
        super().write(event)

    def close(self) -> None:
        self._stop("close")
        super().close()


class Failing(Recorder):
    """Raises in the calls in ``where`` as often as ``times`` says, for each event anew."""

    def __init__(self, error: BaseException, *where: str, times: int = 10**9) -> None:
        super().__init__()
        self.error, self.where, self.times = error, where, times
        self.raised = 0

    def _raise(self, call: str) -> None:
        if call in self.where and self.raised < self.times:
            self.raised += 1
            raise self.error
        self.raised = 0

    def write(self, event: dict[str, Any]) -> None:
        event["event"] += ""
        self._raise("write")
        super().write(event)

    def close(self) -> None:
        super().close()
        self._raise("close")

    def state_dict(self) -> dict[str, Any]:
        self._raise("state_dict")
        return super().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._raise("load_state_dict")
        super().load_state_dict(state)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise SystemExit("not even its text")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def outcomes(folder: Path) -> dict[str, Any]:
    """The summary, which is the last event."""
    *_, last = read(folder / "events.jsonl")
    assert last["event"] == "sinks"
    return last["sinks"]


def warnings(folder: Path) -> list[str]:
    return [e["message"] for e in read(folder / "events.jsonl") if e.get("level") == "warning"]


def start(folder: Path, patience: Patience = QUICK, state: dict[str, Any] | None = None, **sinks: Any) -> EventLog:
    """A log with these sinks, each an object or a function that builds one."""
    log = EventLog(folder / "events.jsonl", patience)
    for name, sink in sinks.items():
        log.add_sink(name, sink if callable(sink) else lambda sink=sink: sink)
    log.load_state_dict(state or {})
    log.start_sinks(folder / "sinks.json")
    return log


def emit_steps(log: EventLog, steps: range) -> None:
    for step in steps:
        log.emit({"event": "metrics", "step": step, "values": {"x": float(step)}})


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith(THREAD_PREFIX)])


def test_a_sink_gets_everything_in_order_after_its_state_in_its_own_thread(tmp_path: Path) -> None:
    sink, other = Recorder(), Recorder()
    log = EventLog(tmp_path / "events.jsonl", QUICK)
    log.add_sink("s", lambda: sink)
    log.add_sink("other", lambda: other)
    log.log("early")
    log.load_state_dict(
        {"place": 0, "skipped": [], "sinks": {"s": {"place": 0, "options": "", "state": '{"id": "kept"}'}}}
    )
    assert sink.events == []
    log.start_sinks(tmp_path / "sinks.json")
    emit_steps(log, range(50))
    log.close()
    assert sink.state == {"id": "kept"}
    assert sink.steps == other.steps == list(range(50))
    assert sink.events == read(tmp_path / "events.jsonl")[:-1], "the same events as in the file, the early one included"
    assert not any(mine is theirs for mine, theirs in zip(sink.events, other.events)), "each has a copy of its own"
    assert sink.threads == {f"{THREAD_PREFIX}s"}
    assert sink.closed == other.closed == 1
    assert outcomes(tmp_path) == {n: {"status": "complete", "missed": 0, "reason": ""} for n in ("s", "other")}


def test_a_run_that_starts_over_gives_sinks_their_first_state(tmp_path: Path) -> None:
    for attempt in ("first", "second"):
        sink = Recorder()
        sink.state = {"id": attempt}
        log = start(tmp_path, s=sink)
        log.log(attempt)
        log.close()
        assert sink.state == {"id": "first"}
        assert [e["message"] for e in sink.events] == [attempt], "what the lost start logged is no part of the run"


def test_a_call_that_fails_is_repeated_and_loses_nothing(tmp_path: Path) -> None:
    sink = Failing(ConnectionError("hiccup"), "write", "state_dict", times=3)
    log = start(tmp_path, s=sink)
    emit_steps(log, range(20))
    log.close()
    assert sink.steps == list(range(20))
    assert warnings(tmp_path) == []
    assert outcomes(tmp_path)["s"]["status"] == "complete"


@pytest.mark.parametrize(
    "error", [RuntimeError("gone"), SystemExit(3), KeyboardInterrupt(), MemoryError(), Unspeakable()]
)
def test_a_sink_that_always_raises_is_disabled_with_one_warning(
    tmp_path: Path, error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = Failing(error, "write", "close"), Recorder()
    log = start(tmp_path, bad=bad, good=good)
    emit_steps(log, range(5))
    eventually(lambda: bool(warnings(tmp_path)))
    emit_steps(log, range(5, 10))
    log.close()
    (warning,) = warnings(tmp_path)
    assert "'bad' failed and receives nothing more: write(): " in warning
    assert f"{type(error).__name__}" in warning
    assert "(4 times)" in warning
    assert bad.events == []
    assert bad.closed == 1
    assert good.steps == list(range(10))
    outcome = outcomes(tmp_path)
    assert outcome["bad"]["status"] == "disabled"
    assert outcome["bad"]["missed"] == 11, "ten steps and the warning of its own end"
    assert type(error).__name__ in outcome["bad"]["reason"]
    assert "Traceback" in capsys.readouterr().err, "for the author of the sink, in the worker's log"


@pytest.mark.parametrize("call", ["build", "load_state_dict", "state_dict", "close"])
def test_a_failure_in_any_call_is_named(tmp_path: Path, call: str) -> None:
    sink = Failing(OSError("no network"), call)

    def build() -> Recorder:
        sink._raise("build")
        return sink

    state = (
        {"place": 0, "skipped": [], "sinks": {"s": {"place": 0, "options": "", "state": "{}"}}}
        if call == "load_state_dict"
        else {}
    )
    log = start(tmp_path, state=state, s=build)
    emit_steps(log, range(3))
    log.close()
    assert outcomes(tmp_path)["s"]["status"] == "disabled"
    assert outcomes(tmp_path)["s"]["missed"] == {"close": 0}.get(call, 3)
    (warning,) = warnings(tmp_path)
    assert f"{call}(): OSError: no network" in warning


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'wandb'"), AltgradError("pip install wandb")])
def test_what_waiting_does_not_mend_is_not_repeated(tmp_path: Path, error: Exception) -> None:
    calls = []

    def build() -> Recorder:
        calls.append(1)
        raise error

    log = start(tmp_path, Patience(), s=build)
    eventually(lambda: bool(warnings(tmp_path)))
    log.close()
    assert len(calls) == 1


def test_what_a_sink_returns_is_told(tmp_path: Path) -> None:
    class Chatty(Recorder):
        def write(self, event: dict[str, Any]) -> str | None:
            super().write(event)
            return "the server is gone." if self.steps == [0, 1] and event["event"] == "metrics" else None

        def close(self) -> str:
            super().close()
            return "not all is uploaded."

    log = start(tmp_path, s=Chatty())
    emit_steps(log, range(4))
    log.close()
    assert warnings(tmp_path) == ["The sink 's': the server is gone.", "The sink 's': not all is uploaded."]
    assert outcomes(tmp_path) == {"s": {"status": "complete", "missed": 0, "reason": ""}}


@pytest.mark.parametrize("state", [{1, 2}, {"x": {1, 2}}, {"x": float("nan")}, {"x": b"1"}, [1], None])
def test_a_state_that_no_checkpoint_can_hold_ends_the_sink_and_not_the_run(tmp_path: Path, state: Any) -> None:
    sink = Recorder()
    log = start(tmp_path, s=sink)
    log.log("one")
    eventually(lambda: len(sink.events) == 1)
    sink.state = state
    emit_steps(log, range(2))
    eventually(lambda: bool(warnings(tmp_path)))
    assert json.loads(log.state_dict()["sinks"]["s"]["state"]) == {"id": "first"}, "the last one that was good"
    log.close()
    assert "state_dict()" in warnings(tmp_path)[0]


def test_a_state_that_changes_later_is_kept_as_it_was(tmp_path: Path) -> None:
    sink = Recorder()
    log = start(tmp_path, s=sink)
    log.log("one")
    place = log.state_dict()["place"]
    eventually(lambda: log.state_dict()["sinks"].get("s", {}).get("place") == place)
    sink.state["id"] = "changed"
    assert log.state_dict()["sinks"]["s"] == {"place": place, "state": '{"id": "first"}', "options": ""}
    log.close()


@pytest.mark.parametrize("where", ["build", "write", "close"])
def test_a_sink_that_blocks_for_ever_is_left_behind(tmp_path: Path, where: str) -> None:
    bad, good = [], Recorder()

    def build() -> Blocked:
        sink = Blocked.__new__(Blocked)
        bad.append(sink)
        sink.__init__(where)
        return sink

    log = start(tmp_path, attrs.evolve(QUICK, drained_s=1.0), bad=build, good=good)
    emit_steps(log, range(10))
    started = time.monotonic()
    log.close()
    assert 0.1 < time.monotonic() - started < 10
    assert good.steps == list(range(10))
    assert good.closed == 1
    outcome = outcomes(tmp_path)
    assert outcome["good"]["status"] == "complete"
    assert outcome["bad"]["status"] == "abandoned"
    assert outcome["bad"]["missed"] == (0 if where == "close" else 10)
    assert f"{where}() took more than" in outcome["bad"]["reason"]
    size = (tmp_path / "events.jsonl").stat().st_size
    bad[0].released.set()  # it comes back when the log is long closed: nobody hears of it
    eventually(lambda: not [t for t in threading.enumerate() if t.name == f"{THREAD_PREFIX}bad"])
    assert (tmp_path / "events.jsonl").stat().st_size == size


def test_a_run_that_was_asked_to_end_does_not_wait_long(tmp_path: Path) -> None:
    sink = Blocked("write")
    log = start(tmp_path, Patience(hurried_s=0.1), s=sink)
    emit_steps(log, range(3))
    started = time.monotonic()
    log.close(in_a_hurry=lambda: True)
    assert time.monotonic() - started < 5
    assert outcomes(tmp_path)["s"]["status"] == "abandoned"
    sink.released.set()


def test_a_slow_sink_that_gets_on_is_waited_for_and_that_is_said(tmp_path: Path) -> None:
    class Slow(Recorder):
        def write(self, event: dict[str, Any]) -> None:
            time.sleep(0.04)
            super().write(event)

    sink = Slow()
    log = start(tmp_path, s=sink)
    emit_steps(log, range(50))
    log.close()
    assert sink.steps == list(range(50)), "2 s in all, where a single call may take 1"
    assert [e["message"] for e in read(tmp_path / "events.jsonl") if e["event"] == "log"] == [
        "Waiting for the sinks: s."
    ]


def test_a_blocked_sink_is_warned_of_once_and_catches_up(tmp_path: Path) -> None:
    sink = Blocked("write")
    log = start(tmp_path, s=sink)
    emit_steps(log, range(1))
    eventually(lambda: (log._runners["s"].doing or ("", 0))[0] == "write")
    time.sleep(0.15)
    emit_steps(log, range(1, 20))
    (warning,) = warnings(tmp_path)
    assert "'s' has been in write() for 0 s. Training goes on" in warning
    sink.released.set()
    log.close()
    assert sink.steps == list(range(20))
    assert outcomes(tmp_path)["s"]["status"] == "complete"


def test_a_sink_that_lags_takes_no_memory_and_no_time(tmp_path: Path) -> None:
    sink = Blocked("write")
    log = start(tmp_path, s=sink)
    steps, values = 1000, {f"metric/{i}": 1 / (i + 1) for i in range(500)}
    log.emit({"event": "metrics", "step": 0, "values": values})
    tracemalloc.start()
    for step in range(1, steps):
        log.emit({"event": "metrics", "step": step, "values": values})
        log.state_dict()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "events.jsonl").stat().st_size > 15e6
    assert peak < 1e6, "16 MB wait in the file"
    sink.released.set()
    log.close()
    assert sink.steps == list(range(steps))


@pytest.mark.slow
def test_a_hundred_thousand_events(tmp_path: Path) -> None:
    """From four threads, to a quick sink, one that fails every third time, and one that starts late."""
    total, gate = 100_000, threading.Event()

    class Ledger(Recorder):
        fails, calls = False, 0

        def write(self, event: dict[str, Any]) -> None:
            self.calls += 1
            if self.fails and self.calls % 3 == 0:
                raise TimeoutError
            self.events.append(event)

    class Late(Ledger):
        def __init__(self) -> None:
            super().__init__()
            gate.wait()

    quick, failing = Ledger(), Ledger()
    failing.fails = True
    late: list[Late] = []
    log = start(
        tmp_path, attrs.evolve(QUICK, first_pause_s=1e-6, stalled_s=10.0, drained_s=120.0), quick=quick, failing=failing,
        late=lambda: late.append(Late()) or late[0],
    )  # fmt: skip

    def write(name: int) -> None:
        for number in range(total // 4):
            log.emit({"event": "metrics", "step": number, "values": {"loss/λ": "NaN"}, "by": name})

    threads = [threading.Thread(target=write, args=[name]) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gate.set()
    log.close()
    assert {outcome["status"] for outcome in outcomes(tmp_path).values()} == {"complete"}
    truth = read(tmp_path / "events.jsonl")
    truth = [event for event in truth if event["event"] == "metrics"]
    assert len(truth) == total
    for sink in (quick, failing, late[0]):
        assert [event for event in sink.events if event["event"] == "metrics"] == truth


def test_the_state_is_taken_without_waiting(tmp_path: Path) -> None:
    sink = Blocked("write")
    log = start(tmp_path, s=sink)
    emit_steps(log, range(3))
    eventually(lambda: "s" in log.state_dict()["sinks"])
    started = time.monotonic()
    state = copy.deepcopy(log.state_dict())
    assert time.monotonic() - started < 1
    assert state["sinks"]["s"] == {"place": 0, "state": '{"id": "first"}', "options": ""}
    assert state["place"] == (tmp_path / "events.jsonl").stat().st_size
    sink.released.set()
    log.close()
