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
    assert recipe.name == "e4m3fn/-/e5m2, gradient fp32"
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
    "mxfp8_e4m3", "nvfp4", "nf4",
    {"base": "mxfp4", "scaling": {"kind": "mx", "mode": "floor"}},
    {"input": "e5m2", "rounding": "stochastic", "random_bits": 8, "saturation": "none"},
    {"weight_storage": {"format": "e4m3fn", "rounding": "stochastic", "random_bits": 4}, "saved_activations": "e3m4"},
    {"base": "hybrid", "optimizer_state": "mxfp8_e4m3"},
    {"optimizer_state": {"format": "e5m2", "exp_avg_sq": {"format": "bf16", "rounding": "up"}}},
    {"optimizer_state": {"rounding": "stochastic", "exp_avg": "e5m2", "exp_avg_sq": "mxfp8_e5m2"}, "overrides": [
        {"match": "lm_head", "recipe": {"base": "e5m2", "weight_storage": "bf16"}}]},
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_the_long_form_means_the_same(plugins: Plugins, spec: Any) -> None:
    recipe = resolve_recipe(spec, plugins=plugins)
    assert isinstance(recipe, Recipe)
    assert resolve_recipe(recipe_table(recipe), plugins=plugins) == recipe


NOT_STOCHASTIC = 'has no effect, because the rounding is not stochastic; add rounding = "stochastic" or leave it out'
OWN_SCALES = (
    "the block format '{}' has scales of its own, kind '{}', so '{}' cannot choose them; leave scaling out, or cast to "
    "its elements' format '{}'"
)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (5, "expected the name of a recipe or a format, or a table, got 5"),
        ("circle", "The recipe 'circle' of the plugin 'altgrad_testing_builtins' is wrong: "
                   "base: The recipes circle -> circle go round in a circle."),
        ("wrong", "The recipe 'wrong' of the plugin 'altgrad_testing_builtins' is wrong: wieght: Unknown key 'wieght'. "
                  "Did you mean 'weight'? Known: backend, base, compute, fast_accumulation, grad_output, gradient, input, "
                  "layers, name, optimizer_state, overrides, random_bits, rounding, saturation, saved_activations, scaling, "
                  "weight, weight_storage."),
        ({"input": 5}, "input: expected the name of a format or a table, got 5"),
        ({"input": {"scaling": "none"}}, "input.format: missing; it has no default"),
        ({"input": {"format": "e5m2", "round": 1}}, "input.round: Unknown key 'round'. Did you mean 'rounding'? "
                                                    "Known: format, random_bits, rounding, saturation, scaling."),
        ({"input": "e5m2", "rounding": "nearest"},
         'rounding: expected one of "nearest_even", "nearest_away", "toward_zero", "up", "down", "stochastic", got '
         '"nearest". Did you mean \'nearest_even\'?'),
        ({"input": "e5m2", "scaling": {"kind": "delayed", "history": 0}}, "scaling.history: must be >= 1, got 0"),
        ({"base": "bf16", "scaling": "none"}, "scaling: has no effect, because the recipe casts nothing; leave it out"),
        ({"compute": "fp16"}, 'compute: expected one of "bf16", "fp32", got "fp16". Did you mean \'bf16\'?'),
        ({"overrides": {}}, "overrides: expected an array, got {}"),
        ({"overrides": [{"match": 5, "recip": ""}]},
         "overrides[0].recip: Unknown key 'recip'. Did you mean 'recipe'? Known: larger_than, match, recipe, smaller_than, "
         "type.\n"
         "overrides[0].match: expected a text in quotes, got 5\noverrides[0].recipe: missing; it has no default"),
        ({"overrides": [{"recipe": "bf16"}]},
         "overrides[0].match: missing; an override says which layers it is for: match, type, smaller_than, larger_than"),
        ({"overrides": [{"smaller_than": "1k", "recipe": "bf16"}]},
         'overrides[0].smaller_than: expected an integer, got "1k"'),
        ({"overrides": [{"match": "x", "recipe": "fp32"}]},
         "overrides[0].recipe: an override cannot change the compute precision: 'fp32' computes in fp32, the recipe "
         "around it in bf16; use a recipe that computes in bf16"),
        ({"overrides": [{"match": "x", "recipe": {"gradient": "e5m2"}}]},
         "overrides[0].recipe: the recipe of an override cannot have 'gradient'; set it in the recipe around it"),
        ({"overrides": [{"match": "x", "recipe": {"optimizer_state": "e5m2"}}]},
         "overrides[0].recipe: the recipe of an override cannot have 'optimizer_state'; set it in the recipe around it"),
        ({"overrides": [{"match": "x", "recipe": {"saved_activations": "e5m2"}}]},
         "overrides[0].recipe: the recipe of an override cannot have 'saved_activations'; set it in the recipe around it"),
        ({"input": "e5m2", "random_bits": 8}, f"random_bits: {NOT_STOCHASTIC}"),
        ({"input": {"format": "e5m2", "random_bits": 8}}, f"input.random_bits: {NOT_STOCHASTIC}"),
        ({"input": "e5m2", "rounding": "stochastic", "random_bits": 33}, "random_bits: expected 1 to 32, got 33"),
        ({"input": "e5m2", "rounding": "stochastic", "random_bits": 0}, "random_bits: expected 1 to 32, got 0"),
        ({"input": "e5m2", "random_bits": "8"}, 'random_bits: expected an integer, got "8"'),
        ({"input": "mxfp4", "scaling": "delayed"}, f"input: {OWN_SCALES.format('mxfp4', 'mx', 'delayed', 'e2m1fn')}"),
        ({"weight": {"format": "nvfp4", "scaling": "mx"}},
         f"weight.scaling: {OWN_SCALES.format('nvfp4', 'nvfp4', 'mx', 'e2m1fn')}"),
        ({"base": "mxfp4", "scaling": "current"},
         "\n".join(f"{operand}: {OWN_SCALES.format('mxfp4', 'mx', 'current', 'e2m1fn')}"
                   for operand in ("input", "weight", "grad_output"))),
        ({"weight_storage": "e5m2", "rounding": "up", "scaling": "none"},
         "scaling: holds for input, weight, grad_output, gradient alone, none of which is cast; say it in the cast\n"
         "rounding: holds for input, weight, grad_output, gradient alone, none of which is cast; say it in the cast"),
        ({"weight_storage": {"format": "e5m2", "random_bits": 4}}, f"weight_storage.random_bits: {NOT_STOCHASTIC}"),
        ({"saved_activations": {"scaling": "none"}}, "saved_activations.format: missing; it has no default"),
        ({"optimizer_state": 8}, "optimizer_state: expected the name of a format or a table, got 8"),
        ({"optimizer_state": {}}, "optimizer_state.format: missing; it has no default"),
        ({"optimizer_state": {"rounding": "up"}}, "optimizer_state.format: missing; it has no default"),
        ({"optimizer_state": {"fromat": "e5m2"}},
         "optimizer_state.fromat: Unknown key 'fromat'. Did you mean 'format'? Other keys name a tensor of the optimizer."),
        ({"optimizer_state": {"exp_avg": 5, "exp_avg_sq": {"rounding": "up"}}},
         "optimizer_state.exp_avg: expected the name of a format or a table, got 5\n"
         "optimizer_state.exp_avg_sq.format: missing; it has no default"),
        ({"optimizer_state": {"exp_avg": "e5m2", "random_bits": 4}}, f"optimizer_state.random_bits: {NOT_STOCHASTIC}"),
    ],
)  # fmt: skip
def test_errors(plugins: Plugins, spec: Any, message: str) -> None:
    with pytest.raises(AltgradError) as caught:
        resolve_recipe(spec, plugins=plugins)
    assert str(caught.value) == message


