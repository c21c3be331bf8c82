"""Which GPU is sick: colour says health, not load, and a letter says the same without colour.

Red: clocks lowered by heat, hardware or power delivery (T), a temperature near the card's own slowdown point (H), hardly
any memory left (M), memory errors that ECC could not correct (E), or nothing readable at all (X). Yellow: a straggler
(S), slower than the median of all GPUs of the run: with collectives in every step, everybody waits for it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import attrs

from altgrad_core.experiments.hardware import SERIOUS_THROTTLING, Gpu, GpuSample

MARKS = {"T": "throttled", "H": "hot", "M": "memory full", "E": "ECC errors", "X": "unreadable", "S": "straggler"}
NEAR_SLOWDOWN_C = 5
FULL = 0.97
STRAGGLING_POINTS = 20  # of utilization below the median
STRAGGLING_CLOCK = 0.85  # of the median clock
_MIN_GROUP = 4  # a median of fewer says nothing


@attrs.frozen
class Health:
    """What is wrong with a GPU; the worst finding."""

    severity: int
    """0 well, 1 yellow, 2 red."""
    mark: str
    """One letter; ``·`` when well."""
    text: str
    """In a few words, with the value; empty when well."""


WELL = Health(0, "·", "")


def diagnose(gpus: Mapping[int, Gpu], samples: Mapping[int, GpuSample]) -> dict[int, Health]:
    """Return the health of every GPU by rank."""
    utilization = _median([sample.utilization for sample in samples.values()])
    clock = _median([sample.sm_mhz for sample in samples.values()])
    return {rank: _one(gpu, samples.get(rank), utilization, clock) for rank, gpu in gpus.items()}


def worst(healths: Mapping[int, Health]) -> int | None:
    """Return the rank of the sickest GPU, the first of several; None when all are well."""
    rank = max(healths, key=lambda rank: healths[rank].severity, default=None)
    return rank if rank is not None and healths[rank].severity else None


def fullness(gpu: Gpu, sample: GpuSample) -> float | None:
    """Return how much of the memory is in use, in percent; None when that is not known."""
    return None if sample.used_mib is None or not gpu.total_mib else 100 * sample.used_mib / gpu.total_mib


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of those that are known; None when none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _one(gpu: Gpu, sample: GpuSample | None, utilization: float | None, clock: float | None) -> Health:
    if sample is None:
        return WELL  # not sampled yet
    if all(value is None for value in (sample.used_mib, sample.utilization, sample.temperature_c, sample.power_w)):
        return Health(2, "X", "unreadable")
    if sample.ecc:
        return Health(2, "E", f"{sample.ecc} ECC errors")
    serious = [reason for reason in sample.throttle or () if reason in SERIOUS_THROTTLING]
    if serious:
        return Health(2, "T", serious[0])
    heat, limit = sample.temperature_c, gpu.slowdown_c
    if heat is not None and limit is not None and heat >= limit - NEAR_SLOWDOWN_C:
        return Health(2, "H", f"{heat:.0f} °C, limit {limit:.0f}")
    used, total = sample.used_mib, gpu.total_mib
    if used is not None and total and used >= FULL * total:
        return Health(2, "M", f"memory {100 * used / total:.0f} %")
    busy = sample.utilization
    if busy is not None and utilization is not None and busy < utilization - STRAGGLING_POINTS:
        return Health(1, "S", f"{busy:.0f} %, median {utilization:.0f} %")
    if sample.sm_mhz is not None and clock is not None and sample.sm_mhz < STRAGGLING_CLOCK * clock:
        return Health(1, "S", f"{sample.sm_mhz:.0f} MHz, median {clock:.0f}")
    return WELL


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if len(known) >= _MIN_GROUP else None
