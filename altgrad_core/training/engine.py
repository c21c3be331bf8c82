"""The training loop, model-agnostic: one step that reads top to bottom, evaluation, checkpoints, resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from altgrad_core.recipes.control import CastControl, control_of
from altgrad_core.recipes.gradients import GradientCast
from altgrad_core.recipes.recipe import Compute, Recipe
from altgrad_core.training import rng
from altgrad_core.training.alerts import Alert, AlertWatch
from altgrad_core.training.checkpoint import Checkpoints, Saved
from altgrad_core.training.data import TokenData, batch, evaluation_batches
from altgrad_core.training.events import Event, to_json
from altgrad_core.training.metrics import Measurements
from altgrad_core.training.probes import Batch, Probe, StepContext
from altgrad_core.training.schedule import learning_rate

Outcome = Literal["done", "stopped", "interrupted"]


@attrs.frozen(kw_only=True)
class Loop:
    """The numbers of a training; the same fields as ``[train]`` and ``[checkpoint]`` of ``experiments.toml``."""

    steps: int
    """Optimizer steps."""
    batch_size: int
    """Sequences of a micro-batch."""
    block_size: int
    """Tokens of a sequence."""
    accumulate: int
    """Micro-batches of a step."""
    learning_rate: float
    """Peak."""
    final_learning_rate: float
    """At the last step."""
    warmup_steps: int
    """Steps of linear warmup."""
    grad_clip: float
    """Largest global L2 norm of the gradient; 0: no clipping."""
    eval_every: int
    """Steps between evaluations; 0: only after the last."""
    eval_batches: int
    """Batches of an evaluation."""
    log_every: int
    """Steps between logged steps."""
    checkpoint_every: int
    """Steps between checkpoints; 0: only the last."""
    seed: int
    """Seed of the batches."""

    @property
    def tokens_per_step(self) -> int:
        """Training tokens that one step reads."""
        return self.batch_size * self.block_size * self.accumulate


class Stateful(Protocol):
    """Something whose state belongs into the checkpoint."""

    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102
    def load_state_dict(self, state: dict[str, Any]) -> None: ...  # noqa: D102


class Engine:
    """Trains a (converted) model.

    ``emit`` receives every event; ``stop_requested`` is asked between steps, and a true answer ends the run as
    interrupted after a checkpoint. The caller has seeded the generators, built the model and moved it to ``device``.
    """

    def __init__(
        self,
        *,
        loop: Loop,
        recipe: Recipe,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        data: TokenData,
        probes: dict[str, Probe],
        alerts: AlertWatch,
        checkpoints: Checkpoints,
        emit: Callable[[Event], None],
        stop_requested: Callable[[], bool],
        device: torch.device,
        sinks: Stateful,
    ) -> None:
        self.loop, self.recipe, self.model, self.optimizer = loop, recipe, model, optimizer
        self.data, self.probes, self.alerts, self.checkpoints = data, probes, alerts, checkpoints
        self.emit, self.stop_requested, self.device = emit, stop_requested, device
        self.sinks = sinks
        self.gradient_cast = None if recipe.gradient is None else GradientCast(model, recipe.gradient).to(device)
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.step_number = 0
        self.best_loss = math.inf
        self._saved: tuple[int, str] | None = None

    def run(self) -> Outcome:
        """Train from the current step to the last one."""
        self.model.train()
        if self.step_number == 0 and not self.stop_requested():
            self.evaluate()
        while self.step_number < self.loop.steps:
            if self.stop_requested():
                self.save("interrupt")
                return "interrupted"
            alert = self.step()
            if alert is not None and alert.action == "stop":
                self.save("final")
                return "stopped"
            self._after_step()
        return "done"

    def step(self) -> Alert | None:
        """Do one optimizer step; returns the alert of a step whose update was skipped."""
        started = time.perf_counter()
        loop = self.loop
        step = self.step_number + 1
        logged = step % loop.log_every == 0 or step in (1, loop.steps)
        context = self._context(step)
        probes = [probe for probe in self.probes.values() if logged and probe.due(step)]
        probing = _Stopwatch(self.device)
        rate = self._set_learning_rate(step)

        with probing:
            for probe in probes:
                probe.before_forward(context)

        self.optimizer.zero_grad(set_to_none=True)
        loss = context.loss = context.backward(self.recipe.compute)
        if self.gradient_cast is not None:
            self.gradient_cast()

        with probing:
            for probe in probes:
                probe.after_backward(context)

        grad_norm = self._clip_gradients()
        loss_value, norm_value = torch.stack([loss.double(), grad_norm.double()]).tolist()
        alert = self.alerts.check_finite(loss_value, norm_value)
        if alert is None:
            with probing:
                for probe in probes:
                    probe.before_update(context)
            self.optimizer.step()
            with probing:
                for probe in probes:
                    probe.after_update(context)
        else:
            self._report(step, alert)
            if self.alerts.nan_steps == 1:
                self._announce("anomaly", step, self.checkpoints.save_anomaly(step, self.state_dict()))
        self.step_number = step

        if logged:
            values = context.measurements.read()
            elapsed = time.perf_counter() - started
            values |= {
                "train/loss": loss_value,
                "train/perplexity": _perplexity(loss_value),
                "train/grad_norm": norm_value,
                "train/lr": rate,
                "train/tokens_per_s": loop.tokens_per_step / (elapsed - probing.seconds),
                "train/step_s": elapsed,
                "train/probe_s": probing.seconds,
            }
            self._emit_metrics(step, values)
            for finding in self.alerts.check_rates(values):
                self._report(step, finding)
        return alert

    def evaluate(self) -> float:
        """Return the mean loss over the fixed validation batches, with the recipe's casts on."""
        loop = self.loop
        self.emit({"event": "evaluation", "step": self.step_number, "state": "begin"})
        self.model.eval()
        losses = []
        with torch.no_grad():
            for inputs, targets in evaluation_batches(
                self.data, batches=loop.eval_batches, batch_size=loop.batch_size, block_size=loop.block_size
            ):
                losses.append(self._loss((inputs.to(self.device), targets.to(self.device)), self.recipe.compute))
        self.model.train()
        loss = float(torch.stack(losses).double().mean())
        self._emit_metrics(self.step_number, {"val/loss": loss, "val/perplexity": _perplexity(loss)})
        self.emit({"event": "evaluation", "step": self.step_number, "state": "end"})
        return loss

    def save(self, kind: str, *, best: bool = False) -> None:
        """Save a checkpoint of this step unless one is there already."""
        if self._saved is None or self._saved[0] != self.step_number:
            saved = self.checkpoints.save(self.step_number, self.state_dict(), best=best)
            self._saved = (self.step_number, saved.name)
            self._announce(kind, self.step_number, saved)
        elif best:
            self.checkpoints.mark_best(self._saved[1])

    def state_dict(self) -> dict[str, Any]:
        """Return all that decides how the training goes on: tensors and JSON types."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "gradient_cast": {} if self.gradient_cast is None else self.gradient_cast.state_dict(),
            "probes": {name: probe.state_dict() for name, probe in self.probes.items()},
            "alerts": self.alerts.state_dict(),
            "sinks": self.sinks.state_dict(),
            "rng": rng.state(),
            "step": self.step_number,
            "best_loss": self.best_loss,
        }

    def resume(self) -> str | None:
        """Load the newest whole checkpoint; returns its name, None when there is none."""
        found = self.checkpoints.load_newest()
        if found is None:
            return None
        name, state = found
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.gradient_cast is not None:
            self.gradient_cast.load_state_dict(state["gradient_cast"])
        for probe_name, probe in self.probes.items():
            probe.load_state_dict(state["probes"][probe_name])
        self.alerts.load_state_dict(state["alerts"])
        self.sinks.load_state_dict(state["sinks"])
        self.step_number, self.best_loss = state["step"], state["best_loss"]
        self._saved = (self.step_number, name)
        rng.restore(state["rng"])
        return name

    def _after_step(self) -> None:
        """Evaluate and save where the schedule says so; always after the last step."""
        loop, step = self.loop, self.step_number
        last = step == loop.steps
        best = False
        if last or (loop.eval_every and step % loop.eval_every == 0):
            loss = self.evaluate()
            best = loss < self.best_loss
            self.best_loss = min(loss, self.best_loss)
        if last or best or (loop.checkpoint_every and step % loop.checkpoint_every == 0):
            self.save("final" if last else "best" if best else "step", best=best)

    def _context(self, step: int) -> StepContext:
        loop = self.loop
        batches: list[Batch] = []
        for micro_step in range(loop.accumulate):
            inputs, targets = batch(
                self.data.train,
                seed=loop.seed,
                step=step,
                micro_step=micro_step,
                batch_size=loop.batch_size,
                block_size=loop.block_size,
            )
            batches.append((inputs.to(self.device), targets.to(self.device)))
        controls = [control_of(self.model)]
        if self.gradient_cast is not None:
            controls.append(self.gradient_cast.cast_control)
        return StepContext(
            step=step,
            model=self.model,
            recipe=self.recipe,
            parameters=self.parameters,
            batches=batches,
            controls=[control for control in controls if isinstance(control, CastControl)],
            backward=lambda compute: self._backward(batches, compute),
            measurements=Measurements(),
        )

    def _loss(self, one: Batch, compute: Compute) -> Tensor:
        """Mean cross entropy of a micro-batch, computed in FP32 from the logits."""
        inputs, targets = one
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=compute == "bf16"):
            logits = self.model(inputs)
        return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.view(-1))

    def _backward(self, batches: Sequence[Batch], compute: Compute) -> Tensor:
        """Accumulate gradients of the mean loss over ``batches`` into ``.grad``; returns that loss (0-d)."""
        total = torch.zeros((), device=self.device)
        for one in batches:
            loss = self._loss(one, compute) / len(batches)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _clip_gradients(self) -> Tensor:
        """Clip the gradients to the global norm and return the norm before (0-d)."""
        limit = self.loop.grad_clip or math.inf
        return torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit)

    def _set_learning_rate(self, step: int) -> float:
        loop = self.loop
        rate = learning_rate(
            step,
            steps=loop.steps,
            warmup_steps=loop.warmup_steps,
            peak=loop.learning_rate,
            final=loop.final_learning_rate,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _emit_metrics(self, step: int, values: dict[str, float]) -> None:
        self.emit({"event": "metrics", "step": step, "values": {name: to_json(v) for name, v in values.items()}})

    def _report(self, step: int, alert: Alert) -> None:
        facts = attrs.asdict(alert)
        facts["value"] = to_json(facts["value"])
        self.emit({"event": "alert", "step": step, **facts})

    def _announce(self, kind: str, step: int, saved: Saved) -> None:
        self.emit({"event": "checkpoint", "step": step, "kind": kind, **attrs.asdict(saved)})


class _Stopwatch:
    """Adds up the time spent inside ``with``; waits for the device at both ends, as its work is asynchronous."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self._cuda = device.type == "cuda"

    def __enter__(self) -> None:
        self._started = self._now()

    def __exit__(self, *error: object) -> None:
        self.seconds += self._now() - self._started

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
