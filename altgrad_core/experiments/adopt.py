"""A training that begins where another one stood, with something changed: which of the other's state it takes over.

Taken whole: weights, step, and what is not about what changed. A run that changes nothing goes on to the same bits.

| state | taken | else |
| --- | --- | --- |
| weights | always; names and shapes must be the same | refused |
| scaling state (amax histories) | by name, where the shape is the same | starts anew |
| optimizer state | when the optimizer is of the same kind; its options are those of the new run | starts anew |
| weights and optimizer state as stored | when the recipe is another, they are cast as it says | |
| random number generators | when the seed is the same | seeded |
| probes, alerts | when their options are the same | start anew |
| best loss, sinks | never: they belong to the other run | |
"""

from __future__ import annotations

from typing import Any

from torch import nn

from altgrad_core.errors import AltgradError
from altgrad_core.recipes.step_casts import load_matching
from altgrad_core.training import rng
from altgrad_core.training.engine import Engine


def adopt(engine: Engine, state: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Put a fresh ``engine`` where the ``state`` of another training stands; returns what starts anew, in sentences.

    ``then`` is the configuration of that training, as tables. Raises ``AltgradError`` when the model is another.
    """
    now = engine.config
    notes = []
    _check_model(engine.model, state["model"])
    scaling_kept = load_matching(engine.model, state["model"])
    if then["train"]["optimizer"]["kind"] == now["train"]["optimizer"]["kind"]:
        _load_optimizer(engine, state["optimizer"])
    else:
        notes.append(f"The state of the optimizer {now['train']['optimizer']['kind']} starts anew.")
    if then["recipe"] == now["recipe"]:
        engine.casts.load_state_dict(state["casts"])
    else:
        engine.casts.begin_step(state["step"])
        scaling_kept &= engine.casts.adopt_state_dict(state["casts"])
    if not scaling_kept:
        notes.append("Scaling state that the other recipe does not have starts anew.")
    for name, probe in engine.probes.items():
        if then["probes"].get(name) == now["probes"][name]:
            probe.load_state_dict(state["probes"][name])
    if then["alerts"] == now["alerts"]:
        engine.alerts.load_state_dict({**state["alerts"], "stop_reason": ""})  # an alert that ended the other run
    if then["seed"] == now["seed"]:
        rng.restore(state["rng"])
    else:
        notes.append(f"Batches and dropout are those of seed {now['seed']} from here on.")
    engine.step_number = state["step"]
    return notes


def _check_model(model: nn.Module, saved: dict[str, Any]) -> None:
    """Raise unless every parameter is among ``saved`` in its shape, and every saved tensor that is not is scaling state."""
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
