"""From what users write, ``"hybrid"`` or a table, to a ``Recipe``, and back. Nothing here imports torch.

The short form is a name: that of a recipe, or of any number format (all three operands in that format, scaled as
``resolve_cast`` says: by their current amax, unless the format has scales of its own or needs none). The long form
is a table::

    { input = "e4m3fn", weight = "e4m3fn", grad_output = { format = "e5m2", scaling = "delayed" }, scaling = "current" }
    { base = "e5m2", scaling = { kind = "delayed", history = 8 }, overrides = [{ match = "lm_head", recipe = "bf16" }] }
    { base = "mxfp8", weight_storage = { format = "e4m3fn", rounding = "stochastic" },
      optimizer_state = { exp_avg = "mxfp8_e4m3", exp_avg_sq = "bf16" }, saved_activations = "e5m2" }

``scaling``, ``rounding``, ``saturation`` and ``random_bits`` of the table hold for every operand, and ``gradient``, that
does not say otherwise itself. What a step leaves behind (``STATES``) has needs of its own and says its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from altgrad_core.errors import AltgradError, nearest, unknown
from altgrad_core.plugins import Choice, Plugins, installed
from altgrad_core.recipes.recipe import (
    LINEAR,
    OPERANDS,
    STATES,
    Backend,
    Compute,
    GemmName,
    OperandCast,
    Override,
    Recipe,
    refuse_format,
)
from altgrad_core.recipes.resolve_cast import CAST_KEYS, HOW, CastResolver, cast_table, check_random_bits, state_table
from altgrad_core.spelling import shown
from altgrad_core.structure import Collector, Problem, StructureError, structure

CASTS = (*OPERANDS, "gradient", *STATES)
_HELD = (*OPERANDS, "gradient")  # what scaling, rounding, ... of the table hold for
_KEYS = ("name", "base", *CASTS, "scaling", *HOW, "compute", "backend", "fast_accumulation", "layers", "overrides")
_CONDITIONS: dict[str, type] = {"match": str, "type": str, "smaller_than": int, "larger_than": int}


def resolve_recipe(spec: str | Mapping[str, Any] | Recipe, *, plugins: Plugins | None = None) -> Recipe:
    """Return the recipe that a name or a table means, and a ``Recipe`` as it is; ``plugins`` defaults to the installed ones.

    Raises ``AltgradError`` with every unknown key, format, recipe, scaling and wrong value, each with its key path.
    """
    return _Resolver(installed() if plugins is None else plugins).resolve(spec, "bf16", ())


def recipe_table(recipe: Recipe) -> dict[str, Any]:
    """Return the long form, which ``resolve_recipe`` turns back into an equal recipe."""
    table: dict[str, Any] = {"name": recipe.name, "compute": recipe.compute, "backend": recipe.backend}
    if recipe.fast_accumulation != Recipe(name="").fast_accumulation:
        table["fast_accumulation"] = list(recipe.fast_accumulation)
    for name in CASTS:
        cast = getattr(recipe, name)
        if cast is not None:
            table[name] = cast_table(cast) if isinstance(cast, OperandCast) else state_table(cast)
    if recipe.layers != (LINEAR,):
        table["layers"] = list(recipe.layers)
    if recipe.overrides:
        table["overrides"] = [{**o.conditions(), "recipe": recipe_table(o.recipe)} for o in recipe.overrides]
    return table


@attrs.frozen
class _Resolver(CastResolver):
    """Makes recipes of what users write."""

    def resolve(self, spec: Any, compute: Compute, within: tuple[str, ...]) -> Recipe:
        """``compute`` holds where the recipe names none; ``within`` are the names being resolved, against circles."""
        if isinstance(spec, Recipe):
            return spec
        if isinstance(spec, str):
            return self._named(spec, compute, within)
        if isinstance(spec, Mapping):
            return self._table(spec, compute, within)
        refuse_format(spec)
        raise StructureError([Problem((), f"expected the name of a recipe or a format, or a table, got {shown(spec)}")])

    def _named(self, name: str, compute: Compute, within: tuple[str, ...]) -> Recipe:
        extension = self.plugins.find("recipe", name)
        if extension is not None:
            if name in within:
                raise AltgradError(f"The recipes {' -> '.join((*within, name))} go round in a circle.")
            try:
                recipe = self._table(extension.value, compute, (*within, name))
            except AltgradError as error:
                raise AltgradError(
                    f"The recipe '{name}' of the plugin '{extension.plugin}' is wrong: {error}"
                ) from error
            return attrs.evolve(recipe, name=name)
        try:
            format = self.format_name(name)
        except AltgradError as error:
            recipes = self.plugins.names("recipe")
            if near := nearest(name, recipes):
                raise AltgradError(
                    f"Unknown recipe '{name}'.{near} Recipes: {', '.join(recipes)}; any format is a recipe, too."
                ) from error
            raise AltgradError(f"{error} Nor is it a recipe. Recipes: {', '.join(recipes) or 'none'}.") from error
        cast = OperandCast(format=format, scaling=self.default_scaling(format))
        return Recipe(name=format, input=cast, weight=cast, grad_output=cast, compute=compute)

    def _table(self, table: Mapping[str, Any], compute: Compute, within: tuple[str, ...]) -> Recipe:
        collector = Collector()
        for key in table:
            if key not in _KEYS:
                collector.add((key,), unknown("key", str(key), _KEYS))
        values: dict[str, Any] = {}
        hints = {"name": str, "compute": Compute, "backend": Backend, "fast_accumulation": tuple[GemmName, ...]}
        for key, hint in hints.items():
            if key in table:
                with collector.at(key):
                    values[key] = structure(table[key], hint)  # type: ignore[arg-type]
        if "layers" in table:
            with collector.at("layers"):
                values["layers"] = self._layers(table["layers"])
        compute = values.get("compute", compute)
        base = Recipe(name="", compute=compute)
        if "base" in table:
            with collector.at("base"):
                refuse_format(table["base"])
                base = self._named(structure(table["base"], str), compute, within)
        compute = values.get("compute", base.compute)
        inherited = [attrs.evolve(o, recipe=attrs.evolve(o.recipe, compute=compute)) for o in base.overrides]
        values["overrides"] = tuple(inherited)
        how = self.how(table, collector)
        for name in _HELD:
            with collector.at(name):
                values[name] = self.cast(table.get(name), getattr(base, name), how)
        for name in ("weight_storage", "saved_activations"):
            with collector.at(name):
                values[name] = self.cast(table.get(name), getattr(base, name), {})
        with collector.at("optimizer_state"):
            values["optimizer_state"] = self.optimizer_state(table.get("optimizer_state"), base.optimizer_state)
        if not collector.problems:
            self._check_effect(how, values, collector)
        if "overrides" in table:
            with collector.at("overrides"):
                values["overrides"] = (*self._overrides(table["overrides"], compute, within), *inherited)
        collector.check()
        recipe = attrs.evolve(base, **values)
        return recipe if "name" in values else attrs.evolve(recipe, name=_name(recipe, base, table))

    @staticmethod
    def _check_effect(how: Mapping[str, Any], values: Mapping[str, Any], collector: Collector) -> None:
        held = [values[name] for name in _HELD if values[name] is not None]
        if held:
            with collector.at("random_bits"):
                check_random_bits(how, held)
        elif any(values[name] for name in STATES):
            for key in how:
                collector.add((key,), f"holds for {', '.join(_HELD)} alone, none of which is cast; say it in the cast")
        else:
            for key in how:
                collector.add((key,), "has no effect, because the recipe casts nothing; leave it out")

    def _overrides(self, spec: Any, compute: Compute, within: tuple[str, ...]) -> list[Override]:
        collector, overrides = Collector(), []
        for index, item in enumerate(structure(spec, tuple[Mapping[str, Any], ...])):
            with collector.at(index):
                inner = Collector()
                values: dict[str, Any] = {}
                for key in item:
                    if key not in (*_CONDITIONS, "recipe"):
                        inner.add((key,), unknown("key", str(key), (*_CONDITIONS, "recipe")))
                for key, hint in _CONDITIONS.items():
                    if key in item:
                        with inner.at(key):
                            values[key] = structure(item[key], hint)
                if not any(key in item for key in _CONDITIONS):
                    inner.add(("match",), f"missing; an override says which layers it is for: {', '.join(_CONDITIONS)}")
                if "recipe" not in item:
                    inner.add(("recipe",), "missing; it has no default")
                else:
                    with inner.at("recipe"):
                        values["recipe"] = self._override_recipe(item["recipe"], compute, within)
                inner.check()
                overrides.append(Override(**values))
        collector.check()
        return overrides

    def _layers(self, spec: Any) -> tuple[str, ...]:
        kinds = (LINEAR, *self.plugins.names("layer"))
        collector, names = Collector(), structure(spec, tuple[str, ...])
        for index, name in enumerate(names):
            if name not in kinds:
                collector.add((index,), unknown("kind of layers", name, kinds))
        collector.check()
        return tuple(dict.fromkeys(names))

    def _override_recipe(self, spec: Any, compute: Compute, within: tuple[str, ...]) -> Recipe:
        recipe = self.resolve(spec, compute, within)
        if recipe.compute != compute:
            raise AltgradError(
                f"an override cannot change the compute precision: '{recipe.name}' computes in {recipe.compute}, "
                f"the recipe around it in {compute}; use a recipe that computes in {compute}"
            )
        for key in ("gradient", "optimizer_state", "saved_activations", "overrides"):
            if getattr(recipe, key):
                raise AltgradError(f"the recipe of an override cannot have '{key}'; set it in the recipe around it")
        if recipe.layers != (LINEAR,):
            raise AltgradError("the recipe of an override cannot have 'layers'; set it in the recipe around it")
        return recipe


def _name(recipe: Recipe, base: Recipe, table: Mapping[str, Any]) -> str:
    """Return a name that tells the recipe apart: ``e5m2, scaling delayed``, or ``e4m3fn/e4m3fn/e5m2``."""
    if "base" in table:
        keys = [key for key in _KEYS if key in table and key not in ("name", "base")]
        return ", ".join([base.name, *(f"{key} {_said(table[key])}" for key in keys)])
    casts = recipe.casts()
    others: dict[str, Any] = {key: cast_table(cast) for key, cast in recipe.all_casts().items() if key not in OPERANDS}
    if recipe.layers != (LINEAR,):
        others["layers"] = recipe.layers
    formats = [casts[name].format if name in casts else "-" for name in OPERANDS]
    name = recipe.compute if not casts else formats[0] if len(set(formats)) == 1 else "/".join(formats)
    return ", ".join([name, *(f"{key} {_said(value)}" for key, value in others.items())])


def _said(value: Any) -> str:
    """Return the words that tell a value of a recipe's table apart: ``delayed``, ``e5m2 stochastic``, ``changed``."""
    if isinstance(value, str):
        return value
    if isinstance(value, Choice):
        return value.kind
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return " + ".join(value)
    if not isinstance(value, Mapping):
        return "changed"
    if "kind" in value:
        return str(value["kind"])
    words = [str(value[key]) for key in ("format", "rounding") if value.get(key, "nearest_even") != "nearest_even"]
    words += [f"{key} {_said(inner)}" for key, inner in value.items() if key not in CAST_KEYS]
    return " ".join(words) or "changed"
