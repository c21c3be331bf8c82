from __future__ import annotations

import torch
from torch import nn

import altgrad_core as altgrad
from altgrad_core.recipes.control import CastControl
from altgrad_core.recipes.gradients import GradientCast
from altgrad_core.recipes.resolve import resolve_recipe


def cast_of(model: nn.Module, gradient: object, control: CastControl | None = None) -> GradientCast:
    operand = resolve_recipe({"base": "bf16", "gradient": gradient}).gradient
    assert operand is not None
    return GradientCast(model, operand, control or CastControl())


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


def test_a_block_format_scales_each_row_apart() -> None:
    model = model_with_gradients()
    with torch.no_grad():
        model[0].weight.grad[2] *= 1e-12
    before = model[0].weight.grad.clone()
    cast_of(model, "mxfp4")()
    assert torch.equal(model[0].weight.grad, altgrad.quantize(before, "mxfp4"))
    assert model[0].weight.grad[2].count_nonzero() > 2


def test_stochastic_bits_differ_between_parameters_and_steps() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(2)))
    control = CastControl()
    cast = cast_of(model, {"format": "e5m2", "rounding": "stochastic", "scaling": "none"}, control)
    seen = []
    for step in (1, 2, 1):
        control.begin_step(step)
        for layer in model:
            layer.weight.grad = torch.full((64, 64), 1.1)
        cast()
        seen += [layer.weight.grad.clone() for layer in model]
    assert torch.equal(seen[0], seen[4])
    assert torch.equal(seen[1], seen[5])
    for i, j in ((0, 1), (0, 2), (1, 3)):
        assert 0.2 < (seen[i] != seen[j]).double().mean() < 0.6
    assert abs(torch.stack(seen[:4]).mean().item() - 1.1) < 0.005


def test_statistics_and_delayed_state() -> None:
    model, control = model_with_gradients(), CastControl()
    cast = cast_of(model, {"format": "e5m2", "scaling": {"kind": "delayed", "history": 2}}, control)
    control.collecting = True
    cast()
    taken = control.take()
    assert set(taken) == {"0.weight.gradient", "0.bias.gradient", "1.weight.gradient"}
    assert taken["0.weight.gradient"][0] == 32
    assert any(value.count_nonzero() for value in cast.state_dict().values())
