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

from altgrad_core.recipes.recipe import Compute, Recipe
from altgrad_core.recipes.step_casts import StepCasts
from altgrad_core.training import rng
from altgrad_core.training.alerts import Alert, AlertWatch
from altgrad_core.training.checkpoint import Checkpoints, Saved
from altgrad_core.training.config import TrainConfig
from altgrad_core.training.data import TokenData, batch, evaluation_batches
from altgrad_core.training.events import Event, to_json
from altgrad_core.training.metrics import Measurements
from altgrad_core.training.probes import Batch, Probe, StepContext
from altgrad_core.training.schedule import learning_rate

Outcome = Literal["done", "stopped", "interrupted"]
Moment = Literal["before_forward", "after_backward", "before_update", "after_update"]


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
        train: TrainConfig,
        block_size: int,
        seed: int,
        checkpoint_every: int,
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
        self.train_config, self.block_size, self.seed = train, block_size, seed
        self.checkpoint_every = checkpoint_every
        self.recipe, self.model, self.optimizer = recipe, model, optimizer
        self.data, self.probes, self.alerts, self.checkpoints = data, probes, alerts, checkpoints
        self.emit, self.stop_requested, self.device = emit, stop_requested, device
        self.sinks = sinks
        self.casts = StepCasts(model, optimizer, recipe, seed=seed)
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.step_number = 0
        self.best_loss = math.inf
        self.best_checkpoint: str | None = None
        self._saved: str | None = None
        self._anomaly: int | None = None  # step whose anomaly checkpoint is there

    @property
    def tokens_per_step(self) -> int:
        """Training tokens that one step reads."""
        return self.train_config.batch_size * self.block_size * self.train_config.accumulate

    def run(self) -> Outcome:
        """Train from the current step to the last one."""
        self.model.train()
        if self.step_number == 0 and not self.stop_requested():
            self.evaluate()
        while self.step_number < self.train_config.steps and not self.alerts.stop_reason:
            if self.stop_requested():
                self.save("interrupt")
                return "interrupted"
            self.step()
            if not self.alerts.stop_reason:
                self._after_step()
        if self.alerts.stop_reason:
            self.save("final")
            return "stopped"
        return "done"

    def step(self) -> list[Alert]:
        """Do one optimizer step and carry out the alerts that it raises; returns them."""
        started = time.perf_counter()
        config = self.train_config
        step = self.step_number + 1
        logged = step % config.log_every == 0 or step in (1, config.steps)
        context = self._context(step)
        probes = [probe for probe in self.probes.values() if logged and probe.due(step)]
        probing = _Stopwatch(self.device)
        rate = self._set_learning_rate(step)
        self.casts.begin_step(step)

        self._probe("before_forward", probes, context, probing)

        self.optimizer.zero_grad(set_to_none=True)
        loss = context.loss = context.backward(self.recipe.compute)
        self.casts.after_backward()

        self._probe("after_backward", probes, context, probing)

        grad_norm = self._clip_gradients()
        loss_value, norm_value = torch.stack([loss.double(), grad_norm.double()]).tolist()
        alerts = self._carry_out(step, self.alerts.check_loss(step, loss_value, norm_value))
        if math.isfinite(loss_value) and math.isfinite(norm_value):
            self._probe("before_update", probes, context, probing)
            self.optimizer.step()
            self.casts.after_update()
            self._probe("after_update", probes, context, probing)
        self.step_number = step

        if logged or self.alerts.stop_reason:
            values = context.measurements.read()
            elapsed = time.perf_counter() - started
            values |= {
                "train/loss": loss_value,
                "train/perplexity": _perplexity(loss_value),
                "train/grad_norm": norm_value,
                "train/lr": rate,
                "train/tokens_per_s": self.tokens_per_step / (elapsed - probing.seconds),
                "train/step_s": elapsed,
                "train/probe_s": probing.seconds,
                "train/skipped_updates": self.alerts.skipped_updates,
            }
            self._emit_metrics(step, values)
            alerts += self._carry_out(step, self.alerts.check_rates(values))
        return alerts

    def evaluate(self) -> float:
        """Return the mean loss over the fixed validation batches, with the recipe's casts on."""
        config = self.train_config
        self.emit({"event": "evaluation", "step": self.step_number, "state": "begin"})
        self.model.eval()
        losses = []
        with torch.no_grad():
            for inputs, targets in evaluation_batches(
                self.data, batches=config.eval_batches, batch_size=config.batch_size, block_size=self.block_size
            ):
                losses.append(self._loss((inputs.to(self.device), targets.to(self.device)), self.recipe.compute))
        self.model.train()
        loss = float(torch.stack(losses).double().mean())
        self._emit_metrics(self.step_number, {"val/loss": loss, "val/perplexity": _perplexity(loss)})
        self.emit({"event": "evaluation", "step": self.step_number, "state": "end"})
        return loss

    def save(self, kind: str, *, best: bool = False) -> None:
        """Save a checkpoint of this step unless one is there already."""
        name = self.checkpoints.name(self.step_number)
        if best:
            self.best_checkpoint = name  # before the state is taken: a resumed run puts the pointer right by it
        if self._saved != name:
            saved = self.checkpoints.save(self.step_number, self.state_dict())
            self._saved = name
            self._announce(kind, self.step_number, saved)
        self.checkpoints.point(latest=name, best=self.best_checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """Return all that decides how the training goes on: tensors and JSON types."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "casts": self.casts.state_dict(),
            "probes": {name: probe.state_dict() for name, probe in self.probes.items()},
            "alerts": self.alerts.state_dict(),
            "sinks": self.sinks.state_dict(),
            "rng": rng.state(),
            "step": self.step_number,
            "best_loss": self.best_loss,
            "best_checkpoint": self.best_checkpoint,
        }

    def resume(self) -> str | None:
        """Load the newest whole checkpoint; returns its name, None when there is none."""
        found = self.checkpoints.load_newest()
        if found is None:
            return None
        name, state = found
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.casts.load_state_dict(state["casts"])
        for probe_name, probe in self.probes.items():
            probe.load_state_dict(state["probes"][probe_name])
        self.alerts.load_state_dict(state["alerts"])
        self.sinks.load_state_dict(state["sinks"])
        self.step_number, self.best_loss = state["step"], state["best_loss"]
        self.best_checkpoint = state["best_checkpoint"]
        self._saved = name
        self.checkpoints.point(latest=name, best=self.best_checkpoint)  # a crash may have come between save and this
        rng.restore(state["rng"])
        return name

    def _after_step(self) -> None:
        """Evaluate and save where the schedule says so; always after the last step."""
        config, step = self.train_config, self.step_number
        last = step == config.steps
        best = False
        if last or (config.eval_every and step % config.eval_every == 0):
            loss = self.evaluate()
            best = loss < self.best_loss
            if best:  # not min(): a NaN would stay the best for good
                self.best_loss = loss
        if last or best or (self.checkpoint_every and step % self.checkpoint_every == 0):
            self.save("final" if last else "best" if best else "step", best=best)

    @staticmethod
    def _probe(moment: Moment, probes: Sequence[Probe], context: StepContext, stopwatch: _Stopwatch) -> None:
        if probes:  # the stopwatch waits for the device
            with stopwatch:
                for probe in probes:
                    try:
                        getattr(probe, moment)(context)
                    except Exception as error:
                        what = f"{type(probe).__module__}.{type(probe).__qualname__}"
                        raise RuntimeError(f"the probe {what} failed in {moment}: {error!r}") from error

    def _context(self, step: int) -> StepContext:
        config = self.train_config
        batches: list[Batch] = []
        for micro_step in range(config.accumulate):
            inputs, targets = batch(
                self.data.train,
                seed=self.seed,
                step=step,
                micro_step=micro_step,
                batch_size=config.batch_size,
                block_size=self.block_size,
            )
            batches.append((inputs.to(self.device), targets.to(self.device)))
        return StepContext(
            step=step,
            model=self.model,
            recipe=self.recipe,
            parameters=self.parameters,
            batches=batches,
            controls=[self.casts.control],
            backward=lambda compute: self._backward(batches, compute),
            measurements=Measurements(),
        )

    def _loss(self, one: Batch, compute: Compute) -> Tensor:
        """Mean cross entropy of a micro-batch, computed in FP32 from the logits."""
        inputs, targets = one
        autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=compute == "bf16")
        with autocast, self.casts.forward_pass():
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
        limit = self.train_config.grad_clip or math.inf
        return torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit)

    def _set_learning_rate(self, step: int) -> float:
        config = self.train_config
        rate = learning_rate(
            step,
            steps=config.steps,
            warmup_steps=config.warmup_steps,
            peak=config.learning_rate,
            final=config.final_learning_rate,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _emit_metrics(self, step: int, values: dict[str, float]) -> None:
        self.emit({"event": "metrics", "step": step, "values": {name: to_json(v) for name, v in values.items()}})

    def _carry_out(self, step: int, alerts: list[Alert]) -> list[Alert]:
        """Report the alerts and save one anomaly checkpoint if any of them asks for it; returns them."""
        for alert in alerts:
            facts = attrs.asdict(alert) | {"value": to_json(alert.value), "threshold": to_json(alert.threshold)}
            self.emit({"event": "alert", "step": step, **facts})
        if any(alert.action == "checkpoint" for alert in alerts) and self._anomaly != step:
            self._anomaly = step  # a rate is known after the update only: the state from before it is the better one
            self._announce("anomaly", step, self.checkpoints.save_anomaly(step, self.state_dict()))
        return alerts

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
