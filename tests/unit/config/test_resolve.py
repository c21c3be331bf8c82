"""Names and tables of recipes."""

from __future__ import annotations

from typing import Any

import pytest

from altgrad_core.errors import AltgradError
from altgrad_core.plugins import Choice, Plugins
from altgrad_core.recipes.recipe import Recipe
from altgrad_core.recipes.resolve import recipe_table, resolve_recipe


def test_named_recipe_and_format(plugins: Plugins) -> None:
    plain = resolve_recipe("bf16", plugins=plugins)
    assert (plain.name, plain.casts(), plain.compute) == ("bf16", {}, "bf16")
    hybrid = resolve_recipe("hybrid", plugins=plugins)
    assert [cast.format for cast in hybrid.casts().values()] == ["e4m3fn", "e4m3fn", "e5m2"]
    e3m4 = resolve_recipe("e3m4", plugins=plugins)
    assert e3m4.name == "e3m4"
    assert list(e3m4.casts()) == ["input", "weight", "grad_output"]
    assert {cast.format for cast in e3m4.casts().values()} == {"e3m4"}
    assert {cast.scaling for cast in e3m4.casts().values()} == {Choice("current")}
    assert e3m4.gradient is None


def test_the_table_is_the_default_of_the_operands(plugins: Plugins) -> None:
    recipe = resolve_recipe(
        {
            "input": "e4m3fn",
            "grad_output": {"format": "e5m2", "scaling": "none", "saturation": "propagate"},
            "gradient": "fp32",
            "scaling": {"kind": "delayed", "history": 4},
            "saturation": "none",
        },
        plugins=plugins,
    )
    assert recipe.name == "e4m3fn/-/e5m2"
    assert recipe.weight is None
    assert recipe.input is not None
    assert recipe.input.scaling.options.history == 4
    assert recipe.input.saturation == "none"
    assert recipe.grad_output is not None
    assert recipe.grad_output.scaling == Choice("none")
    assert recipe.grad_output.saturation == "propagate"
    # asked for, so cast, whatever the compute precision
    assert recipe.gradient is not None
    assert recipe.gradient.format == "fp32"
    assert recipe.gradient.scaling.kind == "delayed"


def test_a_format_with_the_range_of_fp32_is_not_scaled(plugins: Plugins) -> None:
    kinds = {
        name: resolve_recipe({"input": name}, plugins=plugins).casts()["input"].scaling.kind
        for name in ("bf16", "tf32", "fp32", "e8m3", "fp16", "e5m2")
    }
    assert kinds == {
        "bf16": "none",
        "tf32": "none",
        "fp32": "none",
        "e8m3": "none",
        "fp16": "current",
        "e5m2": "current",
    }
    assert (
        resolve_recipe({"input": "bf16", "scaling": "current"}, plugins=plugins).casts()["input"].scaling.kind
        == "current"
    )


def test_base(plugins: Plugins) -> None:
    recipe = resolve_recipe({"base": "hybrid", "scaling": "delayed", "input": "e3m4"}, plugins=plugins)
    assert recipe.name == "hybrid, input e3m4, scaling delayed"
    assert [cast.format for cast in recipe.casts().values()] == ["e3m4", "e4m3fn", "e5m2"]
    assert {cast.scaling.kind for cast in recipe.casts().values()} == {"delayed"}
    changed = resolve_recipe({"base": "hybrid", "weight": {"scaling": "none"}, "name": "mine"}, plugins=plugins)
    assert changed.name == "mine"
    assert changed.weight is not None
    assert (changed.weight.format, changed.weight.scaling.kind) == ("e4m3fn", "none")


def test_a_base_gives_its_scaling_unless_it_is_the_default_of_its_format(plugins: Plugins) -> None:
    def kind(base: dict[str, Any]) -> str:
        cast = resolve_recipe(base, plugins=plugins).input
        assert cast is not None
        return cast.scaling.kind

    assert kind({"base": "tf32", "input": "e5m2"}) == "current"
    assert kind({"base": "e5m2", "input": "tf32"}) == "none"
    assert kind({"base": "e5m2", "input": "tf32", "scaling": "delayed"}) == "delayed"


