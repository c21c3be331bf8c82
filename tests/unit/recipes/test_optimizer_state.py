from __future__ import annotations

import functools

import pytest
import torch
from states import STOCHASTIC, Small

import altgrad_core as altgrad
from altgrad_core.errors import AltgradError
from altgrad_core.recipes.recipe import OptimizerStateCasts
from altgrad_core.recipes.resolve import resolve_recipe
from altgrad_core.recipes.step_casts import load_matching


def test_both_moments_hold_values_of_the_format() -> None:
    small = Small({"optimizer_state": "mxfp8_e4m3"})
    for _ in range(3):
        small.step()
        for name, state, tensor in small.states():
            if state == "step":
                assert tensor.item() == small.step_number
            else:
                assert torch.equal(altgrad.quantize(tensor, "mxfp8_e4m3"), tensor), (name, state)
    assert any(not torch.equal(altgrad.quantize(p.detach(), "e4m3fn"), p) for p in small.model.parameters())


def test_each_moment_in_a_format_of_its_own() -> None:
    """An unsigned format has a bit more for the second moment."""
    casts = {"exp_avg": "mxfp8_e4m3", "exp_avg_sq": {"format": "binary8p4uf", "scaling": "blockwise"}}
    small = Small({"optimizer_state": casts})
    small.train(4)
    seen = {state: tensor for name, state, tensor in small.states() if name == "0.weight"}
    assert torch.equal(altgrad.quantize(seen["exp_avg"], "mxfp8_e4m3"), seen["exp_avg"])
    assert (seen["exp_avg_sq"] > 0).all()
    for row in seen["exp_avg_sq"]:
        significand, _ = torch.frexp(row)
        assert torch.equal(significand * 16, (significand * 16).round()), "four significant bits"


def test_a_moment_that_is_not_named_is_kept() -> None:
    small = Small({"optimizer_state": {"exp_avg": "e5m2"}})
    small.train(4)
    seen = {state: tensor for name, state, tensor in small.states() if name == "0.weight"}
    assert torch.unique(seen["exp_avg"].frexp()[0].abs()).numel() <= 5
    assert torch.unique(seen["exp_avg_sq"].frexp()[0]).numel() > 100


def test_any_optimizer_whose_tensors_have_the_shape_of_the_parameter() -> None:
    def momentum(parameters: object, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9)

    small = Small({"optimizer_state": "e5m2"}, optimizer=momentum)
    small.train(4)
    (buffer,) = [tensor for name, _, tensor in small.states() if name == "3.weight"]
    assert torch.unique(buffer.frexp()[0].abs()).numel() <= 5


def test_another_optimizer_takes_over_what_is_not_about_the_optimizer() -> None:
    """Its tensors are not there yet: the other's histories have no place, and the weights are as they were."""
    delayed = {"kind": "delayed", "history": 4}
    recipe = {
        "optimizer_state": {"format": "e5m6", "scaling": delayed},
        "gradient": {"format": "e5m2", "scaling": delayed},
    }
    recipe["weight_storage"] = {"format": "e4m3fn", "scaling": {**delayed, "power_of_two": True}}
    adam, sgd = Small(recipe), Small(recipe, optimizer=functools.partial(torch.optim.SGD, momentum=0.9))
    adam.train(4)
    load_matching(sgd.model, adam.model.state_dict())
    assert sgd.casts.adopt_state_dict(adam.casts.state_dict(), recast=False)
    for part in ("gradient", "weight_storage"):
        theirs, ours = (small.casts.state_dict()[part] for small in (adam, sgd))
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert all(torch.equal(a, b) for a, b in zip(adam.model.parameters(), sgd.model.parameters()))
    sgd.step()


def test_a_tensor_that_the_optimizer_does_not_have() -> None:
    small = Small({"optimizer_state": {"exp_avg_sqr": "e5m2"}})
    with pytest.raises(AltgradError) as caught:
        small.step()
    assert str(caught.value) == (
        "Unknown tensor of Adam for recipe.optimizer_state 'exp_avg_sqr'. Did you mean 'exp_avg_sq'? "
        "Known: exp_avg, exp_avg_sq."
    )


