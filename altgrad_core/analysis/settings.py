"""What a run was told and where it ran, as rows for the report: recipes, and nested tables side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from altgrad_core.analysis.table import MISSING
from altgrad_core.recipes.recipe import OPERANDS, STATES, conditions_text
from altgrad_core.recipes.resolve_cast import CAST_KEYS


def recipe_rows(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's long form as rows of a table and sentences."""
    kept = f"{recipe.get('compute', 'bf16')}, not cast"
    rows = []
    for operand in OPERANDS:
        rows.append((operand, kept, "", "", "") if recipe.get(operand) is None else _row(operand, recipe[operand]))
    for key in ("gradient", *STATES):
        cast = recipe.get(key)
        named = {} if key != "optimizer_state" or not isinstance(cast, Mapping) else without(cast, *CAST_KEYS)
        if cast is not None and (not named or "format" in cast):
            rows.append(_row(key, cast))
        rows += [_row(f"{key}.{state}", its) for state, its in named.items()]
    overrides = [
        (conditions_text(without(its, "recipe")), _short(its.get("recipe", ""))) for its in recipe.get("overrides", ())
    ]
    facts = [f"{key} {recipe[key]}" for key in ("compute", "backend") if key in recipe]
    name = recipe.get("name", "")
    if "layers" in recipe and (layers := f"layers {' + '.join(recipe['layers'])}") not in name:
        facts.append(layers)
    return {"name": name, "facts": facts, "rows": rows, "overrides": overrides}


def _row(what: str, cast: Any) -> tuple[str, str, str, str, str]:
    if not isinstance(cast, Mapping):
        return what, str(cast), "", "", ""
    its = (_choice(cast.get("scaling", "")), cast.get("rounding", ""), cast.get("saturation", ""))
    scaling, rounding, saturation = (str(part).replace("_", " ") for part in its)
    return what, str(cast.get("format", "")), scaling, rounding, saturation


def _choice(choice: Any) -> str:
    if not isinstance(choice, Mapping):
        return str(choice)
    options = []
    for key, value in choice.items():
        if isinstance(value, bool):
            options.append(key if value else f"no {key}")
        elif key != "kind":
            options.append(f"{key} {_plain(value)}")
    return f"{choice.get('kind', '')} ({', '.join(options)})" if options else str(choice.get("kind", ""))


def _short(recipe: Any) -> str:
    if not isinstance(recipe, Mapping):
        return str(recipe)
    casts = [
        f"{operand} {recipe[operand].get('format', '')}"
        for operand in OPERANDS
        if isinstance(recipe.get(operand), Mapping)
    ]
    name = str(recipe.get("name", ""))
    return f"{name} ({', '.join(casts)})" if casts and name else ", ".join(casts) or f"{name} (nothing cast)".strip()


def side_by_side(tables: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str], bool]]:
    """Return (key, value of each table, whether they are all the same), nested keys joined by dots."""
    flat = [dict(_leaves(table)) for table in tables]
    keys = dict.fromkeys(key for table in flat for key in table)
    rows = [(key, [table.get(key, MISSING) for table in flat]) for key in keys]
    return [(key, values, len(set(values)) == 1) for key, values in rows]


def _leaves(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            found += _leaves(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", _plain(value)))
    return found


def _plain(value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_choice(item) for item in value)
    if isinstance(value, int):
        return f"{value:,}" if value >= 100_000 else str(value)
    if isinstance(value, float):
        return repr(value) if len(repr(value)) <= 10 else f"{value:.6g}"
    return str(value)


def without(table: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Return the table less some of its keys."""
    return {key: value for key, value in table.items() if key not in keys}
