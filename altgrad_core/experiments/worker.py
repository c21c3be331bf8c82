"""The worker: executes one run folder in this process. ``python -m altgrad_core.experiments.worker FOLDER``.

It takes the run's lock and the signals before torch is imported, so that from its first moment the run has an owner and
Ctrl-C means: save a checkpoint and end.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from altgrad_core.errors import AltgradError, RunFailed
from altgrad_core.experiments.eventlog import EventLog
from altgrad_core.experiments.feed import feed
from altgrad_core.experiments.folder import FINISHED, RunFolder, hold
from altgrad_core.experiments.history import last_status
from altgrad_core.experiments.sinkrunner import THREAD_PREFIX, Patience

_SHUTDOWN_S = 60.0


def stopping_signals() -> list[signal.Signals]:
    """Return the signals that mean: save a checkpoint and end. SIGHUP is left alone under ``nohup``, which ignores it."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


def signal_name(number: int) -> str:
    """Return ``SIGTERM`` for 15, ``signal 40`` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Received:
    """The signals that asked for an end; the death of the process that started the worker counts as SIGHUP."""

    def __init__(self, parent: int | None) -> None:
        self._parent = parent
        self._numbers: list[int] = []

    def receive(self, number: int, frame: object) -> None:
        """Note a signal."""
        self._numbers.append(number)

    @property
    def first(self) -> int | None:
        """The first signal, None as long as there was none."""
        if not self._numbers and self._parent is not None and os.getppid() != self._parent:
            self._numbers.append(signal.SIGHUP)
        return self._numbers[0] if self._numbers else None


def main() -> None:
    """Read the command line, execute the run and exit with its status."""
    parser = argparse.ArgumentParser(description="Execute one run folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--parent", type=int, help="End, after a checkpoint, when this process is not the parent any more."
    )
    parser.add_argument("--stop-at", type=int, help="End, after a checkpoint, when this many steps are done.")
    arguments = parser.parse_args()
    try:
        status = execute(RunFolder(arguments.folder), arguments.device, arguments.parent, arguments.stop_at)
    except AltgradError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the worker's log
        status = error.exit_status
    _leave(status)


def execute(folder: RunFolder, device_name: str, parent: int | None = None, stop_at: int | None = None) -> int:
    """Train the run and return its exit status: 0 done or stopped by an alert, 1 failed, 128 + signal interrupted.

    One that is finished already gives its sinks what they lack.
    A run that ended at ``stop_at`` steps has the status of an interrupted one, and 128. ``AltgradError`` when it could
    not even begin, and no event can tell it: another process holds the run, or its event file cannot be written.
    """
    with hold(folder.lock, f"The run {folder.path}"), _signals(parent) as received:
        last = last_status(folder.events)
        if last is not None and last["status"] in FINISHED:
            return _feed(folder, received)
        log = EventLog(folder.events)
        try:
            from altgrad_core.experiments.assembly import train_run

            def stop_requested(steps: int) -> bool:
                return received.first is not None or (stop_at is not None and steps >= stop_at)

            def why_stopped() -> str:
                return f"after step {stop_at}, as asked" if received.first is None else signal_name(received.first)

            outcome = train_run(folder, device_name, log, stop_requested, why_stopped)
            return 128 + (received.first or 0) if outcome == "interrupted" else 0
        except Exception as error:
            known = isinstance(error, AltgradError) or type(error).__name__ == "OutOfMemoryError"
            if not known:
                traceback.print_exc()
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            print(reason, file=sys.stderr)  # noqa: T201 - the worker's log
            # A full disk takes no event either; that the run is over is told by the lock.
            with contextlib.suppress(RunFailed):
                log.emit({"event": "status", "status": "failed", "reason": reason})
            return 1
        finally:
            log.close(in_a_hurry=lambda: received.first is not None)


def _feed(folder: RunFolder, received: Received) -> int:
    """Give the sinks of a finished run what they lack, and return the exit status; a failure is theirs, not the run's."""
    log = EventLog(folder.events, Patience(stalled_s=60.0, drained_s=math.inf))  # nothing else waits
    try:
        feed(folder, log)
    except AltgradError as error:
        log.warn(str(error))
    finally:
        log.close(in_a_hurry=lambda: received.first is not None)
    return 128 + received.first if received.first else 0


def _leave(status: int) -> NoReturn:
    """End the process, also when the thread of a sink hangs, or one that a sink's library has started."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if any(thread.name.startswith(THREAD_PREFIX) for thread in threading.enumerate()):
        os._exit(status)  # the run is closed; the interpreter's shutdown could hang, or crash, over that thread
    watchdog = threading.Timer(_SHUTDOWN_S, os._exit, [status])
    watchdog.daemon = True
    watchdog.start()
    sys.exit(status)


@contextlib.contextmanager
def _signals(parent: int | None) -> Iterator[Received]:
    """Collect signals instead of dying: schedulers send SIGTERM to every process, and ``altgrad run`` sends it on."""
    received = Received(parent)
    before = {number: signal.signal(number, received.receive) for number in stopping_signals()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
