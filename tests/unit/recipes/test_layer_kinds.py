"""Convolutions, attention, embeddings, norms and transformers' Conv1D against slow references on cast values."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import altgrad_core as altgrad
from altgrad_core.numerics.blocks import block_scale
from altgrad_core.recipes.control import casts_off, control_of
from altgrad_core.recipes.linear import CastLayer
from altgrad_core.recipes.resolve import recipe_table, resolve_recipe

KINDS = ["linear", "conv", "attention", "embedding", "norm"]


def mx(x: Tensor, name: str) -> Tensor:
    """Cast in blocks of 32 along the last dimension."""
    scale, block = block_scale(x, altgrad.get_format(name))
    return altgrad.quantize(x, altgrad.get_format(name).element, scale=scale, block=block)


def current(x: Tensor, name: str) -> Tensor:
    """Cast under the smallest power of two that makes amax fit."""
    scale = 2.0 ** torch.ceil(torch.log2(x.abs().max().double() / altgrad.get_format(name).max_finite))
    return altgrad.quantize(x, name, scale=float(scale))


def along(x: Tensor, dim: int, name: str) -> Tensor:
    """Cast as either, with blocks along ``dim``."""
    if not name.startswith("mx"):
        return current(x, name)
    return mx(x.movedim(dim, -1), name).movedim(-1, dim)


def run(model: nn.Module, x: Tensor, g: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    y.backward(g)
    return [y.detach(), x.grad, *(p.grad for p in model.parameters())]


def close(mine: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-5) -> None:
    for one, other in zip(mine, theirs, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= tolerance * other.norm()


CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "1d": lambda: nn.Conv1d(32, 64, 3, padding=1),
    "2d-strided": lambda: nn.Conv2d(32, 32, 3, stride=2, padding=1, bias=False),
    "2d-patches": lambda: nn.Conv2d(3, 32, 4, stride=4),
    "2d-groups": lambda: nn.Conv2d(32, 64, 3, groups=2, dilation=2, padding=2),
    "2d-same": lambda: nn.Conv2d(32, 32, 3, padding="same"),
    "2d-circular": lambda: nn.Conv2d(32, 32, 3, padding=1, padding_mode="circular"),
    "3d": lambda: nn.Conv3d(4, 8, (1, 2, 3), padding="valid"),
}


@pytest.mark.parametrize("name", ["e5m2", "mxfp8_e4m3"])
@pytest.mark.parametrize("which", CONVOLUTIONS)
def test_a_convolution_is_the_plain_one_on_cast_operands(which: str, name: str) -> None:
    """fprop sums over channels, dgrad over output channels, wgrad over pixels: so lie the blocks."""
    torch.manual_seed(0)
    layer = CONVOLUTIONS[which]()
    x = torch.randn(2, layer.in_channels, *(8,) * len(layer.kernel_size))
    g = torch.randn(layer(x).shape) * 1e-3
    plain = copy.deepcopy(layer)
    if layer.padding_mode != "zeros" or layer.padding == "same":  # what is padded is cast
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        padded = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        plain.padding, plain.padding_mode = (0,) * len(layer.kernel_size), "zeros"
    else:
        padded = x

    def pixels(t: Tensor) -> Tensor:  # blocks along pictures and pixels
        if not name.startswith("mx"):
            return current(t, name)
        rows = t.movedim(1, 0).flatten(1)  # [C, N * pixels]
        return mx(rows, name).view(t.movedim(1, 0).shape).movedim(0, 1)

    def outputs(w: Tensor) -> Tensor:  # blocks along window and output channels
        if not name.startswith("mx"):
            return current(w, name)
        order = w.movedim((0, 1), (-1, 0))  # [C, k, O]
        return mx(order.flatten(1), name).view(order.shape).movedim((-1, 0), (0, 1))

    weight = layer.weight.detach()

    def product(weight: Tensor, x: Tensor, g: Tensor) -> list[Tensor]:
        plain.weight = nn.Parameter(weight)
        if plain.bias is not None:
            plain.bias.grad = None
        return run(plain, x, g)

    y = product(along(weight, 1, name), along(padded, 1, name), g)[0]
    grad_x = product(outputs(weight), padded, along(g, 1, name))[1]
    grad_w = product(weight, pixels(padded), pixels(g))[2]
    if padded is not x:
        leaf = x.clone().requires_grad_()
        F.pad(leaf, layer._reversed_padding_repeated_twice, mode=mode).backward(grad_x)
        grad_x = leaf.grad
    expected = [y, grad_x, grad_w]
    if layer.bias is not None:
        expected.append(g.sum(dim=[d for d in range(g.dim()) if d != 1]))
    _, summary = altgrad.convert(layer, {"base": name, "layers": ["conv"]})
    assert summary.converted == [""]
    close(run(layer, x, g), expected)
    close([layer(x[0]).detach()], [layer(x[:1])[0].detach()], 0.1)  # without a batch


class Attention(nn.Module):
    """Attention in the three ways that models write it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.mix = nn.Parameter(torch.eye(32))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = x.unbind()
        q = q @ self.mix  # a product with a parameter is none of attention's
        if self.how == "sdpa":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        scores = torch.matmul(q, k.transpose(-2, -1)) if self.how == "matmul" else q @ k.mT
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        probabilities = (scores / math.sqrt(32)).masked_fill(~mask, -torch.inf).softmax(-1)
        return probabilities @ v


