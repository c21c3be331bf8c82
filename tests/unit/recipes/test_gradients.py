from __future__ import annotations

import torch
from torch import nn

import altgrad_core as altgrad
from altgrad_core.recipes.gradients import GradientCast
from altgrad_core.recipes.resolve import resolve_recipe


def cast_of(model: nn.Module, gradient: object) -> GradientCast:
    operand = resolve_recipe({"base": "bf16", "gradient": gradient}).gradient
    assert operand is not None
    return GradientCast(model, operand)


def model_with_gradients() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    model(torch.randn(5, 8)).square().sum().backward()
    model[1].bias.grad = None
    return model


def test_every_gradient_becomes_its_cast_value() -> None:
    model = model_with_gradients()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    cast_of(model, {"format": "e5m2", "scaling": "none"})()
    for name, parameter in model.named_parameters():
        if name in before:
            assert torch.equal(parameter.grad, altgrad.quantize(before[name], "e5m2"))
            assert not torch.equal(parameter.grad, before[name])
        else:
            assert parameter.grad is None


def test_each_parameter_has_a_scale_of_its_own() -> None:
    model = model_with_gradients()
    with torch.no_grad():
        model[0].weight.grad *= 1e-12
    small = model[0].weight.grad.clone()
    cast_of(model, "e2m1fn")()
    assert (model[0].weight.grad != 0).double().mean() > 0.3
    assert torch.allclose(model[0].weight.grad, small, rtol=0.5, atol=float(small.abs().max()) / 8)


def test_statistics_and_delayed_state() -> None:
    model = model_with_gradients()
    cast = cast_of(model, {"format": "e5m2", "scaling": {"kind": "delayed", "history": 2}})
    cast.cast_control.collecting = True
    cast()
    taken = cast.cast_control.take()
    assert set(taken) == {"0.weight.gradient", "0.bias.gradient", "1.weight.gradient"}
    assert taken["0.weight.gradient"][0] == 32
    assert any(value.count_nonzero() for value in cast.state_dict().values())
