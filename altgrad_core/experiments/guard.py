"""What shows a training must not end it: an observer that fails is left, and the training goes on without it."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from altgrad_core.errors import AltgradError
from altgrad_core.training.events import Event

if TYPE_CHECKING:
    from altgrad_core.experiments.runner import Observer, PlannedRun
    from altgrad_core.experiments.schema import Status


class Guarded:
    """Passes on to an observer what happens until it fails; that is said once, on stderr.

    What the user has to mend before anything is trained, an ``AltgradError``, is still raised. ``prints`` says that the
    observer writes to standard output, so that an error of the system's means that nobody takes it any more.
    """

    def __init__(self, observer: Observer, *, prints: bool = False) -> None:
        self._observer, self._prints = observer, prints
        self._failed = self._training = False

    def attempt(self, show: Callable[[], None]) -> None:
        """Call ``show``, also after a failure; output that nobody takes any more goes nowhere from here on."""
        try:
            show()
        except Exception as error:
            if isinstance(error, AltgradError) and not self._training:
                raise
            # A closed pipe, a full disk, a terminal that is gone.
            if self._prints and isinstance(error, OSError) and error.filename is None:
                _give_up_output()
            if not self._failed:
                self._failed = True
                _complain(error)

    def say(self, message: str) -> None:
        """See ``Observer``."""
        self._tell(lambda: self._observer.say(message))

    def begin(self, plan: Sequence[PlannedRun]) -> None:
        """See ``Observer``."""
        self._tell(lambda: self._observer.begin(plan))

    def start(self, run: PlannedRun) -> None:
        """See ``Observer``."""
        self._training = True
        self._tell(lambda: self._observer.start(run))

    def event(self, run: str, event: Event) -> None:
        """See ``Observer``."""
        self._tell(lambda: self._observer.event(run, event))

    def end(self, run: PlannedRun, status: Status, log_end: str, killed_by: str) -> None:
        """See ``Observer``."""
        self._tell(lambda: self._observer.end(run, status, log_end, killed_by))

    def idle(self) -> None:
        """See ``Observer``."""
        self._tell(self._observer.idle)

    def _tell(self, tell: Callable[[], None]) -> None:
        if not self._failed:
            self.attempt(tell)


def _complain(error: Exception) -> None:
    text = "" if isinstance(error, OSError) else "".join(traceback.format_exception(error))  # a fault of the program's
    what = f"{type(error).__name__}: {error}"
    text += (
        f"altgrad: What the runs do can no longer be shown ({what}). What trains goes on; `altgrad watch` shows it.\n"
    )
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def _give_up_output() -> None:
    """Point standard output to nowhere: what is printed later, and what its buffer holds at the exit, fails no more."""
    with contextlib.suppress(ValueError):  # somebody has closed it, or put something else in its place
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