@pytest.mark.parametrize("name", ["e4m3fn", "mxfp8_e4m3"])
@pytest.mark.parametrize("how", ["sdpa", "matmul", "operator"])
def test_attention_is_the_plain_one_on_cast_operands(how: str, name: str) -> None:
    torch.manual_seed(0)
    layer = Attention(how)
    x, g = torch.randn(3, 2, 4, 64, 32), torch.randn(2, 4, 64, 32)
    q, k, v = x.unbind()
    mask = torch.ones(64, 64, dtype=torch.bool).tril()
    scores = along(q, -1, name) @ along(k, -1, name).mT
    p = (scores / math.sqrt(32)).masked_fill(~mask, -torch.inf).softmax(-1)
    y = along(p, -1, name) @ along(v, -2, name)
    grad_p = along(g, -1, name) @ along(v, -1, name).mT
    grad_v = along(p, -2, name).mT @ along(g, -2, name)
    grad_s = p * (grad_p - (grad_p * p).sum(-1, keepdim=True)) / math.sqrt(32)
    grad_q = along(grad_s, -1, name) @ along(k, -2, name)
    grad_k = along(grad_s, -2, name).mT @ along(q, -2, name)
    altgrad.convert(layer, {"base": name, "layers": ["attention"]})
    mine = run(layer, x, g)
    close(mine[:2], [y, torch.stack([grad_q, grad_k, grad_v])], 2e-4)
    control_of(layer).collecting = True
    run(layer, x, g)
    operands = ("query", "key", "grad_scores", "probabilities", "value", "grad_context")
    taken = control_of(layer).take()
    assert set(taken) == {f".{operand}" for operand in operands}
    assert taken[".query"][0] == q.numel()
    assert taken[".probabilities"][0] == p.numel()


