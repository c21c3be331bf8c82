"""A sink in a thread of its own, which reads the run's events back from ``events.jsonl``.

The queue between the training and a sink is the file: a sink has a place in it, and what lies behind that place is what
it has not got yet. So the queue takes no memory however far a sink lags, nothing is ever dropped from it, its order is
that of the file, and a sink can go on from where it stood in another process.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import attrs

from altgrad_core.errors import AltgradError, RunFailed
from altgrad_core.experiments.eventfile import EventFile, EventReader
from altgrad_core.training.events import MetricSink, StateLost

T = TypeVar("T")
Status = Literal["running", "complete", "disabled", "abandoned"]
_MOST_SAYINGS = 20
THREAD_PREFIX = "altgrad sink "


@attrs.frozen(kw_only=True)
class Patience:
    """How long sinks are waited for."""

    attempts: int = 8
    """Calls of a sink that may fail in a row before it is disabled."""
    first_pause_s: float = 0.25
    """Pause after the first failure; each further one is twice as long. 32 s in all with 8 attempts."""
    blocked_s: float = 60.0
    """After how long in one call a sink is said to be blocked, while the run goes on."""
    stalled_s: float = 10.0
    """At the end of a run: how long one call may take before the sink is abandoned; building and closing it may take
    ``drained_s``."""
    drained_s: float = 60.0
    """At the end of a run: how long all sinks together may take to get the events that they have not got yet."""
    hurried_s: float = 5.0
    """The same for a run that was asked to end: whoever asked may be about to kill it."""


@attrs.frozen
class Position:
    """Where a sink stands, as checkpoints keep it."""

    place: int
    """Place in ``events.jsonl`` of the next event it gets."""
    state: str | None
    """Its ``state_dict`` at that place as JSON; None when it never had one. A text, so that nobody can change it."""


class _GivenUp(Exception):
    """The sink gets nothing more; the text says why."""


class SinkRunner:
    """Builds a sink, feeds it and closes it, each of them in a daemon thread that touches nothing else of the run.

    ``skipped`` are the parts of the file that are not of this run's history: what a crashed stretch logged after the
    checkpoint from which the run went on. ``keep_first`` is called with the state of a sink that had none yet.
    """

    def __init__(
        self,
        name: str,
        build: Callable[[], MetricSink],
        file: EventFile,
        position: Position,
        *,
        skipped: Sequence[tuple[int, int]],
        keep_first: Callable[[str], None],
        warn: Callable[[str], None],
        patience: Patience,
    ) -> None:
        self.name = name
        self.position = position
        """After the last event of which the sink has also given its state."""
        self.status: Status = "running"
        self.reason = ""
        """Why it did not get everything."""
        self.doing: tuple[str, float] | None = None
        """The call that the sink is in and, by ``time.monotonic``, since when, its repetitions included."""
        self._build, self._file, self._skipped = build, file, skipped
        self._keep_first, self._warn, self._patience = keep_first, warn, patience
        self._place = position.place
        self._end: int | None = None  # place at which the sink is closed; None as long as the run goes on
        self._error = ""
        self._said, self._sayings = "", 0
        self._told_blocked: tuple[str, float] | None = None
        self._sink: MetricSink | None = None
        self._thread = threading.Thread(target=self._run, name=f"{THREAD_PREFIX}{name}", daemon=True)

    def start(self) -> None:
        """Start the thread; a machine that has none left has no place for the sink."""
        try:
            self._thread.start()
        except RuntimeError as error:
            self._disable(_text_of(error), "could not start and receives nothing")

    def finish(self, end: int) -> None:
        """Close the sink when it has got the events before the place ``end``; returns at once."""
        with self._file.grown:
            self._end = end
            self._file.grown.notify_all()

    def wait(self, timeout_s: float) -> None:
        """Wait for the sink to come to its end."""
        self._thread.join(timeout_s)

    @property
    def failing(self) -> bool:
        """Whether the call that the sink is in has raised before and is repeated."""
        return bool(self._error)

    @property
    def at_work(self) -> bool:
        """Whether there is something to wait for."""
        return self.status in ("running", "complete") and self._thread.is_alive()

    def abandon(self) -> None:
        """Leave a sink that does not come to its end to itself: nothing it does from now on is told."""
        with self._file.grown:
            if self.status == "running":
                self.status = "abandoned"
                what, since = self.doing or ("", 0.0)
                blocked = f"{what}() took more than {time.monotonic() - since:.0f} s" if what else "too slow"
                self.reason = self._error or blocked
            self._file.grown.notify_all()

    def outcome(self) -> dict[str, Any]:
        """Return how the sink fared, for the run's summary: ``status``, the number of events it ``missed``, ``reason``."""
        end = self._file.end if self._end is None else self._end
        missed, place = 0, self._next_place(self._place)
        for first, last in (*self._skipped, (end, end)):
            if first >= place:
                missed += self._file.count(place, first)
                place = last
        return {"status": self.status, "missed": missed, "reason": self.reason}

    def check_blocked(self) -> None:
        """Warn, once, of a call that does not come back."""
        doing = self.doing
        if doing is None or doing == self._told_blocked or self.status != "running":
            return
        seconds = time.monotonic() - doing[1]
        if seconds > self._patience.blocked_s:
            self._told_blocked = doing
            self._warn(
                f"The sink '{self.name}' has been in {doing[0]}() for {seconds:.0f} s. Training goes on; what the sink has "
                "not got waits in events.jsonl."
            )

    def _run(self) -> None:
        try:
            self._feed()
        except _GivenUp as given_up:
            self._disable(str(given_up), "failed and receives nothing more")
            if self.status == "disabled" and self._sink is not None:
                with contextlib.suppress(BaseException):
                    self._sink.close()
        else:
            self._close()

    def _disable(self, reason: str, what: str) -> None:
        with self._file.grown:
            if self.status == "running":
                self.status, self.reason = "disabled", reason
                self._tell(f"The sink '{self.name}' {what}: {reason}. Everything is in events.jsonl.")

    def _feed(self) -> None:
        """Give the sink its state and all events up to the end."""
        sink = self._sink = self._call("build", self._build)
        if self.position.state is None:
            first = self._call("state_dict", lambda: _state_of(sink))
            self._call("state_dict", lambda: self._keep_first(first))
            self.position = Position(self._place, first)
        else:
            self._call("load_state_dict", lambda: self._load(sink))
        with contextlib.closing(EventReader(self._file.path)) as reader:
            while self._wait_for_event():
                self._place = self._call("write", lambda: self._deliver(sink, reader))
                self.position = Position(self._place, self._call("state_dict", lambda: _state_of(sink)))

    def _load(self, sink: MetricSink) -> None:
        assert self.position.state is not None
        try:
            sink.load_state_dict(json.loads(self.position.state))
        except StateLost as lost:
            self._place = 0
            self._tell(f"The sink '{self.name}' gets all events of the run anew: {lost}")

    def _deliver(self, sink: MetricSink, reader: EventReader) -> int:
        """Give the sink the event at its place and return the place after it."""
        # Read again for each attempt: the sink may have changed the event before it failed.
        event, after = reader.read(self._place, self._file.end)
        self._pass_on(sink.write(event))
        return after

    def _pass_on(self, said: str | None) -> None:
        """Tell what a sink has to say: nothing twice in a row, and not without end, as it gets to hear it as an event."""
        if isinstance(said, str) and said not in ("", self._said) and self._sayings < _MOST_SAYINGS:
            self._said, self._sayings = said, self._sayings + 1
            self._tell(f"The sink '{self.name}': {said}")

    def _wait_for_event(self) -> bool:
        """Wait until there is an event at the sink's place; False when it has got the last one."""
        with self._file.grown:
            while self.status == "running":
                self._place = self._next_place(self._place)
                if self._place < (self._file.end if self._end is None else self._end):
                    return True
                if self._end is not None:
                    return False
                self._file.grown.wait()
        raise _GivenUp

    def _next_place(self, place: int) -> int:
        for first, last in self._skipped:
            if first <= place < last:
                place = last
        return place

    def _call(self, what: str, call: Callable[[], T], *, attempts: int | None = None) -> T:
        """Call until it succeeds, with pauses; raises ``_GivenUp`` when it fails too often or cannot succeed."""
        attempts = attempts or self._patience.attempts
        self.doing = (what, time.monotonic())
        for attempt in itertools.count(1):
            try:
                result = call()
            except BaseException as error:  # a tracker may well raise SystemExit: it ends this sink and nothing else
                self._error = f"{what}(): {_text_of(error)}"
                # Waiting installs no package and mends no mistake of the user.
                if attempt == attempts or isinstance(error, AltgradError | ImportError):
                    if not isinstance(error, AltgradError):
                        with contextlib.suppress(Exception):  # to the worker's log, for the author of the sink
                            traceback.print_exception(error)
                    self.doing = None
                    raise _GivenUp(self._error + (f" ({attempt} times)" if attempt > 1 else "")) from None
                self._pause(self._patience.first_pause_s * 2 ** (attempt - 1))
            else:
                break
        self.doing, self._error = None, ""
        if self.status != "running":
            raise _GivenUp
        return result

    def _pause(self, seconds: float) -> None:
        with self._file.grown:
            if self._file.grown.wait_for(lambda: self.status != "running", timeout=seconds):
                raise _GivenUp

    def _close(self) -> None:
        assert self._sink is not None
        sink = self._sink
        try:
            self._call("close", lambda: self._pass_on(sink.close()), attempts=1)
        except _GivenUp as given_up:
            self._disable(str(given_up), "got every event but could not be closed")
        else:
            self.status = "complete"

    def _tell(self, message: str) -> None:
        with self._file.grown, contextlib.suppress(RunFailed):  # of a full disk the training hears by itself
            if self.status != "abandoned":
                self._warn(message)


def _state_of(sink: MetricSink) -> str:
    state = sink.state_dict()
    if not isinstance(state, dict):
        raise TypeError(f"state_dict() returns a dict of JSON types, got {state!r}")
    return json.dumps(state, allow_nan=False)


def _text_of(error: BaseException) -> str:
    """Return ``Type: text`` also where ``str(error)`` fails."""
    return traceback.format_exception_only(error)[-1].strip()
