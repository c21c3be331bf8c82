"""Plays events at the pace of their times, or faster."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator

from altgrad_core.errors import AltgradError
from altgrad_core.training.events import Event

_NAP_S = 0.05


def pace(speed: str) -> float:
    """Return the factor that ``--speed`` asks for; infinity for ``max``."""
    try:
        factor = math.inf if speed == "max" else float(speed)
    except ValueError:
        factor = math.nan
    if not factor > 0:
        raise AltgradError(f"--speed takes a number above 0, such as 20, or max; got '{speed}'.")
    return factor


def paced(
    events: Iterable[tuple[str, Event]], factor: float, idle: Callable[[], None], *, longest_s: float = math.inf
) -> Iterator[tuple[str, Event]]:
    """Yield (run, event) when its time has come, ``factor`` times as fast as it was.

    ``idle`` is called several times a second. Pauses of the story longer than ``longest_s`` are cut to that.
    """
    due, before = time.monotonic(), None
    for run, event in events:
        if before is not None:
            due += min(longest_s, max(0.0, event["time"] - before)) / factor
        before = event["time"]
        while (wait := due - time.monotonic()) > 0:
            idle()
            time.sleep(min(wait, _NAP_S))
        yield run, event
        idle()