def test_an_unknown_name_is_neither_format_nor_recipe(plugins: Plugins) -> None:
    with pytest.raises(AltgradError, match=r"^Unknown recipe 'hybird'\. Did you mean 'hybrid'\?"):
        resolve_recipe("hybird", plugins=plugins)
    with pytest.raises(AltgradError, match=r"^Unknown format 'posit9'.* Nor is it a recipe\."):
        resolve_recipe("posit9", plugins=plugins)
    with pytest.raises(AltgradError, match=r"^input: Unknown format 'e5n2'"):
        resolve_recipe({"input": "e5n2"}, plugins=plugins)


def test_the_scaling_of_a_cast_that_names_none(plugins: Plugins) -> None:
    kinds = {
        name: resolve_recipe({"weight_storage": name}, plugins=plugins).weight_storage.scaling.kind
        for name in ("e5m2", "bf16", "nf4", "mxfp8_e5m2", "nvfp4")
    }
    assert kinds == {"e5m2": "current", "bf16": "none", "nf4": "current", "mxfp8_e5m2": "mx", "nvfp4": "nvfp4"}


def test_a_block_format_brings_and_takes_its_scaling_along(plugins: Plugins) -> None:
    def scaling(spec: dict[str, Any]) -> Choice:
        return resolve_recipe(spec, plugins=plugins).casts()["input"].scaling

    assert scaling({"base": "e5m2", "input": "mxfp4"}).kind == "mx"
    assert scaling({"base": "e5m2", "input": {"format": "nvfp4"}}).kind == "nvfp4"
    assert scaling({"base": "mxfp4", "input": "e5m2"}) == Choice("current")
    assert scaling({"base": "mxfp4", "scaling": {"kind": "mx", "mode": "floor"}}).options.mode == "floor"
    assert scaling({"input": {"format": "mxfp4", "scaling": {"kind": "mx", "mode": "floor"}}}).options.mode == "floor"


