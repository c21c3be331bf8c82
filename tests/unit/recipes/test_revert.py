"""revert(), deepcopy, saving and loading, shared and tied layers, frozen ones."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import altgrad_core as altgrad
from altgrad_core.recipes.control import casts_off, control_of, controls_of
from altgrad_core.recipes.linear import CastLinear

PURE = {
    "base": "e5m2-pure",
    "saved_activations": "e5m2",
    "layers": ["linear", "embedding", "norm", "attention"],
    "input": {"format": "e4m3fn", "scaling": "delayed"},
}


class Small(nn.Module):
    """A tied head, a layer in two places, attention, and a hook of the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.first = nn.Linear(16, 16)
        self.again = self.first
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.called = 0
        self.first.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.called += 1

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.embedding(tokens))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.again(F.gelu(self.first(x))))


def small() -> Small:
    torch.manual_seed(0)
    return Small()


def anatomy(model: nn.Module) -> list[Any]:
    """Everything that could be left over: classes, attributes, hooks, buffers, parameter objects."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_always_called")
    return [
        (name, type(module), sorted(module.__dict__), [len(getattr(module, hook)) for hook in hooks],
         list(module._buffers), list(module._modules), [(key, id(value)) for key, value in module._parameters.items()])
        for name, module in model.named_modules()
    ]  # fmt: skip


def train(model: nn.Module, steps: int, recipe: Any = None, seed: int = 0) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    casts = None if recipe is None else altgrad.StepCasts(model, optimizer, recipe, seed=0)
    tokens = torch.randint(0, 11, (steps, 4, 6), generator=torch.Generator().manual_seed(seed))
    losses = []
    for step, batch in enumerate(tokens, 1):
        if casts is not None:
            casts.begin_step(step)
            with casts.forward_pass():
                logits = model(batch)
        else:
            logits = model(batch)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.flatten())
        optimizer.zero_grad()
        loss.backward()
        if casts is not None:
            casts.after_backward()
        optimizer.step()
        if casts is not None:
            casts.after_update()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("recipe", ["e5m2", "mxfp8", {"base": "hybrid", "scaling": "delayed"}, PURE])
def test_revert_leaves_nothing(recipe: Any) -> None:
    model = small()
    before, keys = anatomy(model), list(model.state_dict())
    altgrad.convert(model, recipe)
    assert anatomy(model) != before
    train(model, 2, recipe)
    reverted = altgrad.revert(model)
    assert reverted is model
    assert anatomy(model) == before
    assert list(model.state_dict()) == keys
    plain = small()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(torch.arange(5)[None]), model(torch.arange(5)[None]))
    altgrad.convert(model, "e4m3fn")
    assert anatomy(altgrad.revert(model)) == before


def test_revert_of_what_is_not_converted() -> None:
    with pytest.raises(altgrad.AltgradError, match="Nothing in this model is converted"):
        altgrad.revert(small())


def test_hooks_on_the_optimizer_go_too() -> None:
    model = small()
    altgrad.convert(model, PURE)
    optimizer = torch.optim.Adam(model.parameters())
    hooks = len(optimizer._optimizer_step_post_hooks)
    altgrad.StepCasts(model, optimizer, PURE, seed=0)
    assert len(optimizer._optimizer_step_post_hooks) == hooks + 1
    altgrad.revert(model)
    assert len(optimizer._optimizer_step_post_hooks) == hooks


def test_a_recipe_that_fails_half_way_leaves_the_model_alone() -> None:
    model = small()
    before = anatomy(model)
    bad = altgrad.Recipe(
        name="bad",
        input=altgrad_cast("e5m2", "current"),
        weight=altgrad_cast("mxfp4", "current"),  # a block format brings its own scales
    )
    with pytest.raises(altgrad.AltgradError, match="has scales of its own"):
        altgrad.convert(model, bad)
    assert anatomy(model) == before


def altgrad_cast(format: str, scaling: str) -> Any:
    from altgrad_core.plugins import installed
    from altgrad_core.recipes.recipe import OperandCast
    from altgrad_core.structure import choose

    return OperandCast(format=format, scaling=choose(installed(), "scaling", scaling))


@pytest.mark.parametrize(
    "recipe", ["e5m2", {"base": "hybrid", "scaling": "delayed"}, {"base": "e4m3fn", "rounding": "stochastic"}]
)
def test_a_copy_is_a_model_of_its_own(recipe: Any) -> None:
    model, _ = altgrad.convert(small(), recipe)
    train(model, 3)
    copied = copy.deepcopy(model)
    assert control_of(copied) is not control_of(model)
    assert len(controls_of(copied)) == 1
    assert copied.head.weight is copied.embedding.weight
    assert copied.again is copied.first
    state = {name: value.clone() for name, value in copied.state_dict().items()}
    expected = train(model, 3, seed=1)
    assert all(torch.equal(value, state[name]) for name, value in copied.state_dict().items())
    with casts_off(model):
        assert control_of(copied).casting
    assert train(copied, 3, seed=1) == expected
    assert all(torch.equal(v, copied.state_dict()[k]) for k, v in model.state_dict().items())
    altgrad.revert(copied)
    assert type(copied.first) is nn.Linear
    assert type(model.first) is CastLinear


def test_a_copy_taken_while_somebody_listens_shares_nothing() -> None:
    model, _ = altgrad.convert(small(), PURE)
    altgrad.StepCasts(model, torch.optim.Adam(model.parameters()), PURE, seed=3)
    heard: list[str] = []
    control_of(model).listener = lambda key, _: heard.append(key)
    control_of(model).collecting = True
    copied = copy.deepcopy(model)
    copied(torch.arange(5)[None]).sum().backward()
    assert heard == []
    assert control_of(copied).seed == 3
    assert anatomy(altgrad.revert(copied))[0][3] == anatomy(small())[0][3]  # no hooks but the user's


def test_casts_off_reaches_copies_within_the_model() -> None:
    layer, _ = altgrad.convert(nn.Linear(16, 16), "e2m1fn")
    model = nn.Sequential(layer, copy.deepcopy(layer))
    plain = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    plain.load_state_dict(model.state_dict())
    x = torch.randn(3, 16)
    with casts_off(model):
        assert torch.equal(model(x), plain(x))
    assert not torch.equal(model(x), plain(x))
    with pytest.raises(altgrad.AltgradError, match="converted already"):
        altgrad.convert(model, "e5m2")


def test_shared_and_tied_layers_are_told_of() -> None:
    _, summary = altgrad.convert(small(), {"base": "e5m2", "overrides": [{"match": "again", "recipe": "e3m4"}]})
    assert summary.converted == ["first", "head"]
    reports = {layer.name: layer for layer in summary.layers}
    assert reports["first"].also == ("again",)
    assert reports["first"].recipe == "e3m4"
    assert summary.tied == (("embedding.weight", "head.weight"),)
    assert "  one layer: first, again" in str(summary)
    assert "  one parameter: embedding.weight, head.weight" in str(summary)


def test_a_forward_that_somebody_replaced_is_told_of() -> None:
    """What accelerate's hooks do: the instance's own forward goes before that of any class."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].forward = model[0].forward
    _, summary = altgrad.convert(model, "e5m2")
    assert summary.converted == ["1"]
    assert "its forward has been replaced" in summary.skipped["0"]


