"""Where the values of a cast lie on the grid of their format: counts by binade, and what the event ``histograms`` holds."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from altgrad_core.numerics.formats import Format
from altgrad_core.training.events import Event

COUNTED_BITS = 8
"""Formats of up to so many bits have their used codes counted."""


def _whole(counts: Iterable[int]) -> tuple[int, ...]:
    return tuple(counts)


@attrs.frozen(kw_only=True)
class FormatRange:
    """What a histogram is held against: the range of a format, in its own units (those of x / scale)."""

    min_positive: float
    """Smallest value above zero."""
    min_normal: float | None
    """Smallest normal value; None for formats that know no subnormals."""
    max_finite: float
    """Largest finite value."""
    codes: int | None
    """Codes that are finite numbers; None for formats whose codes are not counted."""

    @classmethod
    @functools.cache
    def of(cls, format: Format) -> FormatRange:
        """Return the range of a format."""
        counted = format.bits <= COUNTED_BITS
        return cls(
            min_positive=format.min_positive,
            min_normal=getattr(format, "min_normal", None),
            max_finite=format.max_finite,
            codes=sum(math.isfinite(value) for value in format.values()) if counted else None,
        )


@attrs.frozen(kw_only=True)
class CastHistogram:
    """All that one operand of one layer was cast from in a step. Rates are of ``elements``."""

    format: str
    """Name of the format of the elements."""
    range: FormatRange
    """What that format can hold."""
    elements: int
    """Elements cast; ``zeros``, ``nan``, ``inf`` and the sum of ``counts`` make them up, but for quotients beyond float32."""
    zeros: int
    """Elements that were zero before the cast."""
    underflow: int
    """Non-zero elements that became zero."""
    subnormal: int
    """Elements whose result is subnormal in the format."""
    overflow: int
    """Finite elements that were clamped to the largest finite value."""
    nan: int
    """Elements that were NaN."""
    inf: int
    """Elements that were infinite."""
    codes: int | None
    """Codes of finite numbers that were used at least once; None for formats whose codes are not counted."""
    first: int
    """Exponent of the first binade: ``counts[i]`` elements have 2^(first + i) <= abs(x / scale) < 2^(first + i + 1)."""
    counts: tuple[int, ...] = attrs.field(converter=_whole, repr=False)
    """Elements of each binade, from the first to the last that has any; empty when all are zero or not finite."""

    @property
    def edges(self) -> list[int]:
        """Return log2 of the binades' edges, one more than there are counts."""
        return list(range(self.first, self.first + len(self.counts) + 1))

    @property
    def lost(self) -> float:
        """Fraction of the elements that the format's range does not hold: underflow and overflow; 0 when none was cast."""
        return (self.underflow + self.overflow) / self.elements if self.elements else 0.0


def from_vector(format: Format, lowest: int, vector: list[float]) -> CastHistogram:
    """Make one of the numbers ``Measurements`` gathers: statistics, zeros, used codes (-1: not counted), counts.

    ``lowest`` is the exponent of the first of the counts; those at both ends that are 0 are dropped.
    """
    elements, overflow, underflow, subnormal, nan, inf, zeros, codes, *counts = (int(value) for value in vector)
    filled = [index for index, count in enumerate(counts) if count]
    start, stop = (filled[0], filled[-1] + 1) if filled else (0, 0)
    return CastHistogram(
        format=format.name,
        range=FormatRange.of(format),
        elements=elements,
        zeros=zeros,
        underflow=underflow,
        subnormal=subnormal,
        overflow=overflow,
        nan=nan,
        inf=inf,
        codes=None if codes < 0 else codes,
        first=lowest + start if filled else 0,
        counts=counts[start:stop],
    )


def to_event(step: int, found: Mapping[str, CastHistogram]) -> Event:
    """Return the event of a step's histograms, by ``layer.operand``."""
    kept = attrs.filters.exclude(attrs.fields(CastHistogram).range)
    return {
        "event": "histograms",
        "step": step,
        "formats": {its.format: attrs.asdict(its.range) for its in found.values()},
        "casts": {name: attrs.asdict(its, filter=kept, recurse=False) for name, its in found.items()},
    }


def histograms_of(event: Event) -> dict[str, CastHistogram]:
    """Return the histograms of an event, by ``layer.operand``; empty for other events."""
    ranges = {name: FormatRange(**facts) for name, facts in event.get("formats", {}).items()}
    casts: Mapping[str, Mapping[str, Any]] = event.get("casts", {}) if event["event"] == "histograms" else {}
    return {name: CastHistogram(range=ranges[facts["format"]], **facts) for name, facts in casts.items()}