@pytest.mark.parametrize("mask", ["none", "bool", "float", "all", "causal", "bool and causal"])
def test_sdpa_written_out_agrees_with_torch(mask: str) -> None:
    """Casts to a format that changes nothing; grouped queries, a row that may look at nothing, a scale."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
    seen = torch.rand(5, 6) > 0.3
    masks = {"none": None, "bool": seen, "float": torch.randn(5, 6), "all": seen & (torch.arange(5) != 2)[:, None]}
    masks |= {"causal": None, "bool and causal": seen}

    class SelfAttention(nn.Module):
        def forward(self, q: Tensor) -> Tensor:
            how = {"scale": 0.3, "enable_gqa": True, "is_causal": mask.endswith("causal")}
            return F.scaled_dot_product_attention(q, k, v, attn_mask=masks[mask], **how)

    model = SelfAttention()
    g = torch.randn(2, 4, 5, 8)
    expected = run(model, q, g)
    altgrad.convert(model, {"base": "fp32", "input": "fp32", "grad_output": "fp32", "layers": ["attention"]})
    close(run(model, q, g), expected)


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("method", [True, False])
def test_scores_added_to_a_bias(method: bool, beta: float) -> None:
    """As BLOOM and GPT-NeoX multiply; with beta = 0 what the bias holds is nothing to anybody."""
    torch.manual_seed(0)
    x, g, bias = torch.randn(2, 5, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 5)
    if beta == 0.0:
        bias = torch.full_like(bias, torch.nan)

    class BiasedAttention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            how = {"batch1": x, "batch2": x.mT, "beta": beta, "alpha": 0.5}
            scores = bias.baddbmm(**how) if method else torch.baddbmm(bias, **how)
            return scores.softmax(-1).bmm(x)

    model = BiasedAttention()
    expected = run(model, x, g)
    altgrad.convert(model, {"base": "fp32", "input": "fp32", "grad_output": "fp32", "layers": ["attention"]})
    control_of(model).collecting = True
    close(run(model, x, g), expected)
    operands = {"query", "key", "grad_scores", "probabilities", "value", "grad_context"}
    assert {key.rpartition(".")[2] for key in control_of(model).take()} == operands


@pytest.mark.parametrize("weights", [True, False])
def test_the_attention_of_torch(weights: bool) -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(16, 2, batch_first=True)
    x, g = torch.randn(2, 5, 16), torch.randn(2, 5, 16)

    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, x, x, need_weights=weights)[0]

    once = Once()
    plain = run(copy.deepcopy(once), x, g)
    altgrad.convert(once, {"base": "fp32", "input": "fp32", "grad_output": "fp32", "layers": ["attention"]})
    close(run(once, x, g), plain)
    control_of(once).collecting = True
    once.eval()
    with torch.no_grad():
        once(x)  # torch has a kernel of its own for this, which would cast nothing
    assert {key.rpartition(".")[2] for key in control_of(once).take()} == {"query", "key", "probabilities", "value"}


def test_torch_transformer_layers_cast_in_evaluation_too() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2)
    altgrad.convert(model, "e2m1fn")
    x, padding = torch.randn(2, 5, 16), torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    training = model(x, src_key_padding_mask=padding).detach()
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(x, src_key_padding_mask=padding)[0], training[0])
    altgrad.revert(model)
    assert model.use_nested_tensor
    assert model.layers[0].activation_relu_or_gelu == 1


def test_an_attention_that_is_not_seen_is_told_of() -> None:
    class FlashAttention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("btd,bsd->bts", x, x)

    model = nn.Sequential(FlashAttention())
    altgrad.convert(model, {"base": "e5m2", "layers": ["attention"]})
    with pytest.warns(
        UserWarning, match=r"attention '0' \(FlashAttention\) multiplies in a way that altgrad does not see"
    ):
        model(torch.randn(2, 3, 8))


def test_only_the_innermost_attention_is_converted() -> None:
    class SelfAttention(nn.Module):
        pass

    class OuterAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = SelfAttention()
            self.out = nn.Linear(4, 4)

    _, summary = altgrad.convert(nn.ModuleList([OuterAttention()]), {"base": "e5m2", "layers": ["attention"]})
    assert summary.converted == ["0.inner"]


def test_an_embedding_looks_up_cast_values() -> None:
    torch.manual_seed(0)
    model, tokens, g = nn.Embedding(11, 32, padding_idx=0), torch.tensor([[1, 2], [2, 0]]), torch.randn(2, 2, 32)
    expected = current(model.weight.detach()[tokens], "e4m3fn")
    model(tokens).backward(g)
    gradient, model.weight.grad = model.weight.grad, None
    altgrad.convert(model, {"base": "hybrid", "layers": ["embedding"]})
    y = model(tokens)
    y.backward(g)
    assert torch.equal(y, expected)
    assert torch.equal(model.weight.grad, gradient)


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(32), nn.RMSNorm(32), nn.GroupNorm(2, 4), nn.BatchNorm1d(4), nn.InstanceNorm1d(4)], ids=repr
)
def test_the_output_of_a_norm_is_cast(norm: nn.Module) -> None:
    torch.manual_seed(0)
    x, g = torch.randn(3, 4, 32), torch.randn(3, 4, 32)
    plain = run(copy.deepcopy(norm), x, g)
    _, summary = altgrad.convert(norm, {"input": "mxfp8_e4m3", "layers": ["norm"]})
    assert summary.layers[0].kind == "norm"
    got = run(norm, x, g)
    assert torch.equal(got[0], mx(plain[0], "mxfp8_e4m3"))
    for mine, theirs in zip(got[1:], plain[1:], strict=True):
        assert torch.equal(mine, theirs)


class Conv1D(nn.Module):
    """What transformers has for GPT-2, in its own words."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


