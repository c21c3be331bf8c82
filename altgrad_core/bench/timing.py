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
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - began)
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


def median(times: Times, name: str) -> float:
    """Return the median time, in milliseconds."""
    return statistics.median(times[name])


def ratio(times: Times, one: str, other: str) -> float:
    """Return the time of ``one`` in times of ``other``: the median over the rounds that both took part in."""
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))
