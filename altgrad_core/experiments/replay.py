"""``altgrad replay``: re-runs one step of a run exactly, from the checkpoint before it, with its recipe or any other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch

from altgrad_core.errors import AltgradError
from altgrad_core.experiments.adopt import adopt
from altgrad_core.experiments.assembly import assemble, build, open_checkpoints, prepare_device
from altgrad_core.experiments.config import load_run, override_run
from altgrad_core.experiments.fork import Moment
from altgrad_core.experiments.history import metrics_at
from altgrad_core.experiments.origin import changes_since
from altgrad_core.experiments.runfile import default_probes
from altgrad_core.experiments.schema import RunConfig
from altgrad_core.plugins import Choice, installed
from altgrad_core.structure import structure
from altgrad_core.training.checkpoint import Checkpoints, DamagedCheckpoint, checkpoint_steps, load_checkpoint
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
    moment.check_run()
    config = attrs.evolve(load_run(moment.folder.config), sinks=())
    first = 1 if config.fork is None else config.fork.step + 1
    if step is None or not first <= step <= config.train.steps:
        raise AltgradError(
            f"RUN@STEP: a step of this run is a number from {first} to {config.train.steps}, got '{moment.place}'."
        )
    changed = attrs.evolve(override_run(moment.folder.config, overrides), sinks=()) if overrides else None
    place = prepare_device(device)
    checkpoints = open_checkpoints(config, moment.folder, say)
    engine, events = _engine(config, place, checkpoints, say)
    name = _load_before(engine, config, checkpoints, step, say)
    if name is None and config.fork is not None:
        raise AltgradError(
            f"{moment.folder.path} lacks the checkpoint that the fork began with, so step {step} cannot be reached."
        )
    began = engine.step_number
    while engine.step_number < step - 1:
        engine.step()  # with the run's own probes as often as it measured, so that they remember what they did then
    state = None if changed is None else copy.deepcopy(engine.state_dict())
    executions = [_execute(engine, events, config, changed=False)]
    if changed is not None and state is not None:
        second, events = _engine(changed, place, checkpoints, say)
        adopt(second, state, engine.config, engine.data.identity)
        executions.append(_execute(second, events, changed, changed=True))
    return Replay(
        step=step,
        checkpoint=name,
        retrained=step - 1 - began,
        recorded=metrics_at(moment.folder.events, step),
        executions=tuple(executions),
    )


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


def _load_before(
    engine: Engine, config: RunConfig, checkpoints: Checkpoints, step: int, say: Callable[[str], None]
) -> str | None:
    """Load the newest whole checkpoint from before ``step``; returns its name, None when there is none."""
    done = {name: steps for name, steps in checkpoint_steps(checkpoints.backend).items() if steps < step}
    for name in sorted(done, key=lambda name: done[name], reverse=True):
        branched = name.startswith("start-")
        if branched and (config.fork is None or name != config.fork.start):
            continue  # of another fork of that name, which never trained
        try:
            loaded = load_checkpoint(checkpoints.backend, name)
        except DamagedCheckpoint as error:
            say(f"{error} Trying the one before.")
            continue
        if branched:
            adopt(engine, loaded.state, loaded.notes["config"], loaded.notes["data"])
        else:
            for change in changes_since(loaded, engine.config, engine.data):
                say(f"Not as the run was trained, so the step may be another (then -> now): {change}")
            engine.take_up(loaded)
        return name
    return None


def _execute(engine: Engine, events: list[Event], config: RunConfig, *, changed: bool) -> Step:
    """Do the engine's next step, looked at twice: watched for its first trouble, then measured."""
    step = engine.step_number + 1
    _measure_everything(engine, config)
    engine.casts.begin_step(step)
    findings = look_again(engine, engine.context(step), Before.of(engine))
    engine.step()
    (metrics,) = [metrics_of(event) for event in events if event["event"] == "metrics" and event["step"] == step]
    return Step(recipe=config.recipe.name, changed=changed, metrics=metrics, findings=findings)


def _measure_everything(engine: Engine, config: RunConfig) -> None:
    """Make every built-in probe and those of the run due at the next step; what the run's remember they keep."""
    remembered = engine.probe_states()
    plugins = installed()
    options = {probe.kind: probe.options for probe in config.probes}
    engine.probes = {}
    for kind in sorted({*options, *default_probes(plugins)}):
        chosen = options[kind] if kind in options else structure({}, plugins.get("probe", kind).options)
        often = attrs.evolve(chosen, every=1) if hasattr(chosen, "every") else chosen
        engine.probes[kind] = build("probe", Choice(kind, often))
        if kind in remembered:
            engine.probes[kind].load_state_dict(remembered[kind])
    engine.train_config = attrs.evolve(engine.train_config, log_every=1)