Conv1D.__module__ = "transformers.pytorch_utils"


@pytest.mark.parametrize("recipe", ["e5m2", "mxfp8", {"base": "hybrid", "scaling": "delayed"}])
def test_a_transposed_linear_layer_is_a_linear_layer(recipe: Any) -> None:
    torch.manual_seed(0)
    transposed, linear = Conv1D(64, 32), nn.Linear(32, 64)
    with torch.no_grad():
        linear.weight.copy_(transposed.weight.t())
        linear.bias.copy_(transposed.bias)
    x, g = torch.randn(3, 5, 32), torch.randn(3, 5, 64)
    _, summary = altgrad.convert(transposed, recipe)
    assert summary.layers[0].kind == "linear"
    altgrad.convert(linear, recipe)
    mine, theirs = run(transposed, x, g), run(linear, x, g)
    mine[2] = mine[2].t()
    for one, other in zip(mine, theirs, strict=True):
        assert torch.equal(one, other)
    with casts_off(transposed):
        assert torch.equal(
            transposed(x), torch.addmm(transposed.bias, x.view(-1, 32), transposed.weight).view(3, 5, 64)
        )


@pytest.mark.parametrize("recipe", ["fp32", "e5m2", "mxfp8"])
def test_probes_measure_transposed_weights_and_kernels_as_they_are_cast(recipe: str) -> None:
    """A linear layer three times over: as it is, transposed, and as a convolution with a window of one."""
    torch.manual_seed(0)
    linear, transposed, conv = nn.Linear(32, 64), Conv1D(64, 32), nn.Conv1d(32, 64, 1)
    with torch.no_grad():
        transposed.weight.copy_(linear.weight.t())
        conv.weight.copy_(linear.weight[:, :, None])
        for layer in (transposed, conv):
            layer.bias.copy_(linear.bias)
    x, alive = torch.randn(5, 32), torch.ones(64)
    alive[7] = 0.0
    found: list[dict[str, float]] = []
    for layer in (linear, transposed, conv):
        altgrad.convert(layer, recipe if recipe == "fp32" else {"base": recipe, "layers": ["linear", "conv"]})
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
        with altgrad.observe(layer, optimizer, every=1) as seen:
            y = layer(x.t()[None])[0].t() if layer is conv else layer(x)
            (y * alive).square().sum().backward()
            optimizer.step()
        found.append(seen.metrics)
    assert found[0]["dead_neuron_frac/weight"] == 1 / 64
    assert found[0]["update_ulps/weight"] > 0
    for name, value in found[0].items():
        for others in found[1:]:
            if not (others is found[2] and name.startswith("dead_neuron")):  # a neuron is a linear layer's
                assert others[name] == pytest.approx(value, rel=1e-5), name