def test_what_the_table_says_holds_for_operands_and_gradients_only(plugins: Plugins) -> None:
    recipe = resolve_recipe(
        {
            "base": "e5m2",
            "gradient": "e5m2",
            "weight_storage": "e5m2",
            "optimizer_state": "e5m2",
            "saved_activations": "e5m2",
            "scaling": "delayed",
            "rounding": "stochastic",
            "random_bits": 8,
        },
        plugins=plugins,
    )
    said = {key: (cast.scaling.kind, cast.rounding, cast.random_bits) for key, cast in recipe.all_casts().items()}
    loud, quiet = ("delayed", "stochastic", 8), ("current", "nearest_even", 32)
    assert said == {
        "input": loud, "weight": loud, "grad_output": loud, "gradient": loud,
        "weight_storage": quiet, "saved_activations": quiet, "optimizer_state": quiet,
    }  # fmt: skip


def test_random_bits_are_for_the_casts_that_round_stochastically(plugins: Plugins) -> None:
    recipe = resolve_recipe(
        {"input": "e5m2", "grad_output": {"format": "e5m2", "rounding": "stochastic"}, "random_bits": 4},
        plugins=plugins,
    )
    assert [cast.random_bits for cast in recipe.casts().values()] == [32, 4]
    back = resolve_recipe({"input": "e5m2", "rounding": "stochastic", "random_bits": 4}, plugins=plugins)
    assert back.casts()["input"].random_bits == 4


def test_casts_of_the_optimizer_by_name(plugins: Plugins) -> None:
    def casts(spec: dict[str, Any]) -> dict[str, tuple[str, str]]:
        state = resolve_recipe({"optimizer_state": spec}, plugins=plugins).optimizer_state
        assert state is not None
        return {name: (cast.format, cast.rounding) for name, cast in state.casts().items()}

    assert casts({"exp_avg": "e5m2", "rounding": "up"}) == {"exp_avg": ("e5m2", "up")}
    assert casts({"format": "e5m2", "rounding": "up", "exp_avg_sq": {"format": "bf16", "rounding": "down"}}) == {
        "*": ("e5m2", "up"),
        "exp_avg_sq": ("bf16", "down"),
    }


def test_states_are_in_the_name(plugins: Plugins) -> None:
    spec = {"weight_storage": "e5m2", "optimizer_state": {"format": "e4m3fn", "exp_avg_sq": "bf16"}}
    recipe = resolve_recipe(spec, plugins=plugins)
    assert recipe.name == "bf16, weight_storage e5m2, optimizer_state e4m3fn, optimizer_state.exp_avg_sq bf16"
    named = {"format": "e5m2", "rounding": "stochastic"}
    spec = {"base": "hybrid", "weight_storage": named, "optimizer_state": {"exp_avg": named, "exp_avg_sq": "bf16"}}
    assert resolve_recipe(spec, plugins=plugins).name == (
        "hybrid, weight_storage e5m2 stochastic, optimizer_state exp_avg e5m2 stochastic exp_avg_sq bf16"
    )
