from __future__ import annotations

import pytest
import torch
from states import Small
from torch import Tensor, nn
from torch.nn import functional as F

import altgrad_core as altgrad
from altgrad_core.errors import AltgradError
from altgrad_core.recipes.activations import SavedActivations
from altgrad_core.recipes.control import CastControl, casts_off
from altgrad_core.recipes.kept import Kept
from altgrad_core.recipes.resolve import resolve_recipe
from altgrad_core.recipes.tensor_cast import TensorCast


class Block(nn.Module):
    """A little of everything that saves something."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(16, 32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(self.embedding(tokens))).view(2, 8, 3, 2, 16).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 8, 32)
        return self.out(F.gelu(mixed))


class Watched:
    """Runs a forward pass and notes every tensor that autograd saves, and what becomes of it."""

    def __init__(self, recipe: dict, *, autocast: bool = True) -> None:
        torch.manual_seed(0)
        self.model = Block()
        resolved = resolve_recipe(recipe)
        altgrad.convert(self.model, resolved)
        self.control = CastControl()
        self.saved = SavedActivations(self.model, resolved.saved_activations, self.control)
        self.seen: list[tuple[str, Tensor, Tensor | Kept]] = []
        pack = self.saved._pack

        def watched(x: Tensor) -> Tensor | Kept:
            kept = pack(x)
            self.seen.append((self.saved._modules[-1].removesuffix(".saved_activations"), x.clone(), kept))
            return kept

        self.saved._pack = watched
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), self.saved.around():
            self.output = self.model(torch.arange(16).view(2, 8))

    def cast(self) -> list[tuple[str, tuple[int, ...]]]:
        return [(where, tuple(x.shape)) for where, x, kept in self.seen if isinstance(kept, Kept)]

    def left(self) -> list[tuple[str, tuple[int, ...]]]:
        return [
            (where, tuple(x.shape))
            for where, x, kept in self.seen
            if x.is_floating_point() and not isinstance(kept, Kept)
        ]


def test_activations_are_cast_and_nothing_else() -> None:
    """The BF16 copies of weights that autocast makes are no activations, nor are a norm's and attention's statistics."""
    watched = Watched({"saved_activations": "e5m2"})
    assert sorted(watched.cast()) == [
        ("norm", (2, 8, 32)),
        ("out", (16, 32)),
        ("qkv", (16, 32)),
        *[("saved_activations", (2, 2, 8, 16))] * 4,
        ("saved_activations", (2, 8, 32)),
    ]
    assert sorted(watched.left()) == [
        ("norm", (2, 8, 1)), ("norm", (2, 8, 1)), ("norm", (32,)), ("norm", (32,)),
        ("out", (32, 16)), ("qkv", (32, 96)), ("saved_activations", (2, 2, 8)),
    ]  # fmt: skip


@pytest.mark.parametrize("base", ["hybrid", "mxfp8", {"input": "e5m2"}, {"grad_output": "e5m2"}])
def test_the_weight_of_a_converted_layer_is_left_alone(base: str | dict) -> None:
    recipe = {"base": base} if isinstance(base, str) else base
    watched = Watched({**recipe, "saved_activations": "e4m3fn"})
    assert {shape for where, shape in watched.cast() if where in ("qkv", "out")} == {(2, 8, 32)}
    assert {shape for where, shape in watched.left() if where in ("qkv", "out")} == {(96, 32), (16, 32)}


def test_the_forward_pass_is_untouched_and_the_backward_reads_cast_values() -> None:
    plain, watched = (Watched({"saved_activations": name}, autocast=False) for name in ("fp32", "e4m3fn"))
    assert torch.equal(plain.output, watched.output)
    for one in (plain, watched):
        one.output.square().sum().backward()
    x = next(x for where, x, _ in plain.seen if where == "out")
    q = altgrad.quantize(x, "e4m3fn", scale=2.0 ** (x.abs().max() / 448).log2().ceil().item())
    grad = (2 * plain.output.detach()).view(16, 16)
    assert torch.allclose(plain.model.out.weight.grad, grad.t() @ x.view(16, 32), rtol=1e-4, atol=1e-5)
    assert torch.allclose(watched.model.out.weight.grad, grad.t() @ q.view(16, 32), rtol=1e-4, atol=1e-5)
    assert not torch.equal(watched.model.out.weight.grad, plain.model.out.weight.grad)


def test_values_of_the_format_are_kept_exactly() -> None:
    """What the input cast has made is not rounded once more."""
    watched = Watched({"base": "e4m3fn", "saved_activations": "e4m3fn"})
    inputs = [(x, kept) for where, x, kept in watched.seen if where in ("qkv", "out") and isinstance(kept, Kept)]
    assert len(inputs) == 2
    assert all(torch.equal(kept.restore(), x) for x, kept in inputs)


@pytest.mark.parametrize(
    ("format", "bytes_"),
    [("e4m3fn", 4096), ("e5m2", 4096), ("e3m4", 4096), ("posit8", 4096), ("e3m2fn", 3072), ("e2m1fn", 2048),
     ("nf4", 2048), ("bf16", 8192), ("e5m6", 8192), ("e8m3", 8192), ("tf32", 16384), ("mxfp4", 2048 + 512),
     ("nvfp4", 2048 + 1024), ("mxfp8_e4m3", 4096 + 512)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_takes_the_memory_of_the_format(format: str, bytes_: int, dtype: torch.dtype) -> None:
    """64 x 64 elements; blocks' scales are FP32 numbers."""
    torch.manual_seed(0)
    x = (torch.randn(64, 64) * torch.logspace(-6, 3, 64)).to(dtype)
    how = resolve_recipe({"saved_activations": format}).saved_activations
    cast = TensorCast(how)
    kept = Kept.of(*cast.grid_values(x, CastControl(), ""), cast.element, dtype)
    assert kept.nbytes == bytes_ + (4 if kept.scale.dim() == 0 else 0)
    assert kept.restore().dtype == dtype
    assert torch.equal(kept.restore(), cast(x, CastControl(), ""))


