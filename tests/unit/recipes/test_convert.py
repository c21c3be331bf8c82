from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import altgrad_core as altgrad
from altgrad_core.errors import AltgradError
from altgrad_core.plugins import Choice
from altgrad_core.recipes.control import casts_off, control_of
from altgrad_core.recipes.linear import CastLinear
from altgrad_core.recipes.recipe import OperandCast

FORMATS = ["e5m2", "e4m3fn", "e3m4", "e2m1fn", "fp16", "tf32"]


def pair(bias: bool = True, shape: tuple[int, ...] = (6, 5, 16)) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = nn.Linear(16, 8, bias=bias)
    x = torch.randn(shape) * 3
    g = torch.randn(*shape[:-1], 8) * 1e-3
    return layer, x, g


def gradients(layer: nn.Module, x: Tensor, g: Tensor, bf16: bool) -> list[Tensor]:
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        y = layer(x)
    y.backward(g.to(y.dtype))
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


def scaled(x: Tensor, name: str) -> Tensor:
    """Cast under the smallest power of two that makes amax fit, written out; a format of FP32's range is not scaled."""
    if altgrad.get_format(name).max_finite > 2.0**127:
        return altgrad.quantize(x, name)
    scale = 2.0 ** torch.ceil(torch.log2(x.abs().max().double() / altgrad.get_format(name).max_finite))
    return altgrad.quantize(x, name, scale=float(scale))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6, 5, 16), (7, 16), (16,)])
def test_fp32_layer_is_plain_linear_on_cast_operands(name: str, bias: bool, shape: tuple[int, ...]) -> None:
    """All three GEMMs, bit for bit: y = X W^T + b, dX = G W, dW = G^T X on the cast values."""
    layer, x, g = pair(bias, shape)
    xq, wq, gq = scaled(x, name), scaled(layer.weight.detach(), name), scaled(g, name)
    expected = [F.linear(xq, wq, layer.bias).detach(), gq @ wq, gq.reshape(-1, 8).t() @ xq.reshape(-1, 16)]
    if bias:
        expected.append(g.reshape(-1, 8).sum(0))
    altgrad.convert(layer, name)
    got = gradients(layer, x, g, bf16=False)
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.equal(mine, theirs) or torch.allclose(mine, theirs, rtol=1e-6, atol=0)
        assert mine.dtype is torch.float32
    assert torch.equal(got[0], expected[0])


@pytest.mark.parametrize("name", ["e5m2", "e4m3fn", "e3m4"])
def test_bf16_layer_multiplies_the_cast_values_in_bf16(name: str) -> None:
    layer, x, g = pair()
    bf16 = torch.bfloat16
    xq, wq, gq = (scaled(t, name).to(bf16) for t in (x, layer.weight.detach(), g.to(bf16).float()))
    expected = [
        F.linear(xq, wq, layer.bias.to(bf16)),
        (gq @ wq).float(),
        (gq.reshape(-1, 8).t() @ xq.reshape(-1, 16)).float(),
    ]
    altgrad.convert(layer, name)
    got = gradients(layer, x, g, bf16=True)
    assert got[0].dtype is bf16
    for mine, theirs in zip(got, expected):
        assert torch.equal(mine, theirs)


