"""The events of a training that is not there: a pure function of its options, seed included.

The loss falls exponentially to a floor, with Gaussian noise and a spike now and then from which it recovers; perplexity
is exp(loss). Times are those of the simulated cluster; who plays the events decides how fast.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator
from typing import Any

import attrs

from altgrad_core.errors import AltgradError
from altgrad_core.experiments.hardware import as_facts
from altgrad_core.simulation.catalog import DATASETS, GPUS, MODELS, chosen, options_of
from altgrad_core.simulation.cluster import FAULTS, Cluster, Faults
from altgrad_core.training.events import Event, marked_as_simulated

_FLOOR = 2.05  # nats a token
_DECAY = 12.0  # the distance to the floor falls by exp(-12) over the training
_EFFICIENCY = 0.4  # of the peak; decides nothing but the pace of the story
_SAMPLE_S = 30.0
_EVALUATION_BATCHES = 20
_BANDWIDTH = 2.5e9  # bytes a second that a node writes
_ALERTS = {"nan_patience": 10, "bit_stall": 0.9, "overflow": 0.01, "dead_neurons": 0.5}
_WARNINGS = (
    "the data loader kept the step waiting for {:.0f} ms",
    "a collective was retried after {:.0f} ms",
    "the file system answered after {:.0f} ms",
)


@attrs.frozen(kw_only=True)
class Simulation:
    """What is simulated."""

    gpus: int = 64
    """Ranks, one GPU each."""
    nodes: int = 8
    """Hosts; the GPUs are spread evenly."""
    gpu: str = "h100"
    """Which card; see ``GPUS``."""
    model: str = "llama-3.1-8b"
    """Which model; see ``MODELS``."""
    dataset: str = "fineweb-edu-10bt"
    """Which text; see ``DATASETS``."""
    steps: int = 600
    """Optimizer steps."""
    micro_batch: int = 2
    """Sequences of a forward pass."""
    accumulate: int = 2
    """Forward passes of a step."""
    patience: int = 5
    """Evaluations without a new best after which it stops."""
    seed: int = 0
    """Everything follows from it."""
    faults: Faults = "some"
    """How often something goes wrong: none, some or many."""

    def __attrs_post_init__(self) -> None:
        chosen("model", self.model, MODELS)
        chosen("GPU", self.gpu, GPUS)
        chosen("dataset", self.dataset, DATASETS)
        chosen("--faults", self.faults, FAULTS)
        if not 1 <= self.nodes <= self.gpus:
            raise AltgradError(f"Expected 1 to {self.gpus} nodes for {self.gpus} GPUs, got {self.nodes}.")
        if self.steps < 1:
            raise AltgradError(f"Expected at least 1 step, got {self.steps}.")

    @property
    def tokens_per_step(self) -> int:
        """Training tokens that one step reads."""
        return self.micro_batch * self.accumulate * self.gpus * MODELS[self.model].context

    @property
    def step_s(self) -> float:
        """Seconds of an undisturbed step."""
        peak = self.gpus * GPUS[self.gpu].bf16_tflops * 1e12
        return 6 * MODELS[self.model].parameters * self.tokens_per_step / (peak * _EFFICIENCY)

    @property
    def epochs(self) -> float:
        """How often the data are read."""
        return self.steps * self.tokens_per_step / DATASETS[self.dataset].train_tokens


def plan(simulation: Simulation, *, steps: int | None, epochs: float | None) -> Simulation:
    """Return the simulation with the length that was asked for, in steps or in epochs."""
    if steps is not None and epochs is not None:
        raise AltgradError("Expected --steps or --epochs, got both.")
    if epochs is not None:
        if not (epochs > 0 and math.isfinite(epochs)):
            raise AltgradError(f"--epochs takes a number above 0, got {epochs}.")
        steps = math.ceil(epochs * DATASETS[simulation.dataset].train_tokens / simulation.tokens_per_step)
    return simulation if steps is None else attrs.evolve(simulation, steps=steps)


def simulate(simulation: Simulation, start: float) -> Iterator[Event]:
    """Yield the events of the whole story, marked as simulated, their times counted from ``start`` (Unix seconds)."""
    for event in _Story(simulation, start).tell():
        yield marked_as_simulated(event)


class _Story:
    def __init__(self, simulation: Simulation, start: float) -> None:
        self.what, self.now = simulation, start
        self.rng = random.Random(simulation.seed)
        self.cluster = Cluster(GPUS[simulation.gpu], simulation.gpus, simulation.nodes, simulation.faults, self.rng)
        self.model = MODELS[simulation.model]
        self.often = FAULTS[simulation.faults]
        self.first_loss = math.log(self.model.vocabulary) + 0.1
        self.spike = 0.0
        self.best, self.unimproved = math.inf, 0
        self.sampled = -math.inf

    def event(self, event: str, after_s: float = 0.0, **fields: Any) -> Event:
        """Return an event after so many seconds."""
        self.now += after_s
        return {"time": round(self.now, 3), "event": event, **fields}

    def tell(self) -> Iterator[Event]:
        what = self.what
        yield self.event("log", level="info", message="A simulation: nothing is trained and nothing is measured.")
        yield self.event("status", 1, status="running", step=0, resumed=False, pid=0)
        yield from self.introduction()
        eval_every, save_every = max(10, what.steps // 20), max(1, what.steps // 6)
        yield from self.evaluation(0)
        for step in range(1, what.steps + 1):
            yield from self.step(step)
            last = step == what.steps
            if last or step % eval_every == 0:
                yield from self.evaluation(step)
                if self.unimproved >= what.patience:
                    reason = f"no better validation loss in {what.patience} evaluations"
                    yield from self.saving(step, "final")
                    yield from self.export(step)
                    yield self.event("status", 1, status="done", step=step, reason=reason)
                    return
            if last or step % save_every == 0:
                yield from self.saving(step, "final" if last else "step")
        yield from self.export(what.steps)
        yield self.event("status", 1, status="done", step=what.steps, reason="")

    def introduction(self) -> Iterator[Event]:
        what, model, data = self.what, self.model, DATASETS[self.what.dataset]
        layers = [f"blocks.{block}.{name}" for block in range(model.layers) for name in model.linears]
        facts: dict[str, dict[str, Any]] = {
            "environment": {
                "device": "simulated", "device_name": GPUS[what.gpu].name, "cpu_threads": 0,
                "packages": {"torch": "not used"}, "python": sys.version.split()[0],
            },
            "distributed": {
                "world_size": what.gpus, "nodes": what.nodes, "backend": "nccl", "backend_version": "(simulated)",
                "all_reduce_ms": 0.4 + 0.02 * what.gpus, "all_reduce_bytes": 2**26,
            },
            "gpus": {"gpus": [as_facts(gpu) for gpu in self.cluster.gpus]},
            "model": {
                "kind": what.model, "parameters": model.parameters, "groups": model.groups, "options": options_of(model),
            },
        }  # fmt: skip
        for name, content in facts.items():
            yield self.event("init", 0.5, what=name, facts=content)
        total = 2 * model.parameters
        yield self.event("task", task="building weights", state="begin", done=0, total=total, unit="bytes")
        for part in range(1, 21):
            seconds = total / (20 * _BANDWIDTH * what.nodes)
            yield self.event("task", seconds, task="building weights", state="progress", done=total * part // 20)
        yield self.event("task", task="building weights", state="end")
        facts = {
            "data": {"name": what.dataset, "tokenizer": model.tokenizer, "vocab_size": model.vocabulary, **attrs.asdict(data)},
            "batch": {
                "batch_size": what.micro_batch, "accumulate": what.accumulate, "world_size": what.gpus,
                "block_size": model.context, "tokens_per_step": what.tokens_per_step, "steps": what.steps,
                "epochs": what.epochs,
            },
            "recipe": {
                "name": "hybrid", "compute": "bf16", "linear_layers": len(layers) + 1, "converted": layers,
                "left_alone": {"lm_head": "the output layer stays in BF16"}, "backend": "simulated",
            },
            "alerts": dict(_ALERTS),
        }  # fmt: skip
        for name, content in facts.items():
            yield self.event("init", 0.5, what=name, facts=content)

    def smooth(self, step: int) -> float:
        """Return the loss without noise."""
        return _FLOOR + (self.first_loss - _FLOOR) * math.exp(-_DECAY * step / self.what.steps)

    def step(self, step: int) -> Iterator[Event]:
        what, rng = self.what, self.rng
        seconds = what.step_s * self.cluster.step() * max(0.5, rng.gauss(1, 0.01))
        self.spike *= 0.85
        if rng.random() < 0.003 * self.often and step > what.steps // 20:
            self.spike += rng.uniform(0.8, 2.0)
            yield self.event("alert", step=step, **self.spike_alert(step))
        loss = max(0.9 * _FLOOR, self.smooth(step) + self.spike + rng.gauss(0, 0.02))
        warmup = max(1, what.steps // 50)
        rate = 3e-4 * (step / warmup if step < warmup else 0.55 + 0.45 * math.cos(math.pi * step / what.steps))
        values = {
            "train/loss": loss,
            "train/perplexity": math.exp(loss),
            "train/lr": rate,
            "train/grad_norm": 0.4 + self.spike + abs(rng.gauss(0, 0.05)),
            "train/tokens_per_s": what.tokens_per_step / seconds,
            "train/step_s": seconds,
            "overflow_rate": max(0.0, 0.004 * self.spike + rng.gauss(2e-4, 5e-5)),
            "underflow_rate": max(0.0, rng.gauss(3e-3, 3e-4)),
            "bit_stall_rate": min(1.0, 0.45 + 0.35 * step / what.steps + rng.gauss(0, 0.01)),
            "grad_cos_sim": min(1.0, 0.991 - 0.05 * self.spike + rng.gauss(0, 0.001)),
        }
        rounded = {name: float(f"{value:.9g}") for name, value in values.items()}
        yield self.event("metrics", seconds, step=step, values=rounded)
        if self.now - self.sampled >= _SAMPLE_S:
            self.sampled = self.now
            yield self.event("gpus", samples=[as_facts(sample) for sample in self.cluster.samples()])
        if rng.random() < 0.02:
            payload = 2 * self.model.parameters // self.model.layers
            milliseconds = payload / 1.5e8 * max(0.5, rng.gauss(1, 0.1))
            yield self.event(
                "comm", step=step, op="all_reduce", milliseconds=round(milliseconds, 3), bytes=payload, ranks=what.gpus
            )
        if rng.random() < 0.004 * self.often:
            message = rng.choice(_WARNINGS).format(rng.uniform(80, 2000))
            yield self.event("log", level="warning", rank=rng.randrange(what.gpus), message=message)

    def spike_alert(self, step: int) -> dict[str, Any]:
        usual, loss = self.smooth(step), self.smooth(step) + self.spike
        message = f"The loss jumps to {loss:.2f} from about {usual:.2f}."
        return {
            "alert": "loss_spike", "action": "log", "value": float(f"{loss:.9g}"), "threshold": float(f"{usual:.9g}"),
            "message": message,
        }  # fmt: skip

    def evaluation(self, step: int) -> Iterator[Event]:
        batch_s = self.what.step_s / 6
        yield self.event("evaluation", step=step, state="begin")
        for batch in range(1, _EVALUATION_BATCHES + 1):
            progress = {"done": batch, "total": _EVALUATION_BATCHES, "unit": "batches"}
            yield self.event("task", batch_s, task="evaluation", state="progress", **progress)
        loss = self.smooth(step) + 0.5 * self.spike + 0.03 + self.rng.gauss(0, 0.01)
        loss = float(f"{loss:.9g}")
        yield self.event(
            "metrics", step=step, values={"val/loss": loss, "val/perplexity": float(f"{math.exp(loss):.9g}")}
        )
        self.unimproved = 0 if loss < self.best else self.unimproved + 1
        self.best = min(self.best, loss)
        patience = {"patience_used": self.unimproved, "patience": self.what.patience}
        yield self.event("evaluation", step=step, state="end", **patience)

    def saving(self, step: int, kind: str) -> Iterator[Event]:
        name, total = f"step-{step:06d}", 12 * self.model.parameters
        yield self.event("task", task="checkpoint", state="begin", done=0, total=total, unit="bytes")
        seconds = total / (_BANDWIDTH * self.what.nodes)
        for part in range(1, 11):
            yield self.event("task", seconds / 10, task="checkpoint", state="progress", done=total * part // 10)
        yield self.event("task", task="checkpoint", state="end")
        yield self.event(
            "checkpoint", step=step, kind=kind, name=name, path=f"checkpoints/{name}", bytes=total,
            saved_at=round(self.now, 3), state_hash="simulated", seconds=round(seconds, 3), blocked_s=0.0,
        )  # fmt: skip

    def export(self, step: int) -> Iterator[Event]:
        total = 2 * self.model.parameters
        shards = max(1, math.ceil(total / 5e9))
        yield self.event("task", task="export", state="begin", done=0, total=shards, unit="shards")
        for shard in range(1, shards + 1):
            yield self.event("task", total / shards / _BANDWIDTH, task="export", state="progress", done=shard)
            name = f"model-{shard:05d}-of-{shards:05d}.safetensors"
            yield self.event("log", level="info", rank=(shard - 1) % self.what.gpus, message=f"Exports {name}.")
        yield self.event("task", task="export", state="end")
        message = f"Exported the weights of step {step} as {shards} safetensors shards (simulated, nothing is written)."
        yield self.event("log", level="info", message=message)