def test_overrides_come_before_those_of_the_base_and_follow_the_precision(plugins: Plugins) -> None:
    recipe = resolve_recipe(
        {"base": "careful", "compute": "fp32", "overrides": [{"match": "blocks.0.*", "recipe": "e5m2"}]},
        plugins=plugins,
    )
    assert [override.match for override in recipe.overrides] == ["blocks.0.*", "lm_head"]
    assert {override.recipe.compute for override in recipe.overrides} == {"fp32"}
    assert resolve_recipe(recipe_table(recipe), plugins=plugins) == recipe


SPECS: list[Any] = [
    "bf16", "fp32", "hybrid", "careful", "e5m2", "e4m3fn", "fp16",
    {"base": "e5m2", "scaling": {"kind": "delayed", "history": 3, "algorithm": "most_recent"}},
    {"input": "e4m3fn", "gradient": "e5m2", "compute": "fp32", "backend": "emulated"},
    {"weight": {"format": "e5m2", "saturation": "none"}, "overrides": [
        {"match": "a*", "recipe": {"input": "e3m4", "scaling": "none"}}, {"match": "b", "recipe": "bf16"}]},
    {},
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_the_long_form_means_the_same(plugins: Plugins, spec: Any) -> None:
    recipe = resolve_recipe(spec, plugins=plugins)
    assert isinstance(recipe, Recipe)
    assert resolve_recipe(recipe_table(recipe), plugins=plugins) == recipe


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (5, "expected the name of a recipe or a format, or a table, got 5"),
        ("circle", "The recipe 'circle' of the plugin 'altgrad_testing_builtins' is wrong: "
                   "base: The recipes circle -> circle go round in a circle."),
        ("wrong", "The recipe 'wrong' of the plugin 'altgrad_testing_builtins' is wrong: wieght: Unknown key 'wieght'. "
                  "Did you mean 'weight'? Known: backend, base, compute, grad_output, gradient, input, name, overrides, "
                  "rounding, saturation, scaling, weight."),
        ({"input": 5}, "input: expected the name of a format or a table, got 5"),
        ({"input": {"scaling": "none"}}, "input.format: missing; it has no default"),
        ({"input": {"format": "e5m2", "round": 1}}, "input.round: Unknown key 'round'. Did you mean 'rounding'? "
                                                    "Known: format, rounding, saturation, scaling."),
        ({"input": "e5m2", "rounding": "nearest"},
         'rounding: expected one of "nearest_even", got "nearest". Did you mean \'nearest_even\'?'),
        ({"input": "e5m2", "scaling": {"kind": "delayed", "history": 0}}, "scaling.history: must be >= 1, got 0"),
        ({"base": "bf16", "scaling": "none"}, "scaling: has no effect, because the recipe casts nothing; leave it out"),
        ({"compute": "fp16"}, 'compute: expected one of "bf16", "fp32", got "fp16". Did you mean \'bf16\'?'),
        ({"overrides": {}}, "overrides: expected an array, got {}"),
        ({"overrides": [{"match": 5, "recip": ""}]},
         "overrides[0].recip: Unknown key 'recip'. Did you mean 'recipe'? Known: match, recipe.\n"
         "overrides[0].recipe: missing; it has no default\noverrides[0].match: expected a text in quotes, got 5"),
        ({"overrides": [{"match": "x", "recipe": "fp32"}]},
         "overrides[0].recipe: an override cannot change the compute precision: 'fp32' computes in fp32, the recipe "
         "around it in bf16; use a recipe that computes in bf16"),
        ({"overrides": [{"match": "x", "recipe": {"gradient": "e5m2"}}]},
         "overrides[0].recipe: the recipe of an override cannot have 'gradient'; set it in the recipe around it"),
    ],
)  # fmt: skip
def test_errors(plugins: Plugins, spec: Any, message: str) -> None:
    with pytest.raises(AltgradError) as caught:
        resolve_recipe(spec, plugins=plugins)
    assert str(caught.value) == message


def test_an_unknown_name_is_neither_format_nor_recipe(plugins: Plugins) -> None:
    with pytest.raises(AltgradError, match=r"^Unknown recipe 'hybird'\. Did you mean 'hybrid'\?"):
        resolve_recipe("hybird", plugins=plugins)
    with pytest.raises(AltgradError, match=r"^Unknown format 'posit8'.* Nor is it a recipe\."):
        resolve_recipe("posit8", plugins=plugins)
    with pytest.raises(AltgradError, match=r"^input: Unknown format 'e5n2'"):
        resolve_recipe({"input": "e5n2"}, plugins=plugins)
