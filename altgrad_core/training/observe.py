"""``observe(model, optimizer)``: the probes of ``altgrad run`` in a training loop of your own.

::

    with altgrad.observe(model, optimizer) as seen:
        for x, y in batches:
            loss = loss_of(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    print(seen)

Hooks of the model and of the optimizer tell where a step begins and ends: with the first forward pass that keeps
gradients, and with the optimizer's step, however many micro-batches lie between. The measurements are those of the probes
that ``altgrad run`` uses, under the same names (docs/metrics.md). They change nothing of the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from altgrad_core.errors import AltgradError
from altgrad_core.plugins import installed
from altgrad_core.recipes.control import CastControl, controls_of
from altgrad_core.recipes.recipe import Compute, Recipe
from altgrad_core.recipes.recompute import recomputing
from altgrad_core.structure import choose
from altgrad_core.training.layer_table import layer_table
from altgrad_core.training.metrics import Measurements
from altgrad_core.training.probes import Probe, StepContext
from altgrad_core.training.probing import Moment, Probing

PROBES = ("gradients", "stability", "updates", "shadow")
_SHADOW = "shadow"


def observe(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] = (),
    *,
    every: int = 10,
    probes: Sequence[str] | Mapping[str, Mapping[str, Any]] = PROBES,
    tell: Callable[[int, dict[str, float]], None] | None = None,
) -> Observation:
    """Return the context in which the steps of a training loop are measured.

    ``model`` may be converted or not. ``optimizer``: the one that steps, or several. Without one nothing is known of
    updates, and ``seen.step()`` after each backward pass ends a step; with ``StepCasts`` beside, a step ends with its
    ``after_update``. ``every``: steps between measurements; the first is always measured. ``probes`` names them, or says
    options for each, as in ``experiments.toml``: ``{"gradients": {"window": 3}}``. The probe ``shadow`` measures where
    ``seen.shadow(...)`` is called. ``tell(step, metrics)`` is called with each measurement, say to log it.

    Raises ``AltgradError`` for an unknown probe, a wrong option, or ``every`` below 1.
    """
    if every < 1:
        raise AltgradError(f"observe(every=...) is the number of steps between measurements, 1 or more; got {every}.")
    optimizers = (optimizer,) if isinstance(optimizer, torch.optim.Optimizer) else tuple(optimizer)
    options = probes if isinstance(probes, Mapping) else {name: {} for name in probes}
    made: dict[str, Probe] = {}
    for name, its in options.items():
        choice = choose(installed(), "probe", {"kind": name, "every": every, **its})
        made[name] = installed().get("probe", name).value(choice.options)
    return Observation(model, optimizers, made, tell)


@attrs.define(kw_only=True)
class _Step:
    """A step that has begun."""

    context: StepContext
    due: dict[str, Probe]
    measured_gradients: bool = False
    updated: list[torch.optim.Optimizer] = attrs.field(factory=list)


class Observation:
    """What ``observe`` gives: the newest measurement, and what the loop may say beside.

    ``str(seen)``, or ``seen.table()``, shows the measurement by layers.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        probes: Mapping[str, Probe],
        tell: Callable[[int, dict[str, float]], None] | None = None,
    ) -> None:
        self.metrics: dict[str, float] = {}
        """The newest measurement: metric name -> value; empty before the first."""
        self.measured = 0
        """Number of the step, from 1, that ``metrics`` is of."""
        self.steps = 0
        """How many steps have begun."""
        self._model, self._optimizers, self._probes, self._tell = model, optimizers, probes, tell
        self._step: _Step | None = None
        self._busy = False
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._controls: list[CastControl] = []

    def __enter__(self) -> Observation:
        self._controls = controls_of(self._model)
        if any(control.updated for control in self._controls):
            raise AltgradError(
                "This model is observed already, and each of two would get a part of its casts' statistics; leave the first "
                "'with altgrad.observe(...)' before the next, or give one all the probes."
            )
        self._handles.append(self._model.register_forward_pre_hook(self._forward))
        for optimizer in self._optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._before_update))
            self._handles.append(optimizer.register_step_post_hook(self._after_update))
        for control in self._controls:
            control.updated.append(self._cast_after_update)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for control in self._controls:
            control.updated.remove(self._cast_after_update)
        try:
            if self._step is not None and kind is None:
                self._end_last(self._step)
        finally:
            self._step = None
            for control in self._controls:
                control.collecting = False
                control.take()

    def after_backward(self, loss: Tensor | None = None) -> None:
        """Measure the gradients now: after the step's backward passes, before you clip.

        Without this call they are measured as the optimizer finds them. ``loss`` is the step's mean loss (0-d).
        """
        step = self._begun("after_backward")
        if step.measured_gradients:
            raise AltgradError(
                "The gradients of this step are measured already: call after_backward() or shadow(), once."
            )
        if loss is not None:
            step.context.loss = loss.detach()
            step.context.measurements.add("train/loss", loss)
        self._measure_gradients(step, without=_SHADOW)

    def shadow(self, loss_again: Callable[[], Tensor], loss: Tensor) -> None:
        """Compare the gradients with those of FP32 at the same weights; does what ``after_backward(loss)`` does, too.

        ``loss_again`` computes the step's loss once more, of all its micro-batches as they were weighed, without autocast
        and without a backward pass: ``lambda: loss_of(model(x), y)``. It is called in the steps that the probe ``shadow``
        measures, and leaves gradients, random generators and buffers of the model as they were.
        """
        step = self._begun("shadow")
        step.context.backward = lambda compute: self._backward_again(loss_again)
        step.context.loss = loss.detach()
        if _SHADOW in step.due:
            self._at(step, "after_backward", {_SHADOW: step.due[_SHADOW]})
        self.after_backward(loss)

    def step(self) -> None:
        """End the step: in a loop with no optimizer that ``observe`` knows, or where an update is left out."""
        self._end(self._begun("step"))

    def table(self) -> str:
        """Return the measurement as a table: a row a cast, a row a parameter, and the means."""
        return layer_table(self.metrics, title=f"step {self.measured}" if self.measured else "nothing measured")

    def __str__(self) -> str:
        return self.table()

    def _forward(self, module: nn.Module, inputs: Any) -> None:
        """A forward pass of the model: a step begins, unless it is an evaluation, a repetition, or one of many."""
        if self._busy or recomputing() or not torch.is_grad_enabled():
            return
        step = self._step
        if step is not None and (step.updated or step.measured_gradients):
            self._end(step)  # an update was left out
        if self._step is None:
            self._begin()

    def _begin(self) -> None:
        self.steps += 1
        compute: Compute = "bf16" if torch.is_autocast_enabled(self._device().type) else "fp32"
        context = StepContext(
            step=self.steps,
            model=self._model,
            recipe=Recipe(name="observed", compute=compute),
            parameters={name: p for name, p in self._model.named_parameters() if p.requires_grad},
            batches=[],
            controls=self._controls,
            backward=_unknown_loss,
            measurements=Measurements(),
        )
        due = {name: probe for name, probe in self._probes.items() if probe.due(self.steps)}
        self._step = _Step(context=context, due=due)
        self._at(self._step, "before_forward", due)

    def _measure_gradients(self, step: _Step, without: str) -> None:
        step.measured_gradients = True
        self._at(step, "after_backward", {name: probe for name, probe in step.due.items() if name != without})

    def _before_update(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        if any(callable(value) for value in (*args, *kwargs.values()) if value is not optimizer):
            raise AltgradError(
                "observe() measures gradients before optimizer.step() and weights around it; given a closure, the step "
                "computes them within. Call backward() yourself and step() without one, or leave the optimizer out of "
                "observe(...) and call seen.step()."
            )
        step = self._step
        if step is None or step.updated:
            return
        if not step.measured_gradients:
            self._measure_gradients(step, without=_SHADOW)
        self._at(step, "before_update", step.due)

    def _after_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        step = self._step
        if step is None:
            return
        step.updated.append(optimizer)
        if not any(control.casts_after_update for control in self._controls):
            self._finish_update(step)

    def _cast_after_update(self) -> None:
        """``StepCasts.after_update`` is done: weights and optimizer state are what the next step reads."""
        if self._step is not None:
            self._finish_update(self._step)

    def _finish_update(self, step: _Step) -> None:
        if step.updated and all(one in step.updated for one in self._optimizers):
            self._at(step, "after_update", step.due)
            self._end(step)

    def _end(self, step: _Step) -> None:
        if not step.measured_gradients:
            self._measure_gradients(step, without=_SHADOW)
        self._step = None
        if step.due:
            self.metrics, self.measured = step.context.measurements.read(), step.context.step
            if self._tell is not None:
                self._tell(self.measured, self.metrics)

    def _end_last(self, step: _Step) -> None:
        """End what the loop left open; a forward pass that nothing came of, such as a look at the model, was no step."""
        gradients = any(parameter.grad is not None for parameter in step.context.parameters.values())
        if step.measured_gradients or (gradients and not self._optimizers):
            self._end(step)
        else:
            self.steps -= 1

    def _begun(self, method: str) -> _Step:
        if self._step is None:
            raise AltgradError(
                f"seen.{method}() belongs between a forward pass of the observed model and the optimizer's step, within "
                "'with altgrad.observe(...) as seen'; no step has begun."
            )
        return self._step

    def _backward_again(self, loss_again: Callable[[], Tensor]) -> Tensor:
        """Run the shadow's forward and backward pass and return its loss (0-d)."""
        with self._buffers_kept(), torch.autocast(self._device().type, enabled=False):
            watch = self._model.register_forward_pre_hook(_refuse_autocast)
            try:
                again = loss_again()
            finally:
                watch.remove()
            again.backward()  # type: ignore[no-untyped-call]
        return again.detach()

    @contextmanager
    def _buffers_kept(self) -> Iterator[None]:
        """Put back, in the end, what forward passes write: running means of norms."""
        before = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        try:
            yield
        finally:
            for buffer, value in before:
                buffer.copy_(value)

    def _at(self, step: _Step, moment: Moment, probes: Mapping[str, Probe]) -> None:
        self._busy = True
        try:
            Probing(list(probes.values()), step.context, self._device()).at(moment)
        except RuntimeError as error:
            if isinstance(error.__cause__, AltgradError):  # of the user's making, not the probe's
                raise error.__cause__ from None
            raise
        finally:
            self._busy = False

    def _device(self) -> torch.device:
        return next((parameter.device for parameter in self._model.parameters()), torch.device("cpu"))


def _refuse_autocast(module: nn.Module, inputs: Any) -> None:
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    if torch.is_autocast_enabled(device.type):
        raise AltgradError(
            "seen.shadow(...) computes the loss in FP32, but what it was given runs the model under autocast: leave "
            "torch.autocast out of it."
        )


def _unknown_loss(compute: Compute) -> Tensor:
    raise AltgradError(
        "This probe repeats the step's backward pass: give the loss with seen.shadow(lambda: ..., loss)."
    )
