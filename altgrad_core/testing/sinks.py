"""``SinkConformance``: what a run expects of a metric sink, as a class of pytest tests to subclass.

A sink is judged by what its store holds after it was closed, or after its process was killed. Every check feeds it in a
thread of its own, as a run does; docs/plugins.md has the contract.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

import pytest

from altgrad_core.experiments.eventlog import EventLog
from altgrad_core.testing.counting import CountedSuite
from altgrad_core.testing.sinkdriver import Fed, feed_and_kill
from altgrad_core.testing.sinkevents import Row, as_float32, by_metric, course, difference, other_events, rows_of, timed
from altgrad_core.training.events import Event, MetricSink, marked_as_simulated

CLAUSES = {
    "order": "values of different metrics come back in the order of the events",
    "going_back": "what was stored after a state is gone when the sink goes on from it",
    "state_lost": "load_state_dict raises StateLost when the store is gone",
    "failing_store": "a write that raises has stored nothing",
    "stored": "what the store holds can be read back; without it nothing but the sink's behaviour is checked",
}
"""What ``cannot`` may switch off; everything else holds for every sink."""

_STATE_CALLS, _STATE_S, _STATE_BYTES = 1000, 2.0, 1000
_THREADS_END_S = 2.0


class SinkConformance(CountedSuite):
    """Subclass it, say how the sink is built and read back, and pytest finds the tests.

    Class and file must be importable without pytest's help, since some checks kill a process that uses the sink.
    """

    clauses = CLAUSES
    single_precision: ClassVar[bool] = False
    """Whether the store holds float32."""
    many_values: ClassVar[int] = 100_000
    """How many values a long run has, a thousand at a step."""
    own_variables: ClassVar[tuple[str, ...]] = ()
    """Environment variables that the sink sets for its own library, such as one that turns telemetry off."""

    def build(self, folder: Path) -> MetricSink:
        """Return the sink of the run in ``folder``, ``.../runs/EXPERIMENT/RUN``; each check has a ``runs`` of its own.

        The folder has a ``run.toml`` that names experiment and run.
        """
        raise NotImplementedError("say how the sink is built")

    def stored(self, folder: Path) -> Sequence[Row]:
        """Return (step, metric, value) of all that the store holds of the run in ``folder``; no sink of it is open."""
        raise NotImplementedError("say how what the sink stored is read back")

    def failing(self, folder: Path) -> AbstractContextManager[object] | None:
        """Return a context in which the store of the run in ``folder`` takes nothing, or only the beginning of an event.

        None when there is no way to break it.
        """
        return None

    def test_every_value_in_order(self, tmp_path: Path) -> None:
        """All values of a run are stored, each once, in the order of the events."""
        folder, events = self._folder(tmp_path), course(range(12))
        with self._fed(folder) as fed:
            fed.write(*events)
        self._check(folder, events)

    def test_in_a_run(self, tmp_path: Path) -> None:
        """Fed by a run's event log, the sink gets every event, has nothing to warn of, and comes to its end."""
        folder, events = self._folder(tmp_path), course(range(6))
        log = EventLog(folder / "events.jsonl")
        log.add_sink("tested", lambda: self.build(folder))
        log.start_sinks(folder / "sinks.json")
        for event in events:
            log.emit(event)
        log.close()
        *told, last = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        assert last["sinks"] == {"tested": {"status": "complete", "missed": 0, "reason": ""}}
        warnings = [event["message"] for event in told if event.get("level") == "warning"]
        assert not warnings, f"{len(warnings)} warnings of what write() or close() returned: {warnings[0]}"
        self._check(folder, events)

    def test_other_events_are_passed_over(self, tmp_path: Path) -> None:
        """Kinds and keys that the sink does not know, also those of a later version, neither stop it nor become metrics."""
        metrics = [{**event, "by": 3} for event in course(range(4)) if event["event"] == "metrics"]
        folder, events = self._folder(tmp_path), timed([*other_events(0), *metrics, *other_events(3)])
        with self._fed(folder) as fed:
            fed.write(*events)
        self._check(folder, events)

    def test_a_simulation(self, tmp_path: Path) -> None:
        """What ``altgrad simulate`` tells is stored under its names, which all begin with ``simulated/``."""
        folder, events = self._folder(tmp_path), [marked_as_simulated(event) for event in course(range(4))]
        with self._fed(folder) as fed:
            fed.write(*events)
        self._check(folder, events)

    def test_values_of_every_size(self, tmp_path: Path) -> None:
        """Numbers come back as they were: to the last bit, or as float32."""
        numbers = [0.0, -0.0, 0.1, -1 / 3, 1e-8, 123456.789, 3e38, 2.0**53, 1e300, -1e-300, 5e-324, 7]
        values = {f"size/{number}": value for number, value in enumerate(numbers)}
        folder, events = self._folder(tmp_path), timed([{"event": "metrics", "step": 1, "values": values}])
        with self._fed(folder) as fed:
            fed.write(*events)
        self._check(folder, events)

    def test_non_finite_values(self, tmp_path: Path) -> None:
        """NaN and infinities, which come as texts, are stored as what they are, alone and among numbers."""
        series = [0.5, "NaN", "Infinity", 0.25, "-Infinity", "NaN"]
        steps: list[Event] = [
            {"event": "metrics", "step": step, "values": {"train/loss": value, "only/nan": "NaN", "sum": "-Infinity"}}
            for step, value in enumerate(series)
        ]
        folder, events = self._folder(tmp_path), timed(steps)
        with self._fed(folder) as fed:
            fed.write(*events)
        self._check(folder, events)

    def test_names_of_every_kind(self, tmp_path: Path) -> None:
        """Names of metrics come back letter by letter, from every script, and are told apart from similar ones."""
        names = ["verlust/größe", "损失/层.0", "потери", "\U0001f525/e\u0301", "\u00e9", "e\u0301", 'a "b", c', "a b/c d",
                 "a", "A", "a/b", "a/b/c", "a.b", "train/a", "val/a", "train/a/b", "a/train", "simulated/train/a",
                 "simulated/a/b", "100 %", "x=1;y", "nan", "step", "time"]  # fmt: skip
        values = {name: float(number) for number, name in enumerate(names)}
        folder, events = self._folder(tmp_path), timed([{"event": "metrics", "step": 3, "values": values}])
        with self._fed(folder) as fed:
            fed.write(*events)
        self._check(folder, events)

    def test_state_is_json(self, tmp_path: Path) -> None:
        """The state is a dict that JSON gives back as it was, before the first event and after each."""
        folder, events = self._folder(tmp_path), course(range(3))
        with self._fed(folder) as fed:
            for event in [None, *events]:
                if event is not None:
                    fed.write(event)
                state = fed.call(fed.sink.state_dict)
                assert isinstance(state, dict), f"state_dict() returns a dict, got {state!r}"
                assert json.loads(json.dumps(state, allow_nan=False)) == state, f"not of JSON types: {state!r}"
                self.count += 1
        self._check(folder, events)

    def test_goes_on_after_close(self, tmp_path: Path) -> None:
        """A run that is interrupted twice, and each time closed its sinks, is one run in the store."""
        folder, events = self._folder(tmp_path), course(range(9))
        state, begin = None, 0
        for end in (7, 11, len(events)):
            with self._fed(folder, state) as fed:
                fed.go_on(events[:end], begin)
            state, begin = fed.states[-1], end
        self._check(folder, events)

    def test_goes_on_from_every_state_after_a_kill(self, tmp_path: Path) -> None:
        """Killed, then resumed from a checkpoint, whichever it was: nothing twice, nothing missing."""
        folder, events = self._folder(tmp_path), course(range(4))
        states = feed_and_kill(self, folder, events)
        for place, state in enumerate(states):
            copy = self._copy(tmp_path, folder, f"from-{place}")
            with self._fed(copy, state) as fed:
                fed.go_on(events, place)
            self._check(copy, events, f"going on after {place} of {len(events)} events that were written: ")

    def test_killed_again_and_again(self, tmp_path: Path) -> None:
        """A run that is killed twice, and goes on from before what it had written each time."""
        folder, events = self._folder(tmp_path), course(range(9))
        first = feed_and_kill(self, folder, events[:12])
        second = feed_and_kill(self, folder, events[:20], 6, first[6])
        with self._fed(folder, second[4]) as fed:
            fed.go_on(events, 10)
        self._check(folder, events)

    def test_the_last_value_wins_after_a_kill(self, tmp_path: Path) -> None:
        """What a crashed stretch measured gives way to what the same steps measured when they came again."""
        folder, crashed, place = self._folder(tmp_path), course(range(6)), 8
        events = [*crashed[:place], *course(range(9), salt=0.5)[place:]]
        states = feed_and_kill(self, folder, crashed)
        with self._fed(folder, states[place]) as fed:
            fed.go_on(events, place)
        self._check(folder, events)

    def test_another_course_after_a_kill(self, tmp_path: Path) -> None:
        """A resumed run that measures less than the crashed stretch did has none of what came after the checkpoint."""
        self.needs("going_back")
        folder, crashed = self._folder(tmp_path), course(range(9))
        place = _place_of_step(crashed, 5)
        events = [*crashed[:place], *timed([{"event": "metrics", "step": 5, "values": {"train/loss": 0.25}}])]
        states = feed_and_kill(self, folder, crashed)
        with self._fed(folder, states[place]) as fed:
            fed.go_on(events, place)
        self._check(folder, events)

    def test_a_store_that_is_gone(self, tmp_path: Path) -> None:
        """``StateLost``, after which the same sink gets all events of the run anew."""
        self.needs("state_lost")
        folder, events = self._folder(tmp_path), course(range(6))
        with self._fed(folder) as fed:
            fed.write(*events)
        state = fed.states[-1]
        del fed
        gc.collect()  # the process that had the store open is gone
        shutil.rmtree(tmp_path / "runs")
        for path in tmp_path.iterdir():  # what stands beside the runs
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        folder = self._folder(tmp_path)
        with self._fed(folder, state) as again:
            assert again.lost, "load_state_dict() did not raise StateLost, though the store was gone"
            self.count += 1
            again.write(*events)
        self._check(folder, events)

    @pytest.mark.parametrize("again", [True, False], ids=["comes again", "does not"])
    def test_a_write_that_raises_has_stored_nothing(self, tmp_path: Path, again: bool) -> None:
        """A store that fails for a while: the event that came in vain comes again and stands there once, or not at all."""
        self.needs("failing_store")
        folder, events = self._folder(tmp_path), course(range(8))
        place = _place_of_step(events, 4)  # an event of several values
        with self._fed(folder) as fed:
            fed.write(*events[:place])
            before = fed.states[-1]
            context = self.failing(folder)
            if context is None:
                self.switch_off("failing() is not overridden, so no store that fails was tried")
            with context:
                for _ in range(3):
                    try:
                        fed.call(fed.sink.write, json.loads(json.dumps(events[place])))
                    except Exception as error:  # whatever a store that fails raises
                        self.count += 1
                        raised = error
                    else:
                        pytest.fail("write() did not raise, though the store failed")
            if again:
                fed.write(*events[place:])
            else:
                after = json.dumps(fed.call(fed.sink.state_dict), allow_nan=False)
                assert json.loads(after) == json.loads(before), (
                    f"the state moved on over an event that raised {raised!r}"
                )
        self._check(folder, events if again else events[:place])

    def test_close(self, tmp_path: Path) -> None:
        """A sink can be closed at once, and twice."""
        folder, events = self._folder(tmp_path), course(range(2))
        with self._fed(self._folder(tmp_path, "empty")) as fed:
            fed.close()
            fed.close()
        with self._fed(folder) as fed:
            fed.write(*events)
            fed.close()
            fed.close()
        self._check(folder, events)

    def test_two_side_by_side(self, tmp_path: Path) -> None:
        """Two runs of one experiment at the same time do not get into each other's way."""
        one, other = self._folder(tmp_path, "one"), self._folder(tmp_path, "other")
        mine, theirs = course(range(6)), course(range(8), salt=0.25)
        with self._fed(one) as first, self._fed(other) as second:
            for place in range(max(len(mine), len(theirs))):
                first.write(*mine[place : place + 1])
                second.write(*theirs[place : place + 1])
        self._check(one, mine)
        self._check(other, theirs)

    def test_many_values(self, tmp_path: Path) -> None:
        """A long run with many layers is stored to the last value, and the state stays cheap and does not grow with it."""
        names = [f"grad_norm_l2/blocks.{number}.attn.qkv.weight" for number in range(min(1000, self.many_values))]
        events = timed(
            {"event": "metrics", "step": step, "values": {name: step + i / 1000 for i, name in enumerate(names)}}
            for step in range(1, max(1, self.many_values // 1000) + 1)
        )
        folder = self._folder(tmp_path)
        with self._fed(folder) as fed:
            fed.write(*events)
            started = time.perf_counter()
            fed.call(lambda: [fed.sink.state_dict() for _ in range(_STATE_CALLS)])
            seconds = time.perf_counter() - started
        assert seconds < _STATE_S, (
            f"{_STATE_CALLS} calls of state_dict() took {seconds:.1f} s; it is called after each event"
        )
        early, late = len(fed.states[len(events) // 10]), len(fed.states[-1])
        assert late < 2 * early + _STATE_BYTES, (
            f"the state grew from {early} to {late} bytes; it is kept after each event"
        )
        self.count += 2
        self._check(folder, events)

    def test_the_process_is_left_alone(self, tmp_path: Path) -> None:
        """Random generators, torch's settings, environment, streams, signals and working directory are the training's."""
        folder, events = self._folder(tmp_path), course(range(5))
        before, threads = _what_training_owns(), set(threading.enumerate())
        with self._fed(folder) as fed:
            fed.write(*events)
            during = _what_training_owns()
        for now in (during, _what_training_owns()):
            changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
            changed -= {_VARIABLE + name for name in self.own_variables}
            assert not changed, f"the sink has changed: {', '.join(sorted(changed))}"
            self.count += 1
        deadline = time.monotonic() + _THREADS_END_S
        for thread in set(threading.enumerate()) - threads:
            if not thread.daemon:
                thread.join(max(0.0, deadline - time.monotonic()))
                assert not thread.is_alive(), f"after close() {thread} goes on, and the process could not end"
        self._check(folder, events)

    def _folder(self, root: Path, name: str = "run") -> Path:
        folder = root / "runs" / "experiment" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.toml").write_text(f'experiment = "experiment"\nname = "{name}"\nbaseline = false\n')
        return folder

    def _copy(self, root: Path, folder: Path, name: str) -> Path:
        """Copy what the killed process left, all of it, to a place of its own; return the run's folder there."""
        target = root / name
        shutil.copytree(root, target, ignore=lambda _, names: [n for n in names if n.startswith("from-")])
        return target / folder.relative_to(root)

    def _fed(self, folder: Path, state: str | None = None) -> Fed:
        return Fed(lambda: self.build(folder), state)

    def _check(self, folder: Path, events: Sequence[Event], where: str = "") -> None:
        """Compare what the store holds with what it should."""
        if "stored" in self.cannot:
            self.count += 1
            return
        got, expected = list(self.stored(folder)), rows_of(events)
        assert expected
        if self.single_precision:
            expected = as_float32(expected)
        if "order" in self.cannot:
            got, expected = by_metric(got), by_metric(expected)
        said = difference(got, expected)
        assert not said, where + said
        self.count += 1


def _place_of_step(events: Sequence[Event], step: int) -> int:
    return next(place for place, event in enumerate(events) if event.get("step") == step)


_VARIABLE = "the environment variable "


def _what_training_owns() -> dict[str, object]:
    """Return what a sink may not change. ``sys.excepthook`` is not among it: W&B wraps it and calls what was there."""
    import numpy as np
    import torch

    with ThreadPoolExecutor(1) as new:  # each thread has a number of its own, which it takes when it begins
        threads = new.submit(torch.get_num_threads).result()
    numpy_state = np.random.get_state(legacy=False)["state"]
    return {
        "the random generator of Python": random.getstate(),
        "the random generator of NumPy": (numpy_state["key"].tobytes(), numpy_state["pos"]),
        "the random generator of torch": torch.random.get_rng_state().tolist(),
        "torch's number of threads": (threads, torch.get_num_threads()),
        "torch's default type": torch.get_default_dtype(),
        "torch's deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "sys.stdout": sys.stdout,
        "sys.stderr": sys.stderr,
        "the handler of SIGINT": signal.getsignal(signal.SIGINT),
        "the handler of SIGTERM": signal.getsignal(signal.SIGTERM),
        "the working directory": os.getcwd(),
        **{_VARIABLE + name: value for name, value in os.environ.items()},
    }
