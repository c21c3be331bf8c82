from __future__ import annotations

import itertools
import math

import pytest
import torch
from states import STOCHASTIC, Small
from torch import Tensor, nn

import altgrad_core as altgrad
from altgrad_core.errors import AltgradError
from altgrad_core.recipes.control import CastControl
from altgrad_core.recipes.resolve import resolve_recipe
from altgrad_core.recipes.step_casts import StepCasts, load_matching
from altgrad_core.recipes.weights import WeightStorage


def is_on_a_grid(weight: Tensor, format: str) -> bool:
    """Tell whether every element is 2^k times a value of the format, with one k for the tensor."""
    top = altgrad.get_format(format).max_finite
    least = math.ceil(math.log2(weight.abs().max().item() / top))
    return any(torch.equal(altgrad.quantize(weight, format, scale=2.0**k), weight) for k in (least, least + 1))


@pytest.mark.parametrize("rounding", ["nearest_even", "stochastic"])
@pytest.mark.parametrize("format", ["e5m2", "e4m3fn", "e0m7f"])
def test_every_matrix_holds_values_of_the_format_from_the_start_and_after_each_step(format: str, rounding: str) -> None:
    small = Small({"weight_storage": {"format": format, "rounding": rounding}})
    for _ in range(4):
        for layer in (small.model[0], small.model[3]):
            assert is_on_a_grid(layer.weight.detach(), format)
            assert not is_on_a_grid(layer.bias.detach(), format), "vectors stay as they are"
        small.step()
    assert {state for _, state, _ in small.states()} == {"step", "exp_avg", "exp_avg_sq"}, "no other copy anywhere"


def test_blocks_have_scales_of_their_own() -> None:
    small = Small({"weight_storage": "mxfp4"})
    weight = small.model[0].weight
    with torch.no_grad():
        weight[3] *= 1e-6
    small.step()
    assert weight[3].count_nonzero() > 4
    assert torch.equal(altgrad.quantize(weight.detach(), "mxfp4"), weight)


def test_casting_again_changes_nothing() -> None:
    """Under power-of-two scales, which may even shrink, every value is a value again: in any rounding mode."""
    for format, rounding in itertools.product(("e5m2", "e4m3fn", "e2m1fn", "mxfp6_e2m3"), ("up", "stochastic")):
        small = Small({"weight_storage": {"format": format, "rounding": rounding}})
        before = small.model[0].weight.detach().clone()
        small.casts.begin_step(77)
        small.casts.after_update()
        assert torch.equal(small.model[0].weight, before)
        with torch.no_grad():
            small.model[0].weight[small.model[0].weight.abs() > 0.2] = 0.125
        before = small.model[0].weight.detach().clone()
        small.casts.after_update()
        assert torch.equal(small.model[0].weight, before), "a smaller amax"


def test_weights_of_another_training_are_cast_by_their_own_magnitudes() -> None:
    """What a training without casts has learnt is large beside the fresh weights, which were cast first."""
    delayed = {"kind": "delayed", "history": 4, "power_of_two": True}
    trained = Small({"compute": "fp32"})
    with torch.no_grad():
        trained.model[0].weight *= 20
    adopting = Small({"weight_storage": {"format": "e4m3fn", "scaling": delayed}})
    load_matching(adopting.model, trained.model.state_dict())
    assert not adopting.casts.adopt_state_dict(trained.casts.state_dict(), recast=True)
    expected = trained.model[0].weight.detach()
    assert (adopting.model[0].weight - expected).norm() < 0.04 * expected.norm()
    assert adopting.casts.state_dict()["weight_storage"]["casts.0.scaling.amax_history"].count_nonzero() == 1


def test_the_scaling_state_is_that_of_the_weight_and_not_of_its_place_among_the_stored_ones() -> None:
    delayed = {"kind": "delayed", "history": 4, "power_of_two": True}
    recipe = {"weight_storage": {"format": "e4m3fn", "scaling": delayed}}
    both = Small(recipe)
    both.train(4)
    second = Small({**recipe, "overrides": [{"match": "0", "recipe": "fp32"}]})
    second.casts.adopt_state_dict(both.casts.state_dict(), recast=False)
    stored, kept = second.casts.state_dict()["weight_storage"], both.casts.state_dict()["weight_storage"]
    assert 0 < len(stored) < len(kept)
    assert all(torch.equal(value, kept[name]) for name, value in stored.items())


