"""A training that begins where another one stood, with something changed: which of the other's state it takes over.

Taken whole: weights, step, and what is not about what changed. A run that changes nothing goes on to the same bits.

| state | taken | else |
| --- | --- | --- |
| weights | always; names and shapes must be the same | refused |
| scaling state (amax histories) | by name, where the shape is the same | starts anew |
| optimizer state | when the optimizer is of the same kind; its options are those of the new run | starts anew |
| weights and optimizer state as stored | when the recipe is another, they are cast as it says | |
| random number generators | when the seed is the same | seeded |
| probes | when their options are the same | start anew |
| alerts | when their options are the same and none of them ended the other run | start anew |
| how many recordings the alerts asked for, best loss, sinks | never: they belong to the other run | |

Where the data are others than the other training's, that is said.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from altgrad_core.errors import AltgradError
from altgrad_core.recipes.step_casts import load_matching
from altgrad_core.training import rng
from altgrad_core.training.data import DataIdentity, data_changes
from altgrad_core.training.engine import Engine


def adopt(engine: Engine, state: dict[str, Any], then: dict[str, Any], data: DataIdentity) -> list[str]:
    """Put a fresh ``engine`` where the ``state`` of another training stands; returns what starts anew, in sentences.

    ``then`` is the configuration of that training, as tables, and ``data`` its data. Raises ``AltgradError`` when the
    model is another.
    """
    now = engine.config
    notes = []
    check_parameters(engine.model, state["model"])
    scaling_kept = load_matching(engine.model, state["model"])
    same_optimizer = then["train"]["optimizer"]["kind"] == now["train"]["optimizer"]["kind"]
    same_recipe = then["recipe"] == now["recipe"]
    if same_optimizer:
        _load_optimizer(engine, state["optimizer"])
    else:
        notes.append(f"The state of the optimizer {now['train']['optimizer']['kind']} starts anew.")
    if same_recipe and same_optimizer:
        engine.casts.load_state_dict(state["casts"])
    else:
        engine.casts.begin_step(state["step"])
        scaling_kept &= engine.casts.adopt_state_dict(state["casts"], recast=not same_recipe)
    if not scaling_kept:
        notes.append("Scaling state that the other recipe does not have starts anew.")
    notes += _adopt_probes(engine, state["probes"], then["probes"])
    notes += _adopt_alerts(engine, state["alerts"], same_rules=then["alerts"] == now["alerts"])
    if then["seed"] == now["seed"]:
        rng.restore(state["rng"])
    else:
        notes.append(f"Batches and dropout are those of seed {now['seed']} from here on.")
    if changes := data_changes(data, engine.data.identity):
        notes.append(f"The data are others than those of the checkpoint ({changes}).")
    engine.step_number = state["step"]
    return notes


def _adopt_probes(engine: Engine, states: dict[str, Any], then: dict[str, Any]) -> list[str]:
    anew = []
    for name, probe in engine.probes.items():
        if then.get(name) == engine.config["probes"][name]:
            probe.load_state_dict(states[name])
        elif states.get(name):  # most probes remember nothing
            anew.append(f"What the probe {name} remembers starts anew: its options are others.")
    return anew


def _adopt_alerts(engine: Engine, state: dict[str, Any], *, same_rules: bool) -> list[str]:
    if not same_rules:
        return ["The alerts start anew: their options are others."]
    if state["stop_reason"]:  # it has been raised, and is not raised again before its condition has ended
        return ["The alerts start anew: one of them ended the other run."]
    engine.alerts.load_state_dict({**state, "saved": engine.alerts.state_dict()["saved"]})
    return []


def check_parameters(model: nn.Module, saved: dict[str, Any]) -> None:
    """Raise ``AltgradError`` unless every parameter is among ``saved`` in its shape; what else is saved is scaling state."""
    parameters = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    wrong = [f"{name} is {list(shape)}" for name, shape in parameters.items() if name not in saved]
    wrong += [
        f"{name} is {list(shape)}, was {list(saved[name].shape)}"
        for name, shape in parameters.items()
        if name in saved and tuple(saved[name].shape) != shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise AltgradError(
            f"The checkpoint is that of another model: {wrong[0]}{more}. A branch keeps model and vocabulary; change "
            "recipe, optimizer or schedule, or train the other model from the start with altgrad run."
        )


def _load_optimizer(engine: Engine, saved: dict[str, Any]) -> None:
    """Load the moments, but leave the options of each group (weight decay, betas) as this run's configuration has them."""
    options = [
        {key: value for key, value in group.items() if key != "params"} for group in engine.optimizer.param_groups
    ]
    engine.optimizer.load_state_dict(saved)
    for group, own in zip(engine.optimizer.param_groups, options, strict=True):
        group.update(own)