def test_a_model_in_half_precision_trains() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4)).bfloat16()
    altgrad.convert(model, {"base": "hybrid", "scaling": "delayed"})
    y = model(torch.randn(8, 16, dtype=torch.bfloat16))
    y.square().mean().backward()
    assert y.dtype is torch.bfloat16
    assert all(p.grad.dtype is torch.bfloat16 and p.grad.any() for p in model.parameters())
    history = {name: value.dtype for name, value in model.state_dict().items() if "amax" in name}
    assert set(history.values()) == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_history_stays_in_fp32_when_the_model_leaves_it(dtype: torch.dtype) -> None:
    """In FP16 the amax of most gradients would be 0, and the scaling current instead of delayed."""
    model, _ = altgrad.convert(nn.Sequential(nn.Linear(8, 8)), {"base": "hybrid", "scaling": "delayed"})
    history = model[0].grad_output_cast.scaling.amax_history
    history.fill_(1.1e-9)
    model.to(dtype)
    assert model[0].weight.dtype is dtype
    kept = model[0].grad_output_cast.scaling.amax_history
    assert kept.dtype is torch.float32
    assert torch.equal(kept, history)
    assert model.to("meta")[0].grad_output_cast.scaling.amax_history.is_meta


def test_weights_that_are_frozen_are_multiplied_and_not_trained() -> None:
    """No wgrad, so no cast for it; under directional scaling that is one cast of the gradient instead of two."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    model[1].requires_grad_(False)
    altgrad.convert(model, {"base": "mxfp8", "rounding": "stochastic"})
    model(torch.randn(4, 32)).sum().backward()
    assert model[1].weight.grad is None
    assert model[0].weight.grad is not None
    drawn = control_of(model)._occurrences
    assert "1.grad_output" in drawn
    assert "1.grad_output.axis0" not in drawn
    assert "1.input.axis0" not in drawn
    assert "0.input.axis0" in drawn


LOAD = """
import sys, torch, altgrad_core as altgrad
from torch import nn
from safetensors.torch import load_file
folder, recipe = sys.argv[1], eval(sys.argv[2])
torch.manual_seed(1)
for state in (load_file(f"{folder}/model.safetensors"), torch.load(f"{folder}/model.pt", weights_only=True)):
    model, _ = altgrad.convert(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4)), recipe)
    print(model.load_state_dict(state))
    x = torch.linspace(-3, 5, 64).view(4, 16)
    torch.save([model(x).detach(), model(3 * x).detach()], f"{folder}/out.pt")
    assert torch.equal(*[torch.load(f"{folder}/{name}.pt", weights_only=True)[1] for name in ("out", "expected")])
"""


def test_what_is_saved_loads_in_a_fresh_process(tmp_path: Path) -> None:
    """Without pickle, and the buffers of delayed scaling come along: the next forward passes have the same bits."""
    recipe = {"base": "hybrid", "scaling": {"kind": "delayed", "history": 4}}
    torch.manual_seed(0)
    model, _ = altgrad.convert(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4)), recipe)
    for _ in range(3):
        model(torch.randn(8, 16) * 10).sum().backward()
    assert any("amax_history" in name for name in model.state_dict())
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    x = torch.linspace(-3, 5, 64).view(4, 16)
    torch.save([model(x).detach(), model(3 * x).detach()], tmp_path / "expected.pt")
    done = subprocess.run([sys.executable, "-c", LOAD, tmp_path, repr(recipe)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("<All keys matched successfully>") == 2
