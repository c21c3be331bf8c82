"""What a GPU and a host say about themselves: what never changes, told once, and samples of what does.

A field is None when the card or the driver does not give it; it is left out of the event and shown as N/A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import attrs

_T = TypeVar("_T", "Gpu", "GpuSample", "HostSample")

# Reasons for lower clocks that mean trouble. A power cap at full load, idling and clocks that somebody set are no trouble.
SERIOUS_THROTTLING = frozenset({"hardware slowdown", "software thermal", "hardware thermal", "power brake"})


@attrs.frozen(kw_only=True)
class Gpu:
    """One GPU of a run."""

    rank: int
    """Rank of the process that uses it."""
    node: str
    """Host name."""
    uuid: str
    """NVML's name for it, the only one that NVML and CUDA share."""
    name: str
    """Product."""
    total_mib: float | None = None
    """Memory, in MiB."""
    slowdown_c: float | None = None
    """Temperature at which the card lowers its clocks, in degrees Celsius."""
    power_limit_w: float | None = None
    """Enforced power limit, in watts."""
    sm_max_mhz: float | None = None
    """Highest clock of the multiprocessors, in MHz."""


@attrs.frozen(kw_only=True)
class GpuSample:
    """What a GPU does at one moment."""

    rank: int
    """Rank of the process that uses it."""
    used_mib: float | None = None
    """Memory in use, by whomever, in MiB."""
    utilization: float | None = None
    """Share of the time in which a kernel ran, in percent."""
    temperature_c: float | None = None
    """Temperature in degrees Celsius."""
    power_w: float | None = None
    """Power in watts."""
    sm_mhz: float | None = None
    """Clock of the multiprocessors, in MHz."""
    throttle: Sequence[str] | None = None
    """Why clocks are lower than they could be; empty when they are not."""
    ecc: int | None = None
    """Memory errors since the driver was loaded that ECC could not correct."""


@attrs.frozen(kw_only=True)
class HostSample:
    """What the machine of a run does at one moment."""

    cpu_percent: float
    """Load of all cores together, 0 to 100."""
    cores: int
    """Logical cores."""
    used_bytes: int
    """Memory that is not available to a new program."""
    total_bytes: int
    """Memory."""
    process_bytes: int
    """Memory of the training process (resident set)."""


def as_facts(item: Gpu | GpuSample | HostSample) -> dict[str, Any]:
    """Return the fields as they stand in an event: None is left out."""
    return attrs.asdict(item, filter=lambda field, value: value is not None)


def of_facts(kind: type[_T], facts: Mapping[str, Any]) -> _T:
    """Return the item of an event's fields; a field that a newer version added is passed over."""
    known = attrs.fields_dict(kind)
    return kind(**{name: value for name, value in facts.items() if name in known})
