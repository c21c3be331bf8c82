"""Probes at work in one step: called at its moments, and the time that they take kept apart from the training's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import torch

from altgrad_core.training.probes import Probe, StepContext

Moment = Literal["before_forward", "after_backward", "before_update", "after_update"]


class Probing:
    """The probes that are due in a step."""

    def __init__(self, probes: Sequence[Probe], context: StepContext, device: torch.device) -> None:
        self.probes, self.context = probes, context
        self.seconds = 0.0
        """Time spent in probes so far."""
        self._cuda = device.type == "cuda"

    def at(self, moment: Moment) -> None:
        """Call the probes; ``RuntimeError`` that names the one that fails."""
        if not self.probes:  # looking at the clock waits for the device
            return
        started = self._now()
        for probe in self.probes:
            try:
                getattr(probe, moment)(self.context)
            except Exception as error:
                what = f"{type(probe).__module__}.{type(probe).__qualname__}"
                raise RuntimeError(f"the probe {what} failed in {moment}: {error!r}") from error
        self.seconds += self._now() - started

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()
