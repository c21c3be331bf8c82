"""The recipes: which operand of which GEMM is in which format, as a picture and as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from altgrad_core.analysis.figures import REST, Style
from altgrad_core.analysis.report.figure import Drawn
from altgrad_core.analysis.settings import recipe_rows
from altgrad_core.recipes.recipe import OPERANDS

MOST_NAMES = 8
# The GEMMs of a linear layer: name, its two operands, its result (altgrad_core.recipes.recipe has the shapes).
_GEMMS = (
    ("fprop", "input", "weight", "output"),
    ("dgrad", "grad_output", "weight", "gradient of input"),
    ("wgrad", "grad_output", "input", "gradient of weight"),
)
# What a step leaves behind, in the order in which it comes to be.
_KEPT = ("saved_activations", "gradient", "optimizer_state", "weight_storage")


@attrs.frozen(kw_only=True)
class Box:
    """A tensor in the picture."""

    what: str
    format: str
    """Its format; the compute precision, or FP32, where it is not cast."""
    scaling: str
    cast: bool


@attrs.frozen(kw_only=True)
class Gemm:
    """One line of the picture: left times right gives the result."""

    name: str
    left: Box
    right: Box
    result: Box


@attrs.frozen(kw_only=True)
class RecipeUse:
    """A recipe, and the runs that have it."""

    runs: Sequence[tuple[str, Style]]
    """Those that are named."""
    more: int
    """How many are not."""
    gemms: Sequence[Gemm]
    """Of a linear layer; none where the recipe leaves these alone."""
    kept: Sequence[Box]
    """What else is cast: gradients, optimizer state, stored weights, saved activations."""
    table: Mapping[str, Any]
    """``recipe_rows``."""
    backends: Sequence[str]
    """What multiplied the operands of how many layers, and why, as the runs reported it."""


def recipe_uses(drawn: Sequence[Drawn]) -> list[RecipeUse]:
    """Return every recipe once, in the order of the runs."""
    using: dict[str, list[Drawn]] = {}
    for its in drawn:
        using.setdefault(json.dumps(its.run.config.get("recipe", {}), sort_keys=True), []).append(its)
    return [_use(json.loads(recipe), its) for recipe, its in using.items()]


def _use(recipe: Mapping[str, Any], users: Sequence[Drawn]) -> RecipeUse:
    named = sorted(users, key=lambda its: its.look is REST)[:MOST_NAMES]
    table = recipe_rows(recipe)
    compute = str(recipe.get("compute", "bf16"))
    boxes = {what: _box(what, format_, scaling, compute) for what, format_, scaling, *_ in table["rows"]}
    return RecipeUse(
        runs=[(its.label, its.look) for its in named],
        more=len(users) - len(named),
        gemms=[
            Gemm(
                name=name, left=boxes[left], right=boxes[right],
                result=Box(what=result, format=compute, scaling="", cast=False),
            )
            for name, left, right, result in _GEMMS
            if "linear" in recipe.get("layers", ["linear"])
        ],
        kept=[box for what in _KEPT for key, box in boxes.items() if key.split(".")[0] == what],
        table=table,
        backends=_backends(users),
    )  # fmt: skip


def _backends(users: Sequence[Drawn]) -> list[str]:
    """Return every backend once: runs of one recipe may have been trained on different machines."""
    reported = [its.run.facts.get("recipe", {}).get("backends", {}) for its in users]
    found = [(len(layers), how) for backends in reported for how, layers in backends.items()]
    return [f"Backend of {count} {'layers' if count > 1 else 'layer'}: {how}" for count, how in dict.fromkeys(found)]


def _box(what: str, format_: str, scaling: str, compute: str) -> Box:
    cast = not (what in OPERANDS and format_.endswith("not cast"))
    return Box(
        what=what.replace("_", " "),
        format=format_ if cast else compute,
        scaling=scaling.partition(" (")[0] if cast else "not cast",
        cast=cast,
    )
