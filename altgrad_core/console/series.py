"""A run's losses by step, kept small: every value for comparing runs, and a curve of bounded length for drawing."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from itertools import pairwise

_LONGEST = 512


class Series:
    """Step -> value, steps ascending. A step that comes again, after a resume, replaces all from there on."""

    def __init__(self) -> None:
        self._steps = array("q")
        self._values = array("d")
        self._curve: list[float] = []
        self._stride = 1  # values that one point of the curve stands for
        self._sum, self._count = 0.0, 0

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: int, value: float) -> None:
        """Append the value of ``step``."""
        if self._steps and step <= self._steps[-1]:
            self._cut(bisect_left(self._steps, step))
        self._steps.append(step)
        self._values.append(value)
        self._extend(value)

    @property
    def last_step(self) -> int | None:
        """The highest step; None before the first."""
        return self._steps[-1] if self._steps else None

    def at(self, step: int) -> float | None:
        """Return the value of ``step``, None when it was not logged."""
        index = bisect_left(self._steps, step)
        return self._values[index] if index < len(self._steps) and self._steps[index] == step else None

    def curve(self, points: int) -> list[float]:
        """Return the whole series as at most ``points`` means of neighbours, oldest first."""
        curve = [*self._curve, self._sum / self._count] if self._count else self._curve
        if len(curve) <= points:
            return list(curve)
        edges = [len(curve) * i // points for i in range(points + 1)]
        return [sum(curve[a:b]) / (b - a) for a, b in pairwise(edges)]

    def _cut(self, length: int) -> None:
        del self._steps[length:], self._values[length:]
        self._curve, self._stride, self._sum, self._count = [], 1, 0.0, 0
        for value in self._values:
            self._extend(value)

    def _extend(self, value: float) -> None:
        self._sum += value
        self._count += 1
        if self._count == self._stride:
            self._curve.append(self._sum / self._count)
            self._sum, self._count = 0.0, 0
            if len(self._curve) == _LONGEST:
                self._curve = [(a + b) / 2 for a, b in zip(self._curve[::2], self._curve[1::2])]
                self._stride *= 2
