"""Registers the probes ``gradients``, ``stability``, ``updates``, ``shadow`` and ``histograms``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from altgrad_core.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    from altgrad_core.training.probes import Probe

_positive = attrs.validators.ge(1)


@attrs.frozen(kw_only=True)
class ProbeOptions:
    """``probes.<name>``."""

    every: int = attrs.field(default=10, validator=_positive)
    """Steps between measurements; the first step is always measured."""


@attrs.frozen(kw_only=True)
class GradientsOptions:
    """``probes.gradients``."""

    every: int = attrs.field(default=10, validator=_positive)
    """Steps between measurements; the first step is always measured."""
    window: int = attrs.field(default=5, validator=_positive)
    """Measurements in a row without any gradient that make a neuron count in ``dead_neuron_window_frac``."""


@attrs.frozen(kw_only=True)
class ShadowOptions:
    """``probes.shadow``: costs an FP32 forward and backward each time, two to four BF16 steps on a CPU."""

    every: int = attrs.field(default=20, validator=_positive)
    """Steps between measurements; the first step is always measured."""


@attrs.frozen(kw_only=True)
class HistogramsOptions:
    """``probes.histograms``: costs about half a step each time on a CPU."""

    every: int = attrs.field(default=100, validator=_positive)
    """Steps between measurements; the first step is always measured."""


def build_gradients(options: GradientsOptions) -> Probe:
    """Norms, SNR and dead neurons of each parameter's gradient."""
    from altgrad_probes.gradients import GradientsProbe

    return GradientsProbe(options.every, options.window)


def build_stability(options: ProbeOptions) -> Probe:
    """Overflow, underflow, NaN and Inf, SQNR and dynamic range of each cast, and the scales."""
    from altgrad_probes.stability import StabilityProbe

    return StabilityProbe(options.every)


def build_updates(options: ProbeOptions) -> Probe:
    """What the optimizer's step changes in the weights as the GEMMs read them."""
    from altgrad_probes.updates import UpdatesProbe

    return UpdatesProbe(options.every)


def build_shadow(options: ShadowOptions) -> Probe:
    """Gradients against FP32 at the same weights, batch and dropout masks."""
    from altgrad_probes.shadow import ShadowProbe

    return ShadowProbe(options.every)


def build_histograms(options: HistogramsOptions) -> Probe:
    """Where each converted layer's operands lie on the grids of their formats."""
    from altgrad_probes.histograms import HistogramsProbe

    return HistogramsProbe(options.every)


@hookimpl
def altgrad_register_probes(register: Register) -> None:
    """Register the five probes."""
    register("gradients", build_gradients, GradientsOptions)
    register("stability", build_stability, ProbeOptions)
    register("updates", build_updates, ProbeOptions)
    register("shadow", build_shadow, ShadowOptions)
    register("histograms", build_histograms, HistogramsOptions)
