"""``convert(model, recipe)``: make a model's layers cast their operands as a recipe says, and say what was done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import attrs
from torch import nn

from altgrad_core.errors import AltgradError
from altgrad_core.plugins import installed
from altgrad_core.recipes.control import CastControl, controls_of
from altgrad_core.recipes.linear import CastGemmLayer, CastLayer, CastLinear
from altgrad_core.recipes.recipe import LINEAR, Recipe
from altgrad_core.recipes.resolve import resolve_recipe
from altgrad_core.recipes.revert import revert, size_of, switch
from altgrad_core.recipes.transposed import CastTransposedLinear, is_transposed_linear

Choose = Callable[[nn.Module], type[CastLayer] | str | None]


@attrs.frozen(kw_only=True)
class LayerReport:
    """What ``convert`` did with one layer."""

    name: str
    """The layer's full name in the model."""
    kind: str = LINEAR
    """The kind of layers that it belongs to, one of the recipe's ``layers``."""
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
    also: tuple[str, ...] = ()
    """Other names of the same layer, where the model has it in several places."""


@attrs.frozen(kw_only=True)
class ConversionSummary:
    """What ``convert`` did with a model."""

    recipe: str
    """Name of the recipe."""
    layers: tuple[LayerReport, ...]
    """Every layer of the recipe's kinds, in the order of ``model.named_modules()``."""
    unused_overrides: tuple[str, ...]
    """Overrides that are for none of these layers, nor, with ``weight_storage``, for another with a matrix."""
    left_to_step_casts: tuple[str, ...]
    """What else the recipe casts, which ``convert`` does not: ``gradient``, ``weight_storage``, ... See ``StepCasts``."""
    tied: tuple[tuple[str, ...], ...] = ()
    """Names of one and the same parameter in several layers, such as the weight of an embedding and of the head."""

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
        kinds = list(dict.fromkeys((LINEAR, *(layer.kind for layer in self.layers))))
        counts = []
        for kind in kinds:
            converted = [layer.converted for layer in self.layers if layer.kind == kind]
            counts.append(f"{sum(converted)} of {len(converted)} {kind}")
        lines = [f"{self.recipe}: {', '.join(counts)} layers converted"]
        if not self.layers:
            others = ", ".join(kind for kind in installed().names("layer"))
            lines.append(f"  the model has no layer of these kinds; a recipe's 'layers' may add others: {others}")
        lines += [f"  GEMMs of {len(names)}: {backend}" for backend, names in self.backends.items()]
        lines += [f"  left alone: {name} ({reason})" for name, reason in self.skipped.items()]
        lines += [f"  one layer: {', '.join((layer.name, *layer.also))}" for layer in self.layers if layer.also]
        lines += [f"  one parameter: {', '.join(names)}" for names in self.tied]
        lines += [f"  override '{override}' matches no layer" for override in self.unused_overrides]
        if self.left_to_step_casts:
            lines.append(f"  not cast here: {', '.join(self.left_to_step_casts)}; that takes altgrad.StepCasts")
        return "\n".join(lines)


def convert(model: nn.Module, recipe: str | Mapping[str, Any] | Recipe) -> tuple[nn.Module, ConversionSummary]:
    """Convert ``model`` in place and return it with a summary; ``revert`` undoes it.

    Every layer of the recipe's kinds (``layers``; by default linear ones: modules that are exactly an ``nn.Linear``, and the
    ``Conv1D`` of transformers) gets a class that casts: the same object with the same parameters, hooks and
    ``state_dict`` keys (a policy with state, such as delayed scaling, adds buffers of its own). Subclasses of
    ``nn.Linear`` are left alone, since they may compute something else. ``recipe`` is a name (``"e5m2"``, ``"hybrid"``,
    any format), a table as in ``experiments.toml``, or a ``Recipe``. The rest of a recipe is not the layers' business: run
    the model under ``torch.autocast`` where it says ``compute = "bf16"``, and give it to
    ``altgrad.StepCasts``, which casts gradients, stored weights, optimizer state and saved
    activations in a training loop of your own, and is where stochastic rounding gets its seed and step.
    Gradients of gradients are refused. A layer that activation checkpointing computes twice casts the same both times, and
    is counted once.

    Raises ``AltgradError`` when the model, or a part of it, is already converted, or the recipe does not exist.
    """
    if not isinstance(model, nn.Module):
        raise AltgradError(f"convert() takes a torch.nn.Module and changes it in place; got {type(model).__name__}.")
    if controls_of(model):
        raise AltgradError("This model is converted already; revert() it first, or convert a fresh one.")
    recipe = resolve_recipe(recipe)
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    try:
        reports, unused = _convert(model, recipe, names)
    except BaseException:
        if controls_of(model):
            revert(model)
        raise
    return model, ConversionSummary(
        recipe=recipe.name,
        layers=tuple(reports),
        unused_overrides=unused,
        left_to_step_casts=recipe.step_casts(),
        tied=_tied(names),
    )