def test_nearest_loses_small_updates_and_stochastic_keeps_them() -> None:
    """Updates of Adam are about the learning rate, here a fortieth of the spacing at the larger weights."""
    master = Small({"compute": "fp32"}).train(300)
    nearest = Small({"weight_storage": "e5m2"})
    first = [p.detach().clone() for p in nearest.model.parameters() if p.dim() == 2]
    stalled = nearest.train(300)
    unmoved = [(p == f).double().mean() for p, f in zip((nearest.model[0].weight, nearest.model[3].weight), first)]
    stochastic = Small({"weight_storage": {"format": "e5m2", **STOCHASTIC}}).train(300)
    assert min(unmoved) > 0.6
    assert stalled > 1.5 * master
    assert stochastic < master + 0.3 * (stalled - master)


def test_the_mean_of_stochastic_storage_is_the_weight() -> None:
    linear = nn.Linear(64, 64)
    recipe = resolve_recipe({"weight_storage": {"format": "e4m3fn", **STOCHASTIC}})
    control = CastControl()
    storage = WeightStorage(linear, recipe, control)
    exact, total = linear.weight.detach().clone(), torch.zeros(64, 64)
    for step in range(400):
        control.begin_step(step)
        with torch.no_grad():
            linear.weight.copy_(exact)
        storage()
        total += linear.weight.detach()
    spacing = exact.abs().max() / 8
    assert (total / 400 - exact).abs().max() < 5 * 0.5 * spacing / math.sqrt(400)
    assert abs((total / 400 - exact).mean()) < 0.001 * spacing


def test_overrides_by_class_and_size_hold_for_converted_layers_too() -> None:
    """After ``convert`` the class of a layer is another one; what is meant is the one that it had."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Embedding(8, 4))
    inner = {"base": "e5m2", "weight_storage": "e2m1fn"}
    override = {"type": "Linear", "larger_than": 16, "recipe": inner}
    recipe = {"base": "e5m2", "weight_storage": "e3m4", "overrides": [override]}
    altgrad.convert(model, recipe)
    storage = WeightStorage(model, resolve_recipe(recipe), CastControl())
    assert [cast.element.name for cast in storage.casts.values()] == ["e2m1fn", "e3m4", "e3m4"]


def test_overrides_say_which_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(32, 8), nn.Linear(8, 32, bias=False)
            self.mix, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
            self.head.weight = self.embedding.weight
            self.last.weight.requires_grad_(False)

    def stored(recipe: dict) -> dict[str, str]:
        storage = WeightStorage(Tied(), resolve_recipe(recipe), CastControl())
        return {name: cast.how.format for (name, _), cast in zip(storage._weights, storage.casts.values(), strict=True)}

    assert stored({"weight_storage": "e5m2"}) == {"embedding.weight": "e5m2", "mix.weight": "e5m2"}
    head = [{"match": "head", "recipe": "bf16"}]
    assert stored({"weight_storage": "e5m2", "overrides": head}) == {"mix.weight": "e5m2"}
    mix = [{"match": "mix", "recipe": {"weight_storage": "e3m4"}}]
    assert stored({"overrides": mix}) == {"mix.weight": "e3m4"}
    model = Tied()
    StepCasts(model, torch.optim.SGD(model.parameters()), resolve_recipe({"overrides": mix}), seed=0)
    assert is_on_a_grid(model.mix.weight.detach(), "e3m4")


def test_an_override_of_an_embedding_is_used_where_weights_are_stored() -> None:
    def unused(recipe: dict) -> tuple[str, ...]:
        model = nn.Sequential(nn.Embedding(32, 8), nn.LayerNorm(8), nn.Linear(8, 8))
        overrides = [{"match": name, "recipe": "bf16"} for name in "012"]
        return altgrad.convert(model, {**recipe, "overrides": overrides})[1].unused_overrides

    assert unused({"weight_storage": "e5m2"}) == ("1",)
    assert unused({"base": "e5m2"}) == ("0", "1")


@pytest.mark.parametrize("spec", ["nvfp4", {"format": "e5m2", "scaling": {"kind": "current", "power_of_two": False}}])
def test_scales_are_powers_of_two(spec: object) -> None:
    with pytest.raises(AltgradError, match=r"^weight_storage of '0\.weight' needs scales that are powers of two, .*;"):
        Small({"weight_storage": spec})


def test_statistics_and_skipped_casts() -> None:
    small = Small({"weight_storage": "e2m1fn", "gradient": "e5m2"})
    small.casts.control.collecting = True
    small.step()
    taken = small.casts.control.take()
    assert {"0.weight.weight_storage", "3.weight.weight_storage", "0.weight.gradient", "2.bias.gradient"} <= set(taken)
    assert "0.bias.weight_storage" not in taken
    assert taken["0.weight.weight_storage"][0] == 16 * 32
