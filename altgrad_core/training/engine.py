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
from altgrad_core.training.checkpoint import Checkpoints, Loaded, Saved
from altgrad_core.training.config import TrainConfig
from altgrad_core.training.data import TokenData, batch, evaluation_batches
from altgrad_core.training.events import Event, to_json
from altgrad_core.training.histograms import to_event
from altgrad_core.training.metrics import Measurements
from altgrad_core.training.probes import Batch, Probe, StepContext
from altgrad_core.training.probing import Probing
from altgrad_core.training.progress import Progress
from altgrad_core.training.recorder import Before, FlightRecorder
from altgrad_core.training.restore import check_parameters, restore
from altgrad_core.training.schedule import learning_rate

Outcome = Literal["done", "stopped", "interrupted"]


class Stateful(Protocol):
    """Something whose state belongs into the checkpoint."""

    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102
    def load_state_dict(self, state: dict[str, Any]) -> None: ...  # noqa: D102


class NoSinks:
    """A training that nobody is told of."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


class Engine:
    """Trains a (converted) model.

    ``emit`` receives every event; ``stop_requested`` is asked between steps, with the number of steps done, and a true
    answer ends the run as interrupted after a checkpoint. The caller has seeded the generators, built the model and
    moved it to ``device``. ``config`` is the run's configuration as tables, kept in its checkpoints; ``first_step`` is
    where the run began, above 0 for one that branched off another. ``recorder`` is told of anomalies.
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
        stop_requested: Callable[[int], bool],
        device: torch.device,
        sinks: Stateful,
        config: dict[str, Any],
        first_step: int = 0,
        recorder: FlightRecorder | None = None,
    ) -> None:
        self.train_config, self.block_size, self.seed = train, block_size, seed
        self.checkpoint_every = checkpoint_every
        self.recipe, self.model, self.optimizer = recipe, model, optimizer
        self.data, self.probes, self.alerts, self.checkpoints = data, probes, alerts, checkpoints
        self.emit, self.stop_requested, self.device = emit, stop_requested, device
        self.sinks, self.config, self.recorder = sinks, config, recorder
        self.casts = StepCasts(model, optimizer, recipe, seed=seed)
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.step_number = self.first_step = first_step
        self.best_loss = math.inf
        self.best_checkpoint: str | None = None
        self._saved: str | None = None
        self._saving: Progress | None = None
        self._recorded: int | None = None  # the newest step that the recorder knows
        self._evaluated: int | None = None  # the newest step after which was evaluated
        self._casts_after_update = bool(self.casts.state_dict().keys() & {"optimizer_state", "weight_storage"})

    @property
    def tokens_per_step(self) -> int:
        """Training tokens that one step reads."""
        return self.train_config.batch_size * self.block_size * self.train_config.accumulate

    def run(self) -> Outcome:
        """Train from the current step to the last one; on return every checkpoint is durable and told of."""
        try:
            outcome = self._train()
        except BaseException as error:
            try:
                self._settle(wait=True)  # the caller gives up the run's lock: nothing may be written after that
            except Exception as another:
                error.add_note(f"Besides: {another}")
            raise
        self._settle(wait=True)
        return outcome

    def _train(self) -> Outcome:
        self.model.train()
        owed = self._evaluated != self.step_number and self._evaluation_due() and not self.alerts.stop_reason
        if owed:
            self._saved = None  # a checkpoint of this step was saved before its evaluation
        while True:
            if owed:
                owed = not self._after_step()
            if not owed and self.alerts.stop_reason:
                self.save("final")
                return "stopped"
            if not owed and self.step_number >= self.train_config.steps:
                return "done"
            self._settle(wait=False)
            if self.stop_requested(self.step_number):
                self.save("interrupt")
                return "interrupted"
            self.step()
            owed = not self.alerts.stop_reason

    def step(self) -> list[Alert]:
        """Do one optimizer step and carry out the alerts that it raises; returns them."""
        started = time.perf_counter()
        config = self.train_config
        step = self.step_number + 1
        logged = step % config.log_every == 0 or step in (1, config.steps)
        context = self.context(step)
        probes = [probe for probe in self.probes.values() if logged and probe.due(step)]
        probing = Probing(probes, context, self.device)
        before = None if self.recorder is None else Before.of(self)
        rate = self._set_learning_rate(step)
        self.casts.begin_step(step)

        probing.at("before_forward")

        self.optimizer.zero_grad(set_to_none=True)
        loss = context.loss = context.backward(self.recipe.compute)
        self.casts.after_backward()

        probing.at("after_backward")

        grad_norm = self._clip_gradients()
        loss_value, norm_value = torch.stack([loss.double(), grad_norm.double()]).tolist()
        alerts = self._carry_out(self.alerts.check_loss(step, loss_value, norm_value), context, before)
        if math.isfinite(loss_value) and math.isfinite(norm_value):
            before = self._before_update(before, probing)
            probing.at("before_update")
            self.optimizer.step()
            self.casts.after_update()
            probing.at("after_update")
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
            if histograms := context.measurements.histograms():
                self.emit(to_event(step, histograms))
            alerts += self._carry_out(self.alerts.check_rates(values), context, before)
        return alerts

    def evaluate(self) -> float | None:
        """Return the mean loss over the fixed validation batches, with the recipe's casts on.

        None, and nothing is told, when the run is asked to end meanwhile. Stochastic casts draw the bits of the step from
        its beginning, so that an evaluation that is made up for after a resumption gives the same loss.
        """
        config, step = self.train_config, self.step_number
        self.emit({"event": "evaluation", "step": step, "state": "begin"})
        self.model.eval()
        losses: list[Tensor] = []
        progress = Progress(self.emit, "evaluation", total=config.eval_batches, unit="batches")
        with torch.no_grad(), self.casts.control.again(step):
            for inputs, targets in evaluation_batches(
                self.data, batches=config.eval_batches, batch_size=config.batch_size, block_size=self.block_size
            ):
                if self.stop_requested(step):
                    break
                losses.append(self._loss((inputs.to(self.device), targets.to(self.device)), self.recipe.compute))
                progress.advance(len(losses))
        self.model.train()
        if len(losses) < config.eval_batches:
            return None
        loss = float(torch.stack(losses).double().mean())
        self._emit_metrics(step, {"val/loss": loss, "val/perplexity": _perplexity(loss)})
        self._evaluated = step
        self.emit({"event": "evaluation", "step": step, "state": "end"})
        return loss

    def save(self, kind: str, *, best: bool = False) -> None:
        """Begin to save a checkpoint of this step, unless it was saved already; it is written while training goes on."""
        name = self.checkpoints.name(self.step_number)
        if best:
            self.best_checkpoint = name  # before the state is taken: a resumed run puts the pointer right by it
        if self._saved != name:
            self._saved = name
            self._begin_save(self.step_number, kind)

    def state_dict(self) -> dict[str, Any]:
        """Return all that decides how the training goes on: tensors and JSON types."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "casts": self.casts.state_dict(),
            "probes": self.probe_states(),
            "alerts": self.alerts.state_dict(),
            "rng": rng.state(),
            "step": self.step_number,
        }

    def probe_states(self) -> dict[str, Any]:
        """Return what each probe remembers, by name."""
        return {name: probe.state_dict() for name, probe in self.probes.items()}

    def resume(self, check: Callable[[Loaded], None] | None = None) -> Saved | None:
        """Take up the newest whole checkpoint and return it, None when there is none; ``check`` may refuse it first."""
        found = self.checkpoints.load_newest()
        if found is None:
            return None
        if check is not None:
            check(found)
        self.take_up(found)
        self._saved = found.saved.name
        # A crash may have come between a checkpoint and its pointers.
        self.checkpoints.point(latest=self._saved, best=self.best_checkpoint)
        return found.saved

    def take_up(self, found: Loaded) -> None:
        """Put everything where a checkpoint of this run stands.

        Raises ``AltgradError`` when it is whole but of another model, optimizer or probe than this run's.
        """
        check_parameters(found.saved, self.model, found.state.get("model"))
        restore(
            found.saved,
            {**found.state, **found.notes},
            {
                "model": self.model.load_state_dict,
                "optimizer": self.optimizer.load_state_dict,
                "casts": self.casts.load_state_dict,
                "probes": self._load_probes,
                "alerts": self.alerts.load_state_dict,
                "sinks": self.sinks.load_state_dict,
                "rng": rng.restore,
                "step": self._load_step,
                "best": self._load_best,
                "told": self._load_told,
            },
        )

    def _load_step(self, step: int) -> None:
        self.step_number = step

    def _load_best(self, best: dict[str, Any]) -> None:
        self.best_loss, self.best_checkpoint = best["loss"], best["checkpoint"]

    def _load_told(self, told: dict[str, Any]) -> None:
        self._evaluated, self._recorded = told["evaluated"], told["recorded"]

    def _load_probes(self, states: dict[str, Any]) -> None:
        for name, probe in self.probes.items():
            probe.load_state_dict(states[name])

    def _begin_save(self, step: int, kind: str, state: dict[str, Any] | None = None) -> None:
        self._settle(wait=True)  # first, so that the sinks' state follows the event
        notes = {
            "kind": kind,
            "sinks": self.sinks.state_dict(),
            "config": self.config,
            "data": self.data.identity,
            "best": {"loss": self.best_loss, "checkpoint": self.best_checkpoint},
            "told": {"evaluated": self._evaluated, "recorded": self._recorded},
        }
        state = self.state_dict() if state is None else state
        self.checkpoints.save(step, state, kind=kind, notes=notes, best=self.best_checkpoint)
        self._saving = Progress(self.emit, "checkpoint", total=self.checkpoints.bytes, unit="bytes")
        self._saving.begin()

    def _settle(self, *, wait: bool) -> None:
        """Tell how far the saving of a checkpoint is, and of one that is durable; ``RunFailed`` when it failed."""
        finished = self.checkpoints.settle(wait=wait)
        if self._saving is not None and finished is None:
            self._saving.advance(self.checkpoints.written)
        if finished is not None:
            if self._saving is not None:
                self._saving.end()
                self._saving = None
            facts = {**attrs.asdict(finished.saved), "seconds": finished.seconds, "blocked_s": finished.blocked_s}
            self.emit({"event": "checkpoint", "step": finished.step, "kind": finished.kind, **facts})

    def _evaluation_due(self) -> bool:
        """Tell whether the step done last is followed by an evaluation: the first, the last, and what the schedule says."""
        config, step = self.train_config, self.step_number
        return step in (self.first_step, config.steps) or bool(config.eval_every and step % config.eval_every == 0)

    def _after_step(self) -> bool:
        """Evaluate and save where the schedule says so; False when asked to end before that was done."""
        step = self.step_number
        best = False
        if self._evaluation_due():
            loss = self.evaluate()
            if loss is None:
                return False
            if step == self.first_step:
                return True  # nothing was trained
            best = loss < self.best_loss
            if best:  # not min(): a NaN would stay the best for good
                self.best_loss = loss
        last = step == self.train_config.steps
        due = self.checkpoint_every and step % self.checkpoint_every == 0
        if last or best or due or self.checkpoints.kept_for_good(step):
            self.save("final" if last else "best" if best else "step", best=best)
        return True

    def context(self, step: int) -> StepContext:
        """Return what probes see of ``step``: its batches, and how to run its forward and backward."""
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

    def _before_update(self, before: Before | None, probing: Probing) -> Before | None:
        """Add weights and optimizer state to ``before`` where an alert may ask for a recording after the update."""
        if before is None or not probing.probes:
            return before
        values = probing.context.measurements.read()
        may = self.alerts.may_record(values, casts_to_come=self._casts_after_update)
        return before.with_weights(self) if may else before

    def _carry_out(self, alerts: list[Alert], context: StepContext, before: Before | None) -> list[Alert]:
        """Report the alerts and, if one asks for more than that, record the step; returns them.

        A stop is recorded only in a run in which nothing was before: what led to it has its recording.
        """
        for alert in alerts:
            facts = attrs.asdict(alert) | {"value": to_json(alert.value), "threshold": to_json(alert.threshold)}
            self.emit({"event": "alert", "step": context.step, **facts})
        asked = {alert.action for alert in alerts}
        wanted = "checkpoint" in asked or ("stop" in asked and self._recorded is None)
        if wanted and self.recorder is not None and before is not None and self._recorded != context.step:
            self._recorded = context.step  # by a loss or gradient: the state from before the update is the better one
            self._begin_save(context.step, "anomaly", before.state_dict(self))
            self.emit(self.recorder.record(self, context, alerts, before))
        return alerts


def _perplexity(loss: float) -> float:
    return loss if math.isnan(loss) else math.exp(loss) if loss < 700 else math.inf
