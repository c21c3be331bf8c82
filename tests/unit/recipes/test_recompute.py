"""Activation checkpointing: the layers computed twice give the bits, the statistics and the state of those computed once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import altgrad_core as altgrad
from altgrad_core.recipes.control import control_of

DELAYED = {"kind": "delayed", "history": 3}
KINDS = ["linear", "attention", "norm"]
RECIPES: dict[str, Any] = {
    "current": "hybrid",
    "delayed": {"base": "hybrid", "scaling": DELAYED},
    "stochastic": {"base": "e4m3fn", "rounding": "stochastic"},
    "mx stochastic": {"base": "mxfp8", "rounding": "stochastic"},
    "all": {"base": "hybrid", "scaling": DELAYED, "rounding": "stochastic", "layers": KINDS},
}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*self.qkv(x).split(16, -1), is_causal=True)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(16), Attention()
        self.up, self.down, self.dropout = nn.Linear(16, 32), nn.Linear(32, 16), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.dropout(self.down(F.gelu(self.up(x))))


class Net(nn.Module):
    """``reentrant``: how the blocks are checkpointed, None for not at all; ``repeat``: how often each is used."""

    def __init__(self, reentrant: bool | None, repeat: int) -> None:
        super().__init__()
        self.reentrant, self.repeat = reentrant, repeat
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            for _ in range(self.repeat):
                x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


def train(reentrant: bool | None, recipe: Any, *, repeat: int = 1, together: bool = False) -> dict[str, Tensor]:
    """Three steps of two micro-batches, whose backward passes come after each or at the end; everything that is left."""
    torch.manual_seed(0)
    model, _ = altgrad.convert(Net(reentrant, repeat), recipe)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    control = control_of(model)
    control.collecting = True
    for step in range(3):
        optimizer.zero_grad()
        losses = []
        for micro in range(2):
            x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(10 * step + micro), requires_grad=True)
            losses.append(model(x).square().mean())
            if not together:
                losses[-1].backward()
        if together:  # not the last one first: the call that is repeated is not simply the newest
            losses[0].backward()
            losses[1].backward()
        optimizer.step()
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    return {**model.state_dict(), **gradients, **control.take()}


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
def test_checkpointed_is_not_checkpointed_bit_for_bit(recipe: str, together: bool) -> None:
    expected = train(None, RECIPES[recipe], together=together)
    for reentrant in (False, True):
        got = train(reentrant, RECIPES[recipe], together=together)
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(got[name], value), name


@pytest.mark.parametrize("recipe", ["delayed", "stochastic", "all"])
def test_layers_used_twice_are_repeated_in_their_places(recipe: str) -> None:
    """Not so with reentrant checkpoints, where torch sums a shared weight's gradients in another order, casts or not."""
    expected = train(None, RECIPES[recipe], repeat=2)
    got = train(False, RECIPES[recipe], repeat=2)
    for name, value in expected.items():
        assert torch.equal(got[name], value), name
    for name, value in train(True, RECIPES[recipe], repeat=2).items():
        assert torch.allclose(value, expected[name], rtol=1e-4, atol=1e-7), name


@pytest.mark.parametrize("reentrant", [False, True])
def test_an_operand_cast_twice_in_one_call_is_repeated_in_its_places(reentrant: bool) -> None:
    """An attention may multiply head by head: each has its scale and its random bits."""

    class HeadsAttention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([F.scaled_dot_product_attention(h, h, 30 * h) for h in x.split(4, -1)], -1)

    x, g = torch.randn(2, 5, 16, requires_grad=True), torch.randn(2, 5, 16)
    gradients = []
    for checkpointed in (False, True):
        model, _ = altgrad.convert(HeadsAttention(), RECIPES["all"])
        for _ in range(2):
            y = checkpoint(model, x, use_reentrant=reentrant) if checkpointed else model(x)
            x.grad = None
            y.backward(g)
            gradients.append(x.grad)
    assert torch.equal(gradients[2], gradients[0])
    assert torch.equal(gradients[3], gradients[1])


def test_a_second_backward_of_one_graph_repeats_the_same() -> None:
    torch.manual_seed(0)
    model, _ = altgrad.convert(Net(False, 1), RECIPES["all"] | {"grad_output": {"format": "e5m2", "rounding": "up"}})
    loss = model(torch.randn(2, 5, 16)).square().mean()
    first = torch.autograd.grad(loss, model.blocks[0].up.weight, retain_graph=True)[0]
    delayed = {k: v.clone() for k, v in model.state_dict().items() if "input_cast" in k}
    second = torch.autograd.grad(loss, model.blocks[0].up.weight)[0]
    assert (first - second).norm() < 0.3 * first.norm()  # only the gradients' own history has moved on
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in delayed.items())


@pytest.mark.parametrize("reentrant", [False, True])
def test_saved_activations_go_with_checkpoints(reentrant: bool) -> None:
    """What a checkpoint does not keep is not cast; the training goes on."""
    recipe = {"base": "e5m2", "saved_activations": "e5m2", "rounding": "stochastic"}
    torch.manual_seed(0)
    model, _ = altgrad.convert(Net(reentrant, 1), recipe)
    casts = altgrad.StepCasts(model, torch.optim.SGD(model.parameters()), recipe, seed=0)
    casts.begin_step(1)
    with casts.forward_pass():
        loss = model(torch.randn(3, 5, 16, requires_grad=True)).square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in model.parameters())


def test_a_repetition_of_what_was_never_seen_is_an_error() -> None:
    torch.manual_seed(0)
    model, _ = altgrad.convert(Net(False, 1), RECIPES["stochastic"])
    loss = model(torch.randn(2, 5, 16)).square().mean()
    control_of(model).begin_step(2)
    with pytest.raises(
        altgrad.AltgradError, match=r"'blocks.1.attention.qkv' is computed again .* before the next step"
    ):
        loss.backward()


def test_evaluations_in_between_do_not_disturb() -> None:
    torch.manual_seed(0)
    model, _ = altgrad.convert(Net(True, 1), RECIPES["all"])
    x = torch.randn(2, 5, 16, requires_grad=True)
    loss = model(x).square().mean()
    model.reentrant = None
    with torch.no_grad():
        for size in (1, 2):
            model(torch.randn(size, 5, 16))
    scales: list[float] = []
    quantizer = model.blocks[0].up.input_cast
    first = next(iter(control_of(model)._calls._by_layer["blocks.0.up"]))
    quantizer.register_forward_hook(lambda *_: scales.append(float(quantizer.last_scale)))
    quantizer.scaling.amax_history.fill_(1000.0)
    loss.backward()
    assert scales == [float(first.scales["blocks.0.up.input"][0].decode)]
    assert torch.equal(quantizer.scaling.amax_history, torch.full((3,), 1000.0))
