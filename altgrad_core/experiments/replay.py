"""``altgrad replay``: re-runs one step of a run exactly, from the checkpoint before it, with its recipe or any other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch

from altgrad_core.errors import AltgradError
from altgrad_core.experiments.adopt import adopt
from altgrad_core.experiments.assembly import assemble, open_checkpoints, prepare_device
from altgrad_core.experiments.config import load_run, override_run
from altgrad_core.experiments.fork import Moment
from altgrad_core.experiments.history import metrics_at
from altgrad_core.experiments.runfile import default_probes
from altgrad_core.experiments.schema import RunConfig
from altgrad_core.plugins import Choice, installed
from altgrad_core.structure import structure
from altgrad_core.training.checkpoint import Checkpoints, DamagedCheckpoint, load_checkpoint, steps_done
from altgrad_core.training.engine import Engine, NoSinks
from altgrad_core.training.events import Event, metrics_of
from altgrad_core.training.postmortem import Findings
from altgrad_core.training.recorder import Before, look_again

_PROOF = ("train/loss", "train/grad_norm")


@attrs.frozen(kw_only=True)
class Step:
    """One execution of the step."""

    recipe: str
    """Name of the recipe."""
    changed: bool
    """Whether something is not as in the run."""
    metrics: dict[str, float]
    """All that was measured, by metric name: every probe at full detail."""
    findings: Findings
    """The first non-finite value and the first saturation, and every cast's statistics."""


@attrs.frozen(kw_only=True)
class Replay:
    """A replayed step."""

    step: int
    """Number of the step, from 1."""
    checkpoint: str | None
    """What it was started from; None: the run's beginning."""
    retrained: int
    """Steps between that checkpoint and the step, which were trained again."""
    recorded: dict[str, float]
    """What the run logged at the step, by metric name; empty when it logged nothing."""
    executions: tuple[Step, ...]
    """As the run did it, and then as changed."""

    @property
    def exact(self) -> bool | None:
        """Whether loss and gradient norm are what the run logged, bit for bit; None when it logged nothing."""
        mine = self.executions[0].metrics
        pairs = [(self.recorded[name], mine[name]) for name in _PROOF if name in self.recorded]
        return all(repr(a) == repr(b) for a, b in pairs) if pairs else None  # by text, so that a NaN equals itself

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types, but for non-finite floats."""
        executions = [
            {"recipe": e.recipe, "changed": e.changed, "metrics": e.metrics, **e.findings.as_dict()}
            for e in self.executions
        ]
        return {
            "step": self.step,
            "checkpoint": self.checkpoint,
            "retrained": self.retrained,
            "recorded": self.recorded,
            "exact": self.exact,
            "executions": executions,
        }


def replay(moment: Moment, overrides: Sequence[str], *, device: str, say: Callable[[str], None]) -> Replay:
    """Re-run the step of ``moment``, as the run did it and, with ``overrides`` (those of ``--set``), once more changed.

    Nothing is written. Raises ``AltgradError`` for a step that the run does not have.
    """
    step = moment.step
    config = load_run(moment.folder.config)
    first = 1 if config.fork is None else config.fork.step + 1
    if step is None or not first <= step <= config.train.steps:
        raise AltgradError(
            f"RUN@STEP: a step of this run is a number from {first} to {config.train.steps}, got '{moment.place}'."
        )
    changed = _measured(override_run(moment.folder.config, overrides)) if overrides else None
    place = prepare_device(device)
    checkpoints = open_checkpoints(config, moment.folder, say)
    engine, events = _engine(_measured(config), place, checkpoints, say)
    name = _load_before(engine, checkpoints, step, say)
    if name is None and config.fork is not None:
        raise AltgradError(
            f"{moment.folder.path} lacks the checkpoint that the fork began with, so step {step} cannot be reached."
        )
    began = engine.step_number
    probes, engine.probes = engine.probes, {}
    while engine.step_number < step - 1:
        engine.step()
    engine.probes = probes
    state = copy.deepcopy(engine.state_dict())
    executions = [_execute(engine, events, config.recipe.name, changed=False)]
    if changed is not None:
        second, events = _engine(changed, place, checkpoints, say)
        adopt(second, state, engine.config)
        executions.append(_execute(second, events, changed.recipe.name, changed=True))
    return Replay(
        step=step,
        checkpoint=name,
        retrained=step - 1 - began,
        recorded=metrics_at(moment.folder.events, step),
        executions=tuple(executions),
    )


def _measured(config: RunConfig) -> RunConfig:
    """Return the configuration with every built-in probe and those of the run at every step, and without sinks."""
    plugins = installed()
    kinds = dict.fromkeys([*(probe.kind for probe in config.probes), *default_probes(plugins)])
    options = {probe.kind: probe.options for probe in config.probes}
    probes = []
    for kind in sorted(kinds):
        chosen = options[kind] if kind in options else structure({}, plugins.get("probe", kind).options)
        probes.append(Choice(kind, attrs.evolve(chosen, every=1) if hasattr(chosen, "every") else chosen))
    return attrs.evolve(config, probes=tuple(probes), sinks=(), train=attrs.evolve(config.train, log_every=1))


def _engine(
    config: RunConfig, device: torch.device, checkpoints: Checkpoints, say: Callable[[str], None]
) -> tuple[Engine, list[Event]]:
    """Return an engine that writes nothing, and the list that its events go to."""
    events: list[Event] = []
    engine, _ = assemble(
        config,
        device,
        checkpoints,
        emit=events.append,
        say=say,
        stop_requested=lambda steps: False,
        sinks=NoSinks(),
    )
    engine.model.train()
    return engine, events


def _load_before(engine: Engine, checkpoints: Checkpoints, step: int, say: Callable[[str], None]) -> str | None:
    """Load the newest whole checkpoint from before ``step``; returns its name, None when there is none."""
    done = {name: steps for name in checkpoints.backend.names() if (steps := steps_done(name)) < step}
    for name in sorted(done, key=lambda name: done[name], reverse=True):
        try:
            loaded = load_checkpoint(checkpoints.backend, name)
        except DamagedCheckpoint as error:
            say(f"{error} Trying the one before.")
            continue
        if name.startswith("start-"):
            adopt(engine, loaded.state, loaded.notes["config"])
        else:
            engine.take_up(loaded)
        return name
    return None


def _execute(engine: Engine, events: list[Event], recipe: str, *, changed: bool) -> Step:
    """Do the engine's next step, looked at twice: watched for its first trouble, then measured."""
    step = engine.step_number + 1
    engine.casts.begin_step(step)
    findings = look_again(engine, engine.context(step), Before.of(engine))
    engine.step()
    (metrics,) = [metrics_of(event) for event in events if event["event"] == "metrics" and event["step"] == step]
    return Step(recipe=recipe, changed=changed, metrics=metrics, findings=findings)
