"""Screens' states, made of hand-written events: what a run tells, in the order in which it tells it."""

from __future__ import annotations

import math
from typing import Any

from altgrad_core.console.state import RunState, ScreenState

START = 1_700_000_000.0
MODEL = {
    "kind": "gpt", "parameters": 842_624, "groups": {"token_embedding": 32_896, "blocks": 793_088},
    "options": {"n_layer": 4, "n_head": 4, "n_embd": 128},
}  # fmt: skip
DATA = {
    "name": "stdlib", "tokenizer": "bytes", "vocab_size": 257, "documents": 526, "train_tokens": 7_197_621,
    "val_tokens": 802_777,
}  # fmt: skip
RECIPE = {
    "name": "e5m2", "compute": "bf16", "linear_layers": 17, "converted": ["blocks.0.mlp.up"] * 16,
    "left_alone": {"lm_head": "an override says bf16"}, "backend": "emulated",
}  # fmt: skip
ENVIRONMENT = {
    "device": "cuda:0", "device_name": "NVIDIA H100 80GB HBM3", "cpu_threads": 16, "packages": {"torch": "2.13.0"},
    "python": "3.12.1",
}  # fmt: skip


class Teller:
    """Tells events to a run's state, one second apart, and keeps them."""

    def __init__(self, run: RunState, now: float = START) -> None:
        self.run, self.now = run, now
        self.events: list[dict[str, Any]] = []

    def __call__(self, event: str, **fields: Any) -> None:
        self.now += 1
        self.events.append({"time": self.now, "event": event, **fields})
        self.run.take(self.events[-1])

    def start(self, steps: int, *, world: int = 1, epochs: float = 2.1) -> None:
        self("init", what="environment", facts=ENVIRONMENT)
        self("init", what="model", facts=MODEL)
        self("init", what="data", facts=DATA)
        batch = {"batch_size": 16, "accumulate": 2, "block_size": 128, "world_size": world}
        self("init", what="batch", facts={**batch, "tokens_per_step": 4096 * world, "steps": steps, "epochs": epochs})
        self("init", what="recipe", facts=RECIPE)
        nodes = {"backend": "nccl", "backend_version": "2.27.3", "all_reduce_ms": 1.234, "all_reduce_bytes": 2**26}
        self("init", what="distributed", facts={"world_size": world, "nodes": math.ceil(world / 8), **nodes})
        self("init", what="alerts", facts={"nan_patience": 10, "overflow": 0.01, "bit_stall": 0.5})
        self("status", status="running", pid=123, step=0, resumed=False)

    def train(self, first: int, last: int, *, above: float = 0.0) -> None:
        for step in range(first, last + 1):
            loss = 2 + 3.5 * 0.97**step + 0.03 * math.sin(7 * step) + above
            values = {
                "train/loss": loss,
                "train/perplexity": math.exp(loss),
                "train/lr": 6e-4,
                "train/grad_norm": 1.234,
            }
            rates = {"overflow_rate": 0.006, "underflow_rate": 0.00002, "bit_stall_rate": 0.88, "grad_cos_sim": 0.9852}
            self("metrics", step=step, values={**values, "train/tokens_per_s": 17_649.4, **rates})

    def evaluate(self, step: int, loss: float) -> None:
        self("evaluation", step=step, state="begin")
        self("metrics", step=step, values={"val/loss": loss, "val/perplexity": math.exp(loss)})
        self("evaluation", step=step, state="end", patience_used=0, patience=5)

    def gpus(self, number: int, *, sick: bool = True) -> None:
        """Tell of GPUs, eight a node; the sick ones are those of ``SICK`` that exist."""
        facts = [
            {
                "rank": rank, "node": f"node{rank // 8:02}", "uuid": f"GPU-{rank:08x}", "name": "NVIDIA H100 80GB HBM3",
                "total_mib": 81_559.0, "slowdown_c": 90, "power_limit_w": 700.0, "sm_max_mhz": 1980,
            }
            for rank in range(number)
        ]  # fmt: skip
        self("init", what="gpus", facts={"gpus": facts})
        self.sample(number, sick=sick)

    def sample(self, number: int, *, sick: bool = True) -> None:
        samples = []
        for rank in range(number):
            sample = {
                "rank": rank, "used_mib": 62_000.0 + 37 * (rank % 11), "utilization": 93 + rank % 5,
                "temperature_c": 60 + rank % 9, "power_w": 600.0 + rank % 40, "sm_mhz": 1755, "throttle": ["power cap"],
                "ecc": 0,
            }  # fmt: skip
            samples.append({**sample, **(SICK.get(rank, {}) if sick else {})})
        self("gpus", samples=samples)