class Vision(nn.Module):
    """What timm builds: patches, attention, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, stride=4)
        self.norm = nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.position = nn.Embedding(4, 32)
        self.up = nn.ConvTranspose1d(32, 32, 1)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT + self.position(torch.arange(4))
        x = self.norm(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.up(x.mT).mean(-1))


@pytest.mark.parametrize("autocast", [False, True])
def test_all_kinds_in_one_model_train(autocast: bool) -> None:
    torch.manual_seed(0)
    model = Vision()
    model, summary = altgrad.convert(model, {"base": "hybrid", "layers": KINDS})
    kinds = {layer.name: layer.kind for layer in summary.layers if layer.converted}
    assert kinds == {
        "patches": "conv",
        "norm": "norm",
        "attention": "attention",
        "position": "embedding",
        "head": "linear",
    }
    assert summary.skipped["up"] == "transposed convolutions are not cast"
    assert str(summary).startswith(
        "hybrid, layers linear + conv + attention + embedding + norm: 1 of 3 linear, 1 of 2 conv, 1 of 1 norm, "
        "1 of 1 attention, 1 of 1 embedding layers converted"
    )
    assert all(isinstance(model.get_submodule(name), CastLayer) for name in kinds)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    x, y = torch.randn(16, 3, 8, 8), torch.arange(16) % 5
    losses = []
    for _ in range(30):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_parts_of_a_converted_module_stay_in_their_mode() -> None:
    model = Vision()
    model.attention.out_proj.eval()
    altgrad.convert(model, {"base": "hybrid", "layers": KINDS})
    assert not model.attention.out_proj.training
    assert model.attention.query_cast.training


def test_kinds_are_checked() -> None:
    with pytest.raises(
        altgrad.AltgradError, match=r"layers\[0\]: Unknown kind of layers 'convs'. Did you mean 'conv'\?"
    ):
        altgrad.convert(nn.Linear(4, 4), {"base": "e5m2", "layers": ["convs"]})
    inner = {"base": "e5m2", "layers": ["norm"]}
    with pytest.raises(altgrad.AltgradError, match="the recipe of an override cannot have 'layers'"):
        altgrad.convert(nn.Linear(4, 4), {"base": "e5m2", "overrides": [{"match": "*", "recipe": inner}]})
    _, summary = altgrad.convert(nn.LayerNorm(4), {"weight": "e5m2", "layers": ["norm"]})
    assert summary.skipped == {"": "the recipe '-/e5m2/-, layers norm' casts none of its operands (input)"}


def test_overrides_by_class_and_size() -> None:
    model = nn.ModuleDict({"small": nn.Linear(4, 4), "large": nn.Linear(64, 64), "conv": nn.Conv1d(4, 4, 1)})
    recipe = {
        "base": "e5m2",
        "layers": ["linear", "conv"],
        "overrides": [
            {"type": "Conv*", "recipe": "bf16"},
            {"smaller_than": 100, "recipe": "e4m3fn"},
            {"match": "l*", "type": "Linear", "larger_than": 4096, "recipe": "e3m4"},
            {"type": "Conv2d", "recipe": "bf16"},
            {"match": "large", "larger_than": 5000, "recipe": "bf16"},
        ],
    }
    resolved = resolve_recipe(recipe)
    assert resolve_recipe(recipe_table(resolved)) == resolved
    _, summary = altgrad.convert(model, recipe)
    assert {layer.name: layer.recipe for layer in summary.layers} == {
        "small": "e4m3fn",
        "large": "e3m4",
        "conv": "bf16",
    }
    assert summary.unused_overrides == ("type Conv2d", "large, larger_than 5000")
    assert "override 'type Conv2d' matches no layer" in str(summary)
