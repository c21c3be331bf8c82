"""Calls a sink as a run does: all calls in one thread of its own; also in a process that is killed after the last of them."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from altgrad_core.errors import AltgradError
from altgrad_core.training.events import Event, MetricSink, StateLost

T = TypeVar("T")
_PAUSES_S = (0.25, 0.5, 1.0, 2.0)


class Builds(Protocol):
    """What a conformance suite gives of its sink."""

    def build(self, folder: Path) -> MetricSink:
        """Return the sink of the run in ``folder``."""


class Fed:
    """A sink that gets events, for as long as the context. ``state`` is what a checkpoint kept of it; None for none.

    ``states`` holds its state as JSON before the first event and after each; ``lost`` is what it said if it raised
    ``StateLost``: then it is to get all events of the run.
    """

    def __init__(self, build: Callable[[], MetricSink], state: str | None = None) -> None:
        self.lost = ""
        self._build, self._state = build, state
        self._thread = ThreadPoolExecutor(1, "altgrad sink under test")
        self._open = True
        self.states: list[str] = []
        self.sink: MetricSink

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call in the sink's thread."""
        return self._thread.submit(function, *arguments).result()

    def _begin(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call, and again after a pause, as a run does: what a killed process held may be held a moment longer."""
        for pause_s in _PAUSES_S:
            try:
                return self.call(function, *arguments)
            except (StateLost, AltgradError, ImportError):
                raise
            except Exception:
                time.sleep(pause_s)
        return self.call(function, *arguments)

    def go_on(self, events: Sequence[Event], place: int) -> None:
        """Write the events from ``place`` on, or all of them if the sink has lost its state."""
        self.write(*(events if self.lost else events[place:]))

    def write(self, *events: Event) -> None:
        """Write each event, a copy of its own, and ask for the state after it."""
        for event in events:
            _told("write", self.call(self.sink.write, json.loads(json.dumps(event))))
            self._note_state()

    def close(self) -> None:
        """Close the sink."""
        self._open = False
        _told("close", self.call(self.sink.close))

    def _load(self, state: str) -> None:
        try:
            self._begin(self.sink.load_state_dict, json.loads(state))
        except StateLost as lost:
            self.lost = str(lost) or "it does not say what"
        self.states.append(state)

    def _note_state(self) -> None:
        self.states.append(json.dumps(self.call(self.sink.state_dict), allow_nan=False))

    def __enter__(self) -> Fed:
        self.sink = self._begin(self._build)
        try:
            if self._state is None:
                self._note_state()
            else:
                self._load(self._state)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if self._open:
                self.close()
        finally:
            self._thread.shutdown()


def _told(method: str, said: object) -> None:
    assert said is None or isinstance(said, str), f"{method}() returns None, or a text for the user, got {said!r}"


def feed_and_kill(
    suite: Builds, folder: Path, events: Sequence[Event], place: int = 0, state: str | None = None
) -> list[str]:
    """Write the events from ``place`` on in a process of its own, which then dies as by ``kill -9``.

    The sink goes on from ``state``. Returns its state at ``place`` and after each event from there on. The suite's class must
    stand at the top of a file, since the other process has to find it.
    """
    kind = type(suite)
    assert "<locals>" not in kind.__qualname__, f"{kind.__qualname__}: define the class at the top of its file"
    told = folder.parent / f"{folder.name}-states.jsonl"
    order = {
        "file": inspect.getfile(kind),
        "suite": kind.__qualname__,
        "folder": str(folder),
        "events": list(events),
        "place": place,
        "state": state,
        "told": str(told),
    }
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import die_feeding; die_feeding()"],
        input=json.dumps(order),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, f"the sink failed in a process of its own:\n{done.stdout}{done.stderr}"
    states = told.read_text().splitlines()
    return states[-(len(events) - place + 1) :]


def die_feeding() -> None:
    """Do what ``feed_and_kill`` asks for on standard input, and die."""
    order = json.load(sys.stdin)
    spec = importlib.util.spec_from_file_location("suite_of_a_sink", order["file"])
    assert spec is not None
    assert spec.loader is not None
    found: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    for name in order["suite"].split("."):
        found = getattr(found, name)
    suite: Builds = found()
    with Fed(lambda: suite.build(Path(order["folder"])), order["state"]) as fed:
        fed.go_on(order["events"], order["place"])
        Path(order["told"]).write_text("".join(f"{state}\n" for state in fed.states))
        os.kill(os.getpid(), signal.SIGKILL)
