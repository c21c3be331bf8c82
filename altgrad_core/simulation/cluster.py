"""GPUs that are not there: each differs from the others around a mean of the run, and now and then one is sick."""

from __future__ import annotations

import random
from typing import Literal

import attrs

from altgrad_core.experiments.hardware import Gpu, GpuSample
from altgrad_core.simulation.catalog import SimulatedGpu

Faults = Literal["none", "some", "many"]
FAULTS: dict[str, float] = {"none": 0.0, "some": 1.0, "many": 5.0}  # how many times as often


@attrs.define
class _Trouble:
    kind: Literal["straggler", "throttle", "heat", "memory"]
    rank: int
    steps: int


class Cluster:
    """``number`` GPUs, spread evenly over ``nodes`` hosts."""

    def __init__(self, card: SimulatedGpu, number: int, nodes: int, faults: Faults, rng: random.Random) -> None:
        self._card, self._rng, self._often = card, rng, FAULTS[faults]
        digits = max(2, len(str(nodes - 1)))
        self.gpus = [
            Gpu(
                rank=rank,
                node=f"node{rank * nodes // number:0{digits}}",
                uuid=f"GPU-{rng.getrandbits(32):08x}-{rng.getrandbits(16):04x}-simulated",
                name=card.name,
                total_mib=card.total_mib,
                slowdown_c=card.slowdown_c,
                power_limit_w=card.power_w,
                sm_max_mhz=card.sm_mhz,
            )
            for rank in range(number)
        ]
        mean_c, mean_memory = rng.gauss(64, 2), min(0.9, max(0.5, rng.gauss(0.76, 0.04)))
        self._heat = [rng.gauss(mean_c, 2.5) for _ in self.gpus]
        self._memory = [card.total_mib * min(0.93, rng.gauss(mean_memory, 0.004)) for _ in self.gpus]
        self._utilization = [min(99.0, rng.gauss(96, 0.8)) for _ in self.gpus]
        self._trouble: list[_Trouble] = []

    def step(self) -> float:
        """Let one training step pass; returns how many times as long as usual it took: all wait for the slowest."""
        for trouble in self._trouble:
            trouble.steps -= 1
        self._trouble = [trouble for trouble in self._trouble if trouble.steps > 0]
        for kind, rate in (("straggler", 0.004), ("throttle", 0.003), ("heat", 0.002), ("memory", 0.001)):
            if self._rng.random() < rate * self._often and not any(t.kind == kind for t in self._trouble):
                rank = self._rng.randrange(len(self.gpus))
                self._trouble.append(_Trouble(kind, rank, self._rng.randint(15, 60)))  # type: ignore[arg-type]
        slow = {"straggler": 1.35, "throttle": 1.25}
        return max([slow.get(trouble.kind, 1.0) for trouble in self._trouble], default=1.0)

    def samples(self) -> list[GpuSample]:
        """Sample every GPU."""
        trouble = {trouble.rank: trouble.kind for trouble in self._trouble}
        return [self._sample(rank, trouble.get(rank)) for rank in range(len(self.gpus))]

    def _sample(self, rank: int, trouble: str | None) -> GpuSample:
        rng, card = self._rng, self._card
        heat, clock = self._heat[rank] + rng.gauss(0, 0.7), card.sm_mhz * rng.gauss(0.9, 0.01)
        used = self._memory[rank] + rng.gauss(0, 60)
        busy = self._utilization[rank] + rng.gauss(0, 0.7)
        throttle = ["power cap"] if rng.random() < 0.7 else []
        if trouble == "straggler":
            busy -= 35
        elif trouble == "throttle":
            heat, clock, throttle = card.slowdown_c + 1, 0.6 * card.sm_mhz, ["hardware thermal"]
        elif trouble == "heat":
            heat = card.slowdown_c - 3
        elif trouble == "memory":
            used = 0.985 * card.total_mib
        return GpuSample(
            rank=rank,
            used_mib=round(min(used, card.total_mib)),
            utilization=round(min(100.0, busy)),
            temperature_c=round(heat),
            power_w=round(card.power_w * min(1.0, 0.0095 * busy * (0.7 if trouble == "throttle" else 1.0))),
            sm_mhz=round(min(clock, card.sm_mhz)),
            throttle=throttle,
            ecc=0,
        )
