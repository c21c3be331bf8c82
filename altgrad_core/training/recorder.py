"""The flight recorder: what is needed to look at a step that went wrong again, kept at the moment it does.

For each anomaly (an alert whose action is ``checkpoint``, or the one that stops a run in which nothing was recorded before)
the run folder gets::

    anomalies/step-000123/
        anomaly.json            the alerts, the first non-finite value and the first saturation, every cast's statistics
        batch.safetensors       inputs and targets of the step, int64 [micro-batches, batch_size, block_size]
        statistics.jsonl        the metrics of the last logged steps, all layers
    checkpoints/anomaly-000123  the state before the step; altgrad replay and altgrad fork start from it

A step changes more than weights: generators, scaling state, what probes remember. A copy of that is taken before each
step; weights and optimizer change only after the alerts on loss and gradients have been checked. Alerts on rates come
after the update: where what is measured before it says that one of them may ask for a recording, weights and optimizer
state are copied too. Every anomaly's checkpoint has the bits of one saved after the step before.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn

from altgrad_core.files import write_whole
from altgrad_core.training import rng
from altgrad_core.training.events import Event, numbers_to_json
from altgrad_core.training.postmortem import Findings, examine

if TYPE_CHECKING:
    from altgrad_core.training.alerts import Alert
    from altgrad_core.training.engine import Engine
    from altgrad_core.training.probes import StepContext

KEPT_STEPS = 20
"""How many logged steps ``statistics.jsonl`` holds."""


@attrs.frozen(kw_only=True)
class Before:
    """The state before a step, as far as the step changes it."""

    step: int
    """Steps done."""
    rng: dict[str, Any]
    """Generators."""
    buffers: dict[str, Tensor]
    """Buffers of the model: scaling state."""
    casts: dict[str, Any]
    """Scaling state of what is cast outside the layers."""
    probes: dict[str, Any]
    """What the probes remember."""
    alerts: dict[str, Any]
    """Counts and windows of the alerts."""
    rates: list[Any]
    """The optimizer's learning rates, by group."""
    parameters: dict[str, Tensor] | None = None
    """Weights; None when they do not change before the recording."""
    optimizer: dict[str, Any] | None = None
    """The optimizer's state; None likewise."""

    @classmethod
    def of(cls, engine: Engine) -> Before:
        """Copy the state of ``engine``, but for weights and optimizer state."""
        model = engine.model
        return cls(
            step=engine.step_number,
            rng=rng.state(),
            buffers=_copies(model.named_buffers(remove_duplicate=False)),
            casts=copy.deepcopy(engine.casts.state_dict()),
            probes=copy.deepcopy(engine.probe_states()),
            alerts=copy.deepcopy(engine.alerts.state_dict()),
            rates=[group["lr"] for group in engine.optimizer.param_groups],
        )

    def with_weights(self, engine: Engine) -> Before:
        """Return it with copies of the weights and the optimizer's state, which have not changed since."""
        return attrs.evolve(
            self,
            parameters=_copies(engine.model.named_parameters(remove_duplicate=False)),
            optimizer=copy.deepcopy(engine.optimizer.state_dict()),
        )

    def state_dict(self, engine: Engine) -> dict[str, Any]:
        """Return the engine's ``state_dict`` as it was before the step."""
        state = engine.state_dict()
        earlier = self.buffers | (self.parameters or {})
        state["model"] = {name: earlier.get(name, value) for name, value in state["model"].items()}
        state |= {"casts": self.casts, "probes": self.probes, "alerts": self.alerts, "rng": self.rng, "step": self.step}
        optimizer = state["optimizer"] if self.optimizer is None else self.optimizer
        groups = zip(optimizer["param_groups"], self.rates, strict=True)
        state["optimizer"] = {**optimizer, "param_groups": [{**group, "lr": rate} for group, rate in groups]}
        return state

    @contextmanager
    def put_back(self, engine: Engine) -> Iterator[None]:
        """Within the context weights, scaling state and generators are as they were before the step."""
        earlier = self.buffers | (self.parameters or {})
        tensors = _tensors(engine.model)
        now = _copies((name, tensors[name]) for name in earlier)
        generators = rng.state()
        try:
            _copy(earlier, tensors)
            rng.restore(self.rng)
            yield
        finally:
            _copy(now, tensors)
            rng.restore(generators)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return buffers and parameters by name, shared ones under each of their names."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {**dict(model.named_buffers(remove_duplicate=False)), **dict(parameters)}


def _copies(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Copy tensors by name; what is one tensor under two names (tied weights) stays one."""
    named = dict(tensors)
    distinct = {id(tensor): tensor for tensor in named.values()}
    made = {key: tensor.detach().clone() for key, tensor in distinct.items()}
    return {name: made[id(tensor)] for name, tensor in named.items()}


@torch.no_grad()
def _copy(values: dict[str, Tensor], into: dict[str, Tensor]) -> None:
    for name, value in values.items():
        into[name].copy_(value)


def look_again(engine: Engine, context: StepContext, before: Before) -> Findings:
    """Run forward and backward of a step once more from the state ``before`` it, watched; changes nothing."""
    grads = {name: p.grad for name, p in context.parameters.items()}
    for parameter in context.parameters.values():
        parameter.grad = None
    try:
        with before.put_back(engine), engine.casts.control.again(context.step):
            return examine(engine.model, engine.casts.control, lambda: context.backward(engine.recipe.compute))
    finally:
        for name, parameter in context.parameters.items():
            parameter.grad = grads[name]


class FlightRecorder:
    """Writes the folders of a run's anomalies.

    ``history(n, step)`` returns the metrics events of the last n logged steps up to ``step``.
    """

    def __init__(self, folder: Path, history: Callable[[int, int], list[Event]]) -> None:
        self.folder, self.history = folder, history

    def record(self, engine: Engine, context: StepContext, alerts: Sequence[Alert], before: Before) -> Event:
        """Write the folder of the step and return the event that tells of it; a full disk is a ``RunFailed``.

        A second look that fails, as where the memory does not suffice for one, is a warning: training goes on.
        """
        from safetensors.torch import save

        findings, failure = Findings(first=(), casts={}), None
        try:
            findings = look_again(engine, context, before)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            engine.emit(
                {
                    "event": "log",
                    "level": "warning",
                    "message": f"The second look at step {context.step} failed, so its first place in trouble is not "
                    f"known ({failure}). Training goes on; the rest of the recording is there.",
                }
            )
        folder = self.folder / f"step-{context.step:06d}"
        inputs, targets = (torch.stack(list(part)).cpu() for part in zip(*context.batches, strict=True))
        write_whole(folder / "batch.safetensors", save({"inputs": inputs, "targets": targets}))
        lines = [json.dumps(event) for event in self.history(KEPT_STEPS, context.step)]
        write_whole(folder / "statistics.jsonl", "".join(f"{line}\n" for line in lines))
        facts = {
            "step": context.step,
            "checkpoint": f"anomaly-{context.step:06d}",
            "alerts": [attrs.asdict(alert) for alert in alerts],
            "second_look_failed": failure,  # why "first" and "casts" are empty
            **findings.as_dict(),
        }
        write_whole(folder / "anomaly.json", json.dumps(numbers_to_json(facts), indent=1, allow_nan=False) + "\n")
        return {
            "event": "anomaly",
            "step": context.step,
            "path": f"{self.folder.name}/{folder.name}",
            "first": [attrs.asdict(place) for place in findings.first],
        }