def _convert(
    model: nn.Module, recipe: Recipe, names: Mapping[nn.Module, list[str]]
) -> tuple[list[LayerReport], tuple[str, ...]]:
    control = CastControl()
    kinds = {kind: _linear if kind == LINEAR else installed().get("layer", kind).value for kind in recipe.layers}
    stores = "weight_storage" in recipe.step_casts()
    home = next((parameter.device for parameter in model.parameters()), None)
    reports, used = [], set()
    keeps_values = "saved_activations casts the values that are kept" if recipe.saved_activations else ""
    for module, (name, *also) in names.items():
        kind, found = _kind(module, kinds)
        size = size_of(module)
        override = next((o for o in recipe.overrides if o.matches((name, *also), type(module).__name__, size)), None)
        if override is not None and (found is not None or (stores and _has_matrix(module))):
            used.add(override)
        if isinstance(module, nn.MultiheadAttention) and LINEAR in kinds:
            reports.append(_projection(name, recipe))
        if found is None:
            continue
        applied = recipe if override is None else override.recipe
        reason = _reason_to_skip(module, found, applied)
        backend, why = "-", ""
        if not reason:
            assert not isinstance(found, str)
            module.__class__ = cast_class(found, type(module))  # type: ignore[arg-type]  # classes can be hashed
            assert isinstance(module, CastLayer)
            if isinstance(module, CastGemmLayer):
                module.equip(name, applied, control, keeps_values=keeps_values)
                backend, why = module.decision.backend, module.decision.reason
            else:
                module.equip(name, applied, control)
                backend, why = "emulated", "only linear layers have native GEMMs"
            device = next((parameter.device for parameter in module.parameters()), home)
            for quantizer in module.quantizers().values():
                quantizer.to(device)
        reports.append(
            LayerReport(
                name=name,
                kind=kind,
                converted=not reason,
                recipe=applied.name,
                reason=reason,
                backend=backend,
                backend_reason=why,
                also=tuple(also),
            )
        )
    _close_fast_paths(names)
    return reports, tuple(str(override) for override in recipe.overrides if override not in used)


@cache
def cast_class(mixin: type[CastLayer], original: type[nn.Module]) -> type[CastLayer]:
    """Return the class that a layer of class ``original`` gets; its name is ``Cast`` and that of ``original``."""
    if issubclass(mixin, original):
        return mixin
    facts = {"original": original, "__module__": mixin.__module__, "__doc__": mixin.__doc__}
    return type(f"Cast{original.__name__}", (mixin, original), facts)


def _kind(module: nn.Module, kinds: Mapping[str, Choose]) -> tuple[str, type[CastLayer] | str | None]:
    """Return the first of the kinds that knows the module and what it says; None when none does."""
    for kind, choose in kinds.items():
        found = choose(module)
        if found is not None:
            return kind, found
    return "", None


def _linear(module: nn.Module) -> type[CastLayer] | str | None:
    if type(module) is nn.Linear:
        return CastLinear
    if is_transposed_linear(type(module)):
        return CastTransposedLinear
    if isinstance(module, nn.Linear):
        return f"{type(module).__name__} is a subclass of Linear that may compute something else"
    return None


def _reason_to_skip(module: nn.Module, found: type[CastLayer] | str, recipe: Recipe) -> str:
    if not recipe.casts():
        return f"the recipe '{recipe.name}' casts no operand"
    if isinstance(found, str):
        return found
    if not found.casts_of(recipe):
        operands = ", ".join(sorted(set(found.operands.values())))
        return f"the recipe '{recipe.name}' casts none of its operands ({operands})"
    if "forward" in module.__dict__:
        return "its forward has been replaced, as accelerate does for device_map, so that another class would change nothing"
    return ""


def _projection(name: str, recipe: Recipe) -> LayerReport:
    """Return what is said of the projection to query, key and value that ``nn.MultiheadAttention`` makes itself."""
    return LayerReport(
        name=f"{name}.in_proj" if name else "in_proj",
        converted=False,
        recipe=recipe.name,
        reason="MultiheadAttention multiplies by it itself, it is no layer",
        backend="-",
        backend_reason="",
    )


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.dim() >= 2 for parameter in module.parameters(recurse=False))


def _tied(names: Mapping[nn.Module, list[str]]) -> tuple[tuple[str, ...], ...]:
    """Return the names of each parameter that several modules have."""
    found: dict[nn.Parameter, list[str]] = {}
    for module, (name, *_) in names.items():
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            found.setdefault(parameter, []).append(f"{name}.{key}" if name else key)
    return tuple(tuple(group) for group in found.values() if len(group) > 1)


def _close_fast_paths(names: Mapping[nn.Module, list[str]]) -> None:
    """Make PyTorch's transformer layers call their parts in evaluation, too, instead of a kernel that knows no casts."""
    for module in names:
        if isinstance(module, nn.TransformerEncoderLayer) and any(isinstance(m, CastLayer) for m in module.modules()):
            switch(module, "activation_relu_or_gelu", 0)
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(m, CastLayer) for m in module.modules()):
            switch(module, "use_nested_tensor", False)
