"""Times of several functions that take turns, so that a slow moment of the machine hits all of them.

On CUDA a time is that between two events of the device, else wall time. Ratios are medians over the rounds of the ratios
within a round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Times = dict[str, list[float]]


def interleaved(
    runs: Mapping[str, Callable[[], object]], device: torch.device, *, rounds: int, warm_up: int = 2
) -> Times:
    """Return the milliseconds of each function in each of ``rounds`` rounds, after ``warm_up`` that do not count."""
    times: Times = {name: [] for name in runs}
    for number in range(-warm_up, rounds):
        for name, run in runs.items():
            taken = one_time(run, device)
            if number >= 0:
                times[name].append(taken)
    return times


def one_time(run: Callable[[], object], device: torch.device) -> float:
    """Return how many milliseconds a call takes."""
    began = mark(device)
    run()
    return between(began, mark(device))


Mark = float | torch.cuda.Event


def mark(device: torch.device) -> Mark:
    """Return the moment: wall time in milliseconds, or on CUDA an event that the device's stream will reach."""
    if device.type != "cuda":
        return 1e3 * time.perf_counter()
    with torch.cuda.device(device):
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def between(one: Mark, other: Mark) -> float:
    """Return the milliseconds from one moment to a later one; waits for the device to reach it."""
    if isinstance(one, float):
        assert isinstance(other, float)
        return other - one
    assert isinstance(other, torch.cuda.Event)
    other.synchronize()
    return float(one.elapsed_time(other))


def median(times: Times, name: str) -> float:
    """Return the median time, in milliseconds."""
    return statistics.median(times[name])


def ratio(times: Times, one: str, other: str) -> float:
    """Return the time of ``one`` in times of ``other``: the median over the rounds that both took part in."""
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))