def test_statistics_of_each_moment() -> None:
    small = Small({"optimizer_state": {"exp_avg": "e5m2", "exp_avg_sq": {"format": "e5m2", "scaling": "none"}}})
    small.casts.control.collecting = True
    small.step()
    taken = small.casts.control.take()
    assert len(taken) == 2 * len(list(small.model.parameters()))
    underflow = {key: (vector[2] / vector[0]).item() for key, vector in taken.items()}
    assert underflow["0.weight.exp_avg_sq"] > 0.3, "squares of small gradients, unscaled"
    assert underflow["0.weight.exp_avg"] == 0.0


def zeroed_moment_update(rounding: str) -> float:
    """Return the largest update of a weight whose gradient was small at first and then is exactly zero."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(64, 64))
    model = torch.nn.Module()
    model.weight = weight
    optimizer = torch.optim.Adam([weight], lr=1e-3)
    recipe = resolve_recipe({"optimizer_state": {"exp_avg_sq": {"format": "e4m3fn", "rounding": rounding}}})
    from altgrad_core.recipes.step_casts import StepCasts

    casts = StepCasts(model, optimizer, recipe, seed=0)
    gradient = torch.full((64, 64), 1e-3)
    gradient[0] = 1.0
    for step in (1, 2):
        casts.begin_step(step)
        before = weight.detach().clone()
        weight.grad = gradient if step == 1 else torch.zeros_like(gradient)
        optimizer.step()
        casts.after_update()
    return float((weight.detach() - before).abs().max())


def test_a_second_moment_of_zero_divides_by_epsilon_alone() -> None:
    """Rounding up keeps every second moment above zero; nearest sends it to zero where its tensor has a large one."""
    assert zeroed_moment_update("nearest_even") > 1.0
    assert zeroed_moment_update("up") < 2e-3


def test_casts_of_states_by_name() -> None:
    casts = resolve_recipe({"optimizer_state": {"format": "e5m2", "exp_avg": "bf16"}}).optimizer_state
    assert isinstance(casts, OptimizerStateCasts)
    assert casts.of("exp_avg").format == "bf16"
    assert casts.of("momentum_buffer").format == "e5m2"
    assert resolve_recipe({"optimizer_state": {"exp_avg": "bf16"}}).optimizer_state.of("exp_avg_sq") is None


def test_a_low_precision_optimizer_still_trains() -> None:
    full = Small({"compute": "fp32"}).train(200)
    assert Small({"optimizer_state": {"format": "mxfp8_e4m3", **STOCHASTIC}}).train(200) < 1.15 * full


@pytest.mark.parametrize("spec", ["e5m2", {"momentum_buffer": "e5m2"}])
def test_an_optimizer_that_keeps_nothing(spec: object) -> None:
    small = Small({"optimizer_state": spec}, optimizer=torch.optim.SGD)
    small.casts.after_update()  # before the first update, or after a skipped one, there is nothing to say
    with pytest.raises(AltgradError) as caught:
        small.step()
    assert str(caught.value) == (
        "recipe.optimizer_state has nothing to cast: SGD keeps no tensor in the shape of its parameters. Leave "
        "optimizer_state out, or train with an optimizer that has moments."
    )


def test_tensors_of_another_shape_stay_and_are_said_to() -> None:
    """Adafactor factors the second moment of a matrix; a vector's has the vector's shape."""
    small = Small({"optimizer_state": "bf16"}, optimizer=torch.optim.Adafactor)
    with pytest.warns(UserWarning, match=r"Adafactor keeps others, which stay as they are: col_var, row_var\.$"):
        small.step()
    small.step()  # said once
    seen = {(name, state): tensor for name, state, tensor in small.states()}
    assert torch.equal(altgrad.quantize(seen["0.bias", "variance"], "bf16"), seen["0.bias", "variance"])
    assert not torch.equal(altgrad.quantize(seen["0.weight", "row_var"], "bf16"), seen["0.weight", "row_var"])
    named = Small({"optimizer_state": {"row_var": "bf16"}}, optimizer=torch.optim.Adafactor)
    with pytest.raises(AltgradError, match=r"names 'row_var', which Adafactor does not keep in the shape of"):
        named.step()
