"""``convert(model, recipe)``: make a model's linear layers cast their operands as a recipe says, and say what was done."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

import attrs
from torch import nn

from altgrad_core.errors import AltgradError
from altgrad_core.recipes.control import CastControl, control_of
from altgrad_core.recipes.linear import CastLinear
from altgrad_core.recipes.recipe import Recipe
from altgrad_core.recipes.resolve import resolve_recipe


@attrs.frozen(kw_only=True)
class LayerReport:
    """What ``convert`` did with one layer."""

    name: str
    """The layer's full name in the model."""
    converted: bool
    """Whether its operands are cast."""
    recipe: str
    """Name of the recipe that applies to it."""
    reason: str
    """Why it was not converted; empty when it was."""
    backend: str
    """``emulated`` or ``native``, or ``-`` for a layer that is not converted."""
    backend_reason: str
    """Why that backend; empty for a layer that is not converted."""


@attrs.frozen(kw_only=True)
class ConversionSummary:
    """What ``convert`` did with a model."""

    recipe: str
    """Name of the recipe."""
    layers: tuple[LayerReport, ...]
    """Every linear layer, in the order of ``model.named_modules()``."""
    unused_overrides: tuple[str, ...]
    """Patterns of overrides that matched no linear layer, nor, with ``weight_storage``, another with a matrix."""
    left_to_step_casts: tuple[str, ...]
    """What else the recipe casts, which ``convert`` does not: ``gradient``, ``weight_storage``, ... See ``StepCasts``."""

    @property
    def converted(self) -> list[str]:
        """Names of the converted layers."""
        return [layer.name for layer in self.layers if layer.converted]

    @property
    def skipped(self) -> dict[str, str]:
        """Name -> reason for the layers left alone."""
        return {layer.name: layer.reason for layer in self.layers if not layer.converted}

    @property
    def backends(self) -> dict[str, list[str]]:
        """``emulated: why`` or ``native: why`` -> names of the layers."""
        grouped: dict[str, list[str]] = {}
        for layer in self.layers:
            if layer.converted:
                grouped.setdefault(f"{layer.backend}: {layer.backend_reason}", []).append(layer.name)
        return grouped

    @property
    def backend(self) -> str:
        """The backend of all converted layers: ``emulated``, ``native``, ``mixed``, or ``-`` where there are none."""
        found = {layer.backend for layer in self.layers if layer.converted}
        return "-" if not found else found.pop() if len(found) == 1 else "mixed"

    def __str__(self) -> str:
        lines = [f"{self.recipe}: {len(self.converted)} of {len(self.layers)} linear layers converted"]
        lines += [f"  GEMMs of {len(names)}: {backend}" for backend, names in self.backends.items()]
        lines += [f"  left alone: {name} ({reason})" for name, reason in self.skipped.items()]
        lines += [f"  override '{pattern}' matches no layer" for pattern in self.unused_overrides]
        if self.left_to_step_casts:
            lines.append(f"  not cast here: {', '.join(self.left_to_step_casts)}; that takes altgrad.StepCasts")
        return "\n".join(lines)


def convert(model: nn.Module, recipe: str | Mapping[str, Any] | Recipe) -> tuple[nn.Module, ConversionSummary]:
    """Convert ``model`` in place and return it with a summary.

    Every module that is exactly an ``nn.Linear`` becomes a ``CastLinear``: the same object with the same parameters,
    hooks and ``state_dict`` keys (a policy with state, such as delayed scaling, adds buffers of its own). Subclasses of
    ``nn.Linear`` are left alone, since they may compute something else. ``recipe`` is a name (``"e5m2"``, ``"hybrid"``,
    any format), a table as in ``experiments.toml``, or a ``Recipe``. The rest of a recipe is not the layers' business: run
    the model under ``torch.autocast`` where it says ``compute = "bf16"``, and give it to
    ``altgrad.StepCasts``, which casts gradients, stored weights, optimizer state and saved
    activations in a training loop of your own, and is where stochastic rounding gets its seed and step.
    Gradients of gradients are refused. A layer that activation checkpointing computes twice casts and counts
    twice, and with stochastic rounding draws twice.

    Raises ``AltgradError`` when the model is already converted, or the recipe does not exist.
    """
    if control_of(model) is not None:
        raise AltgradError("This model is converted already; convert a fresh one.")
    recipe = resolve_recipe(recipe)
    control = CastControl()
    reports, used = [], set()
    left = recipe.step_casts()
    stores = "weight_storage" in left
    keeps_values = "saved_activations casts the values that are kept" if recipe.saved_activations else ""
    for name, module in list(model.named_modules()):
        override = next((o for o in recipe.overrides if fnmatch.fnmatchcase(name, o.match)), None)
        if override is not None and (isinstance(module, nn.Linear) or (stores and _has_matrix(module))):
            used.add(override.match)
        if not isinstance(module, nn.Linear):
            continue
        applied = recipe if override is None else override.recipe
        reason = _reason_to_skip(module, applied)
        if not reason:
            module.__class__ = CastLinear
            assert isinstance(module, CastLinear)
            module.equip(name, applied, control, keeps_values=keeps_values)
        decision = module.decision if isinstance(module, CastLinear) else None
        reports.append(
            LayerReport(
                name=name,
                converted=not reason,
                recipe=applied.name,
                reason=reason,
                backend="-" if decision is None else decision.backend,
                backend_reason="" if decision is None else decision.reason,
            )
        )
    unused = tuple(o.match for o in recipe.overrides if o.match not in used)
    return model, ConversionSummary(
        recipe=recipe.name, layers=tuple(reports), unused_overrides=unused, left_to_step_casts=left
    )


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.dim() >= 2 for parameter in module.parameters(recurse=False))


def _reason_to_skip(module: nn.Linear, recipe: Recipe) -> str:
    if not recipe.casts():
        return f"the recipe '{recipe.name}' casts no operand"
    if type(module) is not nn.Linear:
        return f"{type(module).__name__} is a subclass of Linear that may compute something else"
    return ""
