"""From what users write, ``"hybrid"`` or a table, to a ``Recipe``, and back. Nothing here imports torch.

The short form is a name: that of a recipe, or of any number format (all three operands in that format, scaled by
their current amax; a format with the range of FP32, such as bf16 or tf32, needs no scale and gets none). The long form
is a table::

    { input = "e4m3fn", weight = "e4m3fn", grad_output = { format = "e5m2", scaling = "delayed" }, scaling = "current" }
    { base = "e5m2", scaling = { kind = "delayed", history = 8 }, overrides = [{ match = "lm_head", recipe = "bf16" }] }

``scaling``, ``rounding`` and ``saturation`` of the table hold for every operand that does not say otherwise itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from altgrad_core.errors import AltgradError, nearest, unknown
from altgrad_core.numerics.formats import FloatFormat
from altgrad_core.numerics.modes import Rounding, Saturation
from altgrad_core.numerics.registry import get_format
from altgrad_core.plugins import Choice, Plugins, installed
from altgrad_core.recipes.recipe import OPERANDS, Backend, Compute, OperandCast, Override, Recipe
from altgrad_core.spelling import shown
from altgrad_core.structure import Collector, Problem, StructureError, choose, structure, unstructure

CASTS = (*OPERANDS, "gradient")
_HOW = {"rounding": Rounding, "saturation": Saturation}
_CAST_KEYS = ("format", "scaling", *_HOW)
_KEYS = ("name", "base", *CASTS, "scaling", *_HOW, "compute", "backend", "overrides")


def resolve_recipe(spec: str | Mapping[str, Any], *, plugins: Plugins | None = None) -> Recipe:
    """Return the recipe that a name or a table means; ``plugins`` defaults to the installed ones.

    Raises ``AltgradError`` with every unknown key, format, recipe, scaling and wrong value, each with its key path.
    """
    return _Resolver(installed() if plugins is None else plugins).resolve(spec, "bf16", ())


def recipe_table(recipe: Recipe) -> dict[str, Any]:
    """Return the long form, which ``resolve_recipe`` turns back into an equal recipe."""
    table: dict[str, Any] = {"name": recipe.name, "compute": recipe.compute, "backend": recipe.backend}
    for name in CASTS:
        cast: OperandCast | None = getattr(recipe, name)
        if cast is not None:
            table[name] = {
                "format": cast.format,
                "rounding": cast.rounding,
                "saturation": cast.saturation,
                "scaling": {"kind": cast.scaling.kind, **unstructure(cast.scaling.options)},
            }
    if recipe.overrides:
        table["overrides"] = [{"match": o.match, "recipe": recipe_table(o.recipe)} for o in recipe.overrides]
    return table


@attrs.frozen
class _Resolver:
    plugins: Plugins

    def resolve(self, spec: Any, compute: Compute, within: tuple[str, ...]) -> Recipe:
        """``compute`` holds where the recipe names none; ``within`` are the names being resolved, against circles."""
        if isinstance(spec, Recipe):
            return spec
        if isinstance(spec, str):
            return self._named(spec, compute, within)
        if isinstance(spec, Mapping):
            return self._table(spec, compute, within)
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
            format = self._format(name)
        except AltgradError as error:
            recipes = self.plugins.names("recipe")
            if near := nearest(name, recipes):
                raise AltgradError(
                    f"Unknown recipe '{name}'.{near} Recipes: {', '.join(recipes)}; any format is a recipe, too."
                ) from error
            raise AltgradError(f"{error} Nor is it a recipe. Recipes: {', '.join(recipes) or 'none'}.") from error
        cast = OperandCast(format=format, scaling=self._default_scaling(format))
        return Recipe(name=format, input=cast, weight=cast, grad_output=cast, compute=compute)

    def _format(self, name: str) -> str:
        extension = self.plugins.find("format", name)
        return extension.name if extension is not None else get_format(name).name

    def _default_scaling(self, format: str) -> Choice:
        extension = self.plugins.find("format", format)
        found = get_format(format if extension is None else extension.value)
        wide = isinstance(found, FloatFormat) and found.max_finite >= 2.0**127
        return choose(self.plugins, "scaling", "none" if wide else "current")

    def _table(self, table: Mapping[str, Any], compute: Compute, within: tuple[str, ...]) -> Recipe:
        collector = Collector()
        for key in table:
            if key not in _KEYS:
                collector.add((key,), unknown("key", str(key), _KEYS))
        values: dict[str, Any] = {}
        for key, hint in (("name", str), ("compute", Compute), ("backend", Backend)):
            if key in table:
                with collector.at(key):
                    values[key] = structure(table[key], hint)  # type: ignore[arg-type]
        compute = values.get("compute", compute)
        base = Recipe(name="", compute=compute)
        if "base" in table:
            with collector.at("base"):
                base = self._named(structure(table["base"], str), compute, within)
        compute = values.get("compute", base.compute)
        inherited = [attrs.evolve(o, recipe=attrs.evolve(o.recipe, compute=compute)) for o in base.overrides]
        values["overrides"] = tuple(inherited)
        how = self._how(table, collector)
        for name in CASTS:
            with collector.at(name):
                values[name] = self._cast(table.get(name), getattr(base, name), how)
        if not collector.problems and not any(values[name] for name in CASTS):
            for key in how:
                collector.add((key,), "has no effect, because the recipe casts nothing; leave it out")
        if "overrides" in table:
            with collector.at("overrides"):
                values["overrides"] = (*self._overrides(table["overrides"], compute, within), *inherited)
        collector.check()
        recipe = attrs.evolve(base, **values)
        return recipe if "name" in values else attrs.evolve(recipe, name=_name(recipe, base, table))

    def _how(self, table: Mapping[str, Any], collector: Collector) -> dict[str, Any]:
        """Return what the table says on scaling, rounding and saturation."""
        found: dict[str, Any] = {}
        if "scaling" in table:
            with collector.at("scaling"):
                found["scaling"] = choose(self.plugins, "scaling", table["scaling"])
        for key, hint in _HOW.items():
            if key in table:
                with collector.at(key):
                    found[key] = structure(table[key], hint)  # type: ignore[arg-type]
        return found

    def _cast(self, spec: Any, base: OperandCast | None, how: Mapping[str, Any]) -> OperandCast | None:
        if spec is None:
            return None if base is None else attrs.evolve(base, **how)
        if not isinstance(spec, str | Mapping):
            raise StructureError([Problem((), f"expected the name of a format or a table, got {shown(spec)}")])
        collector, values = Collector(), dict(how)
        if isinstance(spec, str):
            with collector.at():
                values["format"] = self._format(spec)
        else:
            for key in spec:
                if key not in _CAST_KEYS:
                    collector.add((key,), unknown("key", str(key), _CAST_KEYS))
            values |= self._how(spec, collector)
            if "format" in spec:
                with collector.at("format"):
                    values["format"] = self._format(structure(spec["format"], str))
            elif base is None:
                collector.add(("format",), "missing; it has no default")
        collector.check()
        if base is not None and ("format" not in values or base.scaling != self._default_scaling(base.format)):
            return attrs.evolve(base, **values)
        if base is not None:  # a format that needs scaling may replace one that does not
            values = {"rounding": base.rounding, "saturation": base.saturation, **values}
        if "scaling" not in values:
            values["scaling"] = self._default_scaling(values["format"])
        return OperandCast(**values)

    def _overrides(self, spec: Any, compute: Compute, within: tuple[str, ...]) -> list[Override]:
        collector, overrides = Collector(), []
        for index, item in enumerate(structure(spec, tuple[Mapping[str, Any], ...])):
            with collector.at(index):
                inner = Collector()
                for key in item:
                    if key not in ("match", "recipe"):
                        inner.add((key,), unknown("key", str(key), ("match", "recipe")))
                for key in ("match", "recipe"):
                    if key not in item:
                        inner.add((key,), "missing; it has no default")
                match, recipe = "", None
                if "match" in item:
                    with inner.at("match"):
                        match = structure(item["match"], str)
                if "recipe" in item:
                    with inner.at("recipe"):
                        recipe = self._override_recipe(item["recipe"], compute, within)
                inner.check()
                assert recipe is not None
                overrides.append(Override(match=match, recipe=recipe))
        collector.check()
        return overrides

    def _override_recipe(self, spec: Any, compute: Compute, within: tuple[str, ...]) -> Recipe:
        recipe = self.resolve(spec, compute, within)
        if recipe.compute != compute:
            raise AltgradError(
                f"an override cannot change the compute precision: '{recipe.name}' computes in {recipe.compute}, "
                f"the recipe around it in {compute}; use a recipe that computes in {compute}"
            )
        for key, what in (("gradient", recipe.gradient), ("overrides", recipe.overrides)):
            if what:
                raise AltgradError(f"the recipe of an override cannot have '{key}'; set it in the recipe around it")
        return recipe


def _name(recipe: Recipe, base: Recipe, table: Mapping[str, Any]) -> str:
    """Return a name that tells the recipe apart: ``e5m2, scaling delayed``, or ``e4m3fn/e4m3fn/e5m2``."""
    if "base" in table:
        changes = [base.name]
        for key in (key for key in _KEYS if key in table and key not in ("name", "base")):
            value = table[key]
            if isinstance(value, Choice):
                value = value.kind
            elif isinstance(value, Mapping):
                value = value.get("kind", value.get("format", "changed"))
            elif not isinstance(value, str):
                value = "changed"
            changes.append(f"{key} {value}")
        return ", ".join(changes)
    casts = recipe.casts()
    formats = [casts[name].format if name in casts else "-" for name in OPERANDS]
    if not casts:
        return recipe.compute
    return formats[0] if len(set(formats)) == 1 else "/".join(formats)