@pytest.mark.parametrize("format", ["e2m1fn", "e4m3fn", "nf4", "e5m2", "e3m4", "mxfp4"])
def test_a_nan_is_not_lost(format: str) -> None:
    x = torch.ones(4, 32)
    x[1, 1] = torch.nan
    cast = TensorCast(resolve_recipe({"saved_activations": format}).saved_activations)
    assert Kept.of(*cast.grid_values(x, CastControl(), ""), cast.element, x.dtype).restore()[1, 1].isnan()


def test_a_history_has_no_tensor_to_belong_to() -> None:
    with pytest.raises(AltgradError, match=r"^saved_activations cannot be scaled by 'delayed': .* use 'current'"):
        Small({"saved_activations": {"format": "e5m2", "scaling": "delayed"}})


def test_codes_of_native_gemms_are_no_values_to_cast() -> None:
    model, _ = altgrad.convert(nn.Sequential(nn.Linear(16, 16)), {"base": "hybrid", "backend": "native"})
    optimizer = torch.optim.SGD(model.parameters())
    casts = altgrad.StepCasts(model, optimizer, {"base": "hybrid", "saved_activations": "e5m2"}, seed=0)
    with (
        casts.forward_pass(),
        pytest.raises(AltgradError, match=r"'0' keeps FP8 codes .* the recipe that StepCasts has"),
    ):
        model(torch.randn(4, 16))


def test_evaluation_and_the_shadow_are_left_alone() -> None:
    small = Small({"saved_activations": "e2m1fn"})
    x = torch.randn(8, 16)

    def gradient() -> Tensor:
        small.model.zero_grad()
        with small.casts.forward_pass():
            small.model(x).square().sum().backward()
        return small.model[0].weight.grad.clone()

    cast = gradient()
    with casts_off(small.model):
        exact = gradient()
    small.model.zero_grad()
    small.model(x).square().sum().backward()
    assert torch.equal(exact, small.model[0].weight.grad)
    assert not torch.equal(exact, cast)
    with torch.no_grad(), small.casts.forward_pass():
        small.model(x)


def test_statistics_by_module() -> None:
    small = Small({"saved_activations": {"format": "e2m1fn", "scaling": "none"}})
    small.casts.control.collecting = True
    small.step()
    taken = small.casts.control.take()
    assert set(taken) == {f"{name}.saved_activations" for name in ("0", "1", "2", "3")}
    assert taken["0.saved_activations"][0] == 64 * 16
    assert taken["3.saved_activations"][2] > 0


def test_a_forward_pass_that_fails_leaves_nothing_behind() -> None:
    small = Small({"saved_activations": "e5m2"})
    with pytest.raises(RuntimeError), small.casts.forward_pass():
        small.model(torch.randn(3, 5))
    small.casts.control.collecting = True
    small.step()
    assert "0.saved_activations" in small.casts.control.take()