def test_bf16_operands_without_scaling_are_autocast_bit_for_bit() -> None:
    layer, x, g = pair()
    plain = gradients(copy.deepcopy(layer), x, g, bf16=True)
    altgrad.convert(layer, {"input": "bf16", "weight": "bf16", "grad_output": "bf16", "scaling": "none"})
    for mine, theirs in zip(gradients(layer, x, g, bf16=True), plain, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_scales_that_are_no_powers_of_two_multiply_the_product(bf16: bool, bias: bool) -> None:
    layer, x, g = pair(bias)
    weight = layer.weight.detach().double()
    g = g.bfloat16().float() if bf16 else g

    def values(t: Tensor) -> Tensor:
        scale = float((t.abs().max().double() / 448).float())
        return altgrad.quantize(t.float(), "e4m3fn", scale=scale).double()

    xq, wq, gq = values(x), values(weight), values(g)
    y = xq @ wq.t() + (layer.bias.detach().double() if bias else 0)
    expected = [y, gq @ wq, gq.reshape(-1, 8).t() @ xq.reshape(-1, 16)]
    altgrad.convert(layer, {"base": "e4m3fn", "scaling": {"kind": "current", "power_of_two": False}})
    for mine, theirs in zip(gradients(layer, x, g, bf16=bf16), expected):
        error = (mine.double() - theirs).abs().max() / theirs.abs().max()
        assert error < (1e-2 if bf16 else 1e-6)


@pytest.mark.parametrize("name", ["e7m0", "e7m1", "e7m2", "e6m1", "e5m2", "e7m8"])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("size", [1.0, 1e-6, 1e-30])
def test_wide_formats_and_small_gradients_stay_in_range(name: str, bf16: bool, size: float) -> None:
    """The codes of a format with 7 exponent bits reach 2^64: their products must not be formed."""
    layer, x, g = pair()
    plain = gradients(copy.deepcopy(layer), x, g * size, bf16=bf16)
    altgrad.convert(layer, name)
    for mine, theirs in zip(gradients(layer, x, g * size, bf16=bf16), plain, strict=True):
        a, b = mine.double().flatten(), theirs.double().flatten()
        assert a @ b > 0.9 * a.norm() * b.norm() > 0


@pytest.mark.parametrize("autocast", [False, True])
def test_a_float64_layer_multiplies_in_float64(autocast: bool) -> None:
    """Under autocast too, which leaves float64 alone."""
    layer, x, g = pair()
    layer, x = layer.double(), x.double()
    gq = altgrad.quantize(g.double(), "e5m2")
    expected = [layer(x).detach(), gq @ layer.weight.detach(), gq.reshape(-1, 8).t() @ x.reshape(-1, 16)]
    altgrad.convert(layer, {"grad_output": "e5m2", "scaling": "none"})
    for mine, theirs in zip(gradients(layer, x, g, bf16=autocast), expected):
        assert mine.dtype is torch.float64
        assert torch.allclose(mine, theirs, rtol=1e-13, atol=0)


def test_a_float64_layer_keeps_float64_under_any_scale() -> None:
    layer, x, _ = pair(bias=False)
    layer, x = layer.double(), x.double()
    weight = layer.weight.detach()
    wq = altgrad.quantize(weight, "e4m3fn", scale=float((weight.abs().max() / 448).float()))
    altgrad.convert(layer, {"weight": "e4m3fn", "scaling": {"kind": "current", "power_of_two": False}})
    assert torch.allclose(layer(x), x @ wq.t(), rtol=1e-13, atol=1e-15)


def test_only_the_named_operands_are_cast() -> None:
    layer, x, g = pair(bias=False)
    wq = scaled(layer.weight.detach(), "e2m1fn")
    altgrad.convert(layer, {"weight": "e2m1fn"})
    y, dx, dw = gradients(layer, x, g, bf16=False)
    assert torch.equal(y, F.linear(x, wq))
    assert torch.allclose(dx, g @ wq, rtol=1e-6, atol=0)
    assert torch.allclose(dw, g.reshape(-1, 8).t() @ x.reshape(-1, 16), rtol=1e-5, atol=1e-7)


def test_casts_off_is_the_layer_before() -> None:
    layer, x, g = pair()
    plain = gradients(copy.deepcopy(layer), x, g, bf16=False)
    altgrad.convert(layer, "e2m1fn")
    with casts_off(layer):
        for mine, theirs in zip(gradients(layer, x, g, bf16=False), plain, strict=True):
            assert torch.equal(mine, theirs)
    assert not torch.equal(gradients(layer, x, g, bf16=False)[0], plain[0])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.up = nn.Linear(16, 16)
        self.lm_head = nn.Linear(16, 11, bias=False)
        self.lm_head.weight = self.embedding.weight
        self.attention = nn.MultiheadAttention(16, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(self.up(self.embedding(tokens)))


def test_objects_keys_hooks_and_ties_stay() -> None:
    model = Tied()
    keys, parameters = list(model.state_dict()), {n: id(p) for n, p in model.named_parameters()}
    up, called = model.up, []
    up.register_forward_hook(lambda *_: called.append(1))
    converted, summary = altgrad.convert(model, "e5m2")
    assert converted is model
    assert model.up is up
    assert list(model.state_dict()) == keys
    assert {n: id(p) for n, p in model.named_parameters()} == parameters
    assert model.lm_head.weight is model.embedding.weight
    model(torch.arange(5)).sum().backward()
    assert called == [1]
    assert summary.converted == ["up", "lm_head"]
    assert "NonDynamicallyQuantizableLinear is a subclass" in summary.skipped["attention.out_proj"]
    assert "2 of 4 linear layers converted" in str(summary)


@pytest.mark.parametrize("name", ["posit8", "takum8", "takum_linear8"])
def test_tapered_formats_are_precise_under_their_default_scaling(name: str) -> None:
    torch.manual_seed(0)
    layer, x, g = nn.Linear(64, 48), torch.randn(96, 64), torch.randn(96, 48) * 1e-5
    plain = gradients(copy.deepcopy(layer), x, g, bf16=False)
    altgrad.convert(layer, name)
    for got, expected in zip(gradients(layer, x, g, bf16=False), plain, strict=True):
        assert (got - expected).norm() < 0.15 * expected.norm()


def test_the_summary_tells_what_is_left_to_step_casts() -> None:
    _, summary = altgrad.convert(Tied(), {"base": "e5m2", "gradient": "e5m2", "saved_activations": "e4m3fn"})
    assert summary.left_to_step_casts == ("gradient", "saved_activations")
    assert "not cast here: gradient, saved_activations; that takes altgrad.StepCasts" in str(summary)
    inner = {"base": "e5m2", "weight_storage": "bf16"}
    _, summary = altgrad.convert(Tied(), {"base": "e5m2", "overrides": [{"match": "up", "recipe": inner}]})
    assert summary.left_to_step_casts == ("weight_storage",)
    _, summary = altgrad.convert(Tied(), "e5m2")
    assert summary.left_to_step_casts == ()
    assert "StepCasts" not in str(summary)


class FormatInfo:
    """What gfloat calls a format."""

    name, k, precision, bias, is_signed, domain = "ocp_e5m2", 8, 3, 15, True, None
    has_nz, num_high_nans, has_subnormals, is_twos_complement = True, 3, True, False


TABLE = altgrad.TableFormat(name="mine", table=(0.0, 1.0, 2.0, -1.0))


@pytest.mark.parametrize("format", [TABLE, altgrad.get_format("nvfp4"), FormatInfo()], ids=lambda f: f.name)
def test_a_recipe_names_formats(format: object) -> None:
    for spec, where in (
        (format, ""),
        ({"input": format}, "input: "),
        ({"input": {"format": format}}, "input.format: "),
        ({"base": format}, "base: "),
        ({"optimizer_state": {"exp_avg": format}}, "optimizer_state.exp_avg: "),
        ({"overrides": [{"match": "*", "recipe": format}]}, r"overrides\[0\].recipe: "),
    ):
        with pytest.raises(AltgradError, match=f"^{where}A recipe names formats, .* register yours with a plugin"):
            altgrad.convert(Tied(), spec)
    with pytest.raises(AltgradError, match=r"^A recipe names formats"):
        altgrad.Recipe(name="r", input=format)
    with pytest.raises(AltgradError, match=r"^A recipe names formats"):
        OperandCast(format=format, scaling=Choice("none"))


def test_a_recipe_takes_casts() -> None:
    with pytest.raises(
        AltgradError, match=r"Recipe\(input=...\) takes OperandCast, got 'e5m2'; convert\(\) also takes a"
    ):
        altgrad.Recipe(name="r", input="e5m2")
    with pytest.raises(AltgradError, match=r"takes OptimizerStateCasts, got OperandCast\("):
        altgrad.Recipe(name="r", optimizer_state=OperandCast(format="e5m2", scaling=Choice("none")))


@pytest.mark.parametrize("recipe", ["e5m2-pure", {"base": "e5m2", "weight_storage": "e4m3fn", "gradient": "e5m2"}])
def test_step_casts_take_what_convert_takes(recipe: object) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8))
    altgrad.convert(model, recipe)
    before = model[0].weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters())
    altgrad.StepCasts(model, optimizer, recipe, seed=0)
    assert not torch.equal(model[0].weight, before)
    with pytest.raises(AltgradError, match="Nor is it a recipe"):
        altgrad.StepCasts(model, optimizer, "e5m99", seed=0)


