"""Measurements of one step: device tensors gathered as they come, moved to the host in one transfer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from altgrad_core.numerics.formats import Format
from altgrad_core.training.histograms import CastHistogram, from_vector


class Measurements:
    """Collects values under metric names during a step; ``read`` brings all of them to the host at once.

    A metric with layers is written per layer under ``<metric>/<layer>`` and as the mean over layers under its bare
    name. A layer's NaN (nothing to measure, as the cosine of a zero gradient) stays out of the mean.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._tensors: list[Tensor] = []
        self._means: dict[str, list[str]] = {}
        self._host: dict[str, float] = {}
        self._histograms: dict[str, tuple[Format, int, Tensor]] = {}

    def add(self, name: str, value: Tensor | float) -> None:
        """Add one value: a float, or a 0-d tensor on any device."""
        if isinstance(value, Tensor):
            self._names.append(name)
            self._tensors.append(value.detach().reshape(1))
        else:
            self._host[name] = float(value)

    def add_layers(self, metric: str, layers: Sequence[str], values: Tensor) -> None:
        """Add one value a layer: ``values`` is 1-D, in the order of ``layers``."""
        assert values.shape == (len(layers),), f"{metric}: {len(layers)} layers, values of shape {tuple(values.shape)}"
        names = [f"{metric}/{layer}" for layer in layers]
        self._names += names
        self._tensors.append(values.detach())
        self._means.setdefault(metric, []).extend(names)

    def add_histogram(self, name: str, format: Format, lowest: int, vector: Tensor) -> None:
        """Add the histogram of ``layer.operand``, cast to ``format``: what ``from_vector`` takes, float64 on any device."""
        self._histograms[name] = (format, lowest, vector.detach())

    def histograms(self) -> dict[str, CastHistogram]:
        """Return every histogram; one device-to-host transfer."""
        if not self._histograms:
            return {}
        vectors = [vector for _, _, vector in self._histograms.values()]
        numbers = torch.cat(vectors).tolist()
        found, start = {}, 0
        for name, (format, lowest, vector) in self._histograms.items():
            found[name] = from_vector(format, lowest, numbers[start : start + len(vector)])
            start += len(vector)
        return found

    def read(self) -> dict[str, float]:
        """Return every value, rounded to the 9 digits that identify a float32; one device-to-host transfer."""
        values = dict(self._host)
        if self._tensors:
            flat = torch.cat([tensor.to(torch.float64) for tensor in self._tensors]).tolist()
            values.update(zip(self._names, flat, strict=True))
        for metric, names in self._means.items():
            present = [values[name] for name in names if not math.isnan(values[name])]
            values[metric] = sum(present) / len(present) if present else math.nan
        return {name: float(f"{value:.9g}") for name, value in values.items()}