SICK: dict[int, dict[str, Any]] = {
    0: {"ecc": None, "sm_mhz": None, "throttle": None},  # well; a card that does not say everything
    3: {"utilization": 61},
    6: {"temperature_c": 88, "throttle": ["power cap", "hardware thermal"], "sm_mhz": 1215},
    41: {"temperature_c": 86},
    130: {"used_mib": 80_900.0},
    200: {"ecc": 2},
}


def training(gpus: int = 0, *, sick: bool = True) -> ScreenState:
    """One run in the middle: step 129 of 300, a checkpoint being saved."""
    screen = ScreenState(title="e5m2-vs-bf16")
    run = screen.runs["e5m2"] = RunState("e5m2", steps=300)
    tell = Teller(run)
    tell.start(300, world=max(1, gpus))
    tell.train(1, 100)
    tell.evaluate(100, 2.31)
    saved = {
        "path": "checkpoints/step-000100",
        "bytes": 9_437_184,
        "seconds": 0.22,
        "blocked_s": 0.01,
        "name": "step-000100",
    }
    tell("checkpoint", step=100, kind="best", **saved, state_hash="c0ffee" * 10)
    alert = {"alert": "bit_stall", "action": "log", "value": 0.88, "threshold": 0.5}
    tell("alert", step=101, **alert, message="The mean bit-stall rate is 88.00%, above 50.00%; highest in blocks.3.")
    tell.train(101, 129)
    if gpus:
        tell("comm", step=129, op="all_reduce", milliseconds=12.345, bytes=2**27, ranks=gpus)
        tell.gpus(gpus, sick=sick)
    else:
        host = {"cpu_percent": 98.2, "cores": 2, "used_bytes": 4 * 2**30, "total_bytes": 16 * 2**30}
        tell("host", **host, process_bytes=2**30)
    tell("task", task="checkpoint", state="begin", done=3_000_000, total=9_437_184, unit="bytes")
    return screen


def matrix(waiting: int = 2) -> ScreenState:
    """Runs of all kinds, the baseline done, one going on and above it."""
    screen = ScreenState(title="a matrix")
    base = screen.runs["bf16"] = RunState("bf16", steps=300, baseline=True)
    tell = Teller(base)
    tell.start(300)
    tell.train(1, 300)
    tell("status", status="done", step=300, reason="")
    failed = screen.runs["mxfp4"] = RunState("mxfp4", steps=300)
    tell = Teller(failed, tell.now)
    tell.start(300)
    tell.train(1, 12, above=2.0)
    tell("status", status="failed", reason="OutOfMemoryError: out of memory")
    going_on = screen.runs["e5m2-delayed"] = RunState("e5m2-delayed", steps=300)
    tell = Teller(going_on, tell.now)
    tell.start(300)
    tell.train(1, 129, above=0.02)
    tell.evaluate(100, 2.33)
    tell("evaluation", step=129, state="begin")
    for number in range(waiting):
        screen.runs[f"e4m3fn-{number}"] = RunState(f"e4m3fn-{number}", steps=300)
    return screen


def now(screen: ScreenState) -> float:
    """Two seconds after the last event."""
    return 2 + max(run.latest for run in screen.runs.values())