def test_overrides_first_match_wins_and_unused_ones_are_told() -> None:
    model = Tied()
    _, summary = altgrad.convert(
        model,
        {
            "base": "e5m2",
            "overrides": [
                {"match": "lm_*", "recipe": "bf16"},
                {"match": "*head", "recipe": "e4m3fn"},
                {"match": "u?", "recipe": "e4m3fn"},
                {"match": "nothing.*", "recipe": "bf16"},
            ],
        },
    )
    assert type(model.lm_head) is nn.Linear
    assert isinstance(model.up, CastLinear)
    assert model.up.input_cast.format.name == "e4m3fn"
    assert summary.skipped["lm_head"] == "the recipe 'bf16' casts no operand"
    assert "nothing.*" in summary.unused_overrides
    assert "override 'nothing.*' matches no layer" in str(summary)


def test_delayed_scaling_adds_buffers_and_evaluation_leaves_them_alone() -> None:
    layer, x, g = pair()
    altgrad.convert(layer, {"base": "e5m2", "scaling": {"kind": "delayed", "history": 4}})
    assert len(layer.state_dict()) > 2
    gradients(layer, x, g, bf16=False)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.eval()
    layer(x * 100)
    with casts_off(layer):
        layer.train()(x * 100)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    layer(x * 100)
    assert not all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_statistics_are_collected_on_request_and_combined_over_passes() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8))
    altgrad.convert(model, "hybrid")
    x = torch.randn(10, 16)
    model(x).sum().backward()
    assert control_of(model).take() == {}
    control_of(model).collecting = True
    model(x).sum().backward()
    model(x).sum().backward()
    taken = control_of(model).take()
    assert set(taken) == {f"{layer}.{operand}" for layer in "01" for operand in ("input", "weight", "grad_output")}
    assert taken["0.input"][0] == 320  # elements of two passes
    assert control_of(model).take() == {}


def test_converting_twice_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    altgrad.convert(model, "e5m2")
    with pytest.raises(AltgradError, match=r"takes a torch\.nn\.Module and changes it in place; got function"):
        altgrad.convert(lambda x: x, "e5m2")
    with pytest.raises(AltgradError, match="converted already"):
        altgrad.convert(model, "e4m3fn")


def test_recipes_without_casts_leave_the_model_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    _, summary = altgrad.convert(model, "fp32")
    assert type(model[0]) is nn.Linear
    assert summary.converted == []


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(AltgradError, match="hybrid"):
        altgrad.convert(nn.Linear(4, 4), "hybird")


def test_gradients_of_gradients_are_refused() -> None:
    layer, x, _ = pair()
    altgrad.convert(layer, "e5m2")
    x.requires_grad_()
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
