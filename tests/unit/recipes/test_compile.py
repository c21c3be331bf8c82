"""A converted model under ``torch.compile``: one graph, once, and what eager code computes, counts and remembers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import altgrad_core as altgrad
from altgrad_core.errors import AltgradError
from altgrad_core.numerics import native
from altgrad_core.recipes.control import CastControl, casts_off, control_of

pytestmark = pytest.mark.filterwarnings("default")  # the compiler's own imports warn

STOCHASTIC = {"base": "mxfp8", "rounding": "stochastic"}
NEWEST = {"kind": "delayed", "algorithm": "most_recent", "power_of_two": False}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Block(nn.Module):
    def __init__(self, again: bool = False) -> None:
        super().__init__()
        self.up, self.down, self.again = nn.Linear(32, 48), nn.Linear(48, 32, bias=False), again

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.mlp, x, use_reentrant=False) if self.again else self.mlp(x)


def control(model: nn.Module) -> CastControl:
    found = control_of(model)
    assert found is not None
    return found


def converted(recipe: object, **options: bool) -> Block:
    torch.manual_seed(0)
    model, _ = altgrad.convert(Block(**options), recipe)
    return model


def trained(
    call: nn.Module, model: Block, step: int, *, bf16: bool, collect: bool, sizes: tuple[int, ...]
) -> list[Tensor]:
    """Do a step of one micro-batch for each of ``sizes``; return all there is to compare."""
    shared = control(model)
    shared.seed, shared.collecting = 7, collect
    shared.begin_step(step)
    model.zero_grad()
    draws = torch.Generator().manual_seed(step)
    for size in sizes:
        x = torch.randn(2, size, 32, generator=draws).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            y = call(x)
        y.float().square().mean().backward()
    found = [y.detach(), x.grad, *(p.grad for p in model.parameters()), *(b.clone() for b in model.buffers())]
    if collect:
        found += [vector for _, vector in sorted(shared.take().items())]
        casts = (model.up.weight_cast, model.up.grad_output_cast)
        found += [cast.last_scale for cast in casts if cast is not None]
    return found


def check(recipe: object, backend: str, *, bf16: bool = True, dynamic: bool | None = None) -> None:
    """Train eager and compiled copies of one model, with statistics and without, and compare them bit for bit."""
    model = converted(recipe)
    eager, counter = copy.deepcopy(model), CompileCounterWithBackend(backend)
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=dynamic)
    frames = []
    for step in range(6):
        sizes = (9, 9) if dynamic is None else (step + 5, step + 9)
        how: dict[str, Any] = {"bf16": bf16, "collect": step % 2 == 1, "sizes": sizes}
        mine, theirs = trained(compiled, model, step, **how), trained(eager, eager, step, **how)
        assert [torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)] == [True] * len(theirs), step
        frames.append(counter.frame_count)
    assert frames == [1, 2, 2, 2, 2, 2]


def test_steps_micro_batches_draws_and_statistics_of_one_graph() -> None:
    check(STOCHASTIC, "aot_eager")


def test_histories_move_on_in_one_graph() -> None:
    check({"base": "hybrid", "scaling": NEWEST}, "aot_eager", dynamic=True)


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize(
    "recipe",
    [
        *(
            {"base": "e4m3fn", "scaling": kind}
            for kind in ("none", "current", "delayed", NEWEST, "rowwise", "blockwise")
        ),
        *("e5m2", "hybrid", "mxfp8", "nvfp4", "deepseek-v3", "posit8", {"base": "e5m2", "rounding": "stochastic"}),
        *({"base": "e4m3fn", "backend": "native"}, {"input": "e4m3fn"}, {"grad_output": "mxfp8_e5m2"}),
    ],
    ids=str,
)
def test_every_scaling(recipe: object, bf16: bool) -> None:
    check(recipe, "aot_eager", bf16=bf16)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["native", "torch"])
@pytest.mark.parametrize("recipe", ["e5m2", STOCHASTIC, {"base": "e4m3fn", "scaling": NEWEST}], ids=str)
def test_compiled_code(recipe: object, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the kernel's operators, and through the code that the compiler makes of tensor operations, as for a GPU."""
    if kernel == "native" and not native.status().native:
        pytest.skip("no native kernel")
    monkeypatch.setenv("ALTGRAD_KERNEL", kernel)
    native.status.cache_clear()
    model = converted(recipe)
    eager, compiled = copy.deepcopy(model), torch.compile(model, fullgraph=True)
    for step in range(3):
        how: dict[str, Any] = {"bf16": False, "collect": step == 2, "sizes": (9, 9)}
        mine, theirs = trained(compiled, model, step, **how), trained(eager, eager, step, **how)
        for a, b in zip(mine, theirs, strict=True):
            if a.shape == (10,):  # powers are sums
                assert torch.equal(a[:8], b[:8])
                assert torch.allclose(a[8:], b[8:], rtol=1e-4)
            else:
                assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)
    native.status.cache_clear()


def test_blocks_that_are_compiled_one_by_one_share_a_graph() -> None:
    """Names are no constants of it; each block's statistics and bits are its own."""
    torch.manual_seed(0)
    model, _ = altgrad.convert(nn.Sequential(*(Block() for _ in range(9))), STOCHASTIC)
    eager, counter = copy.deepcopy(model), CompileCounter()
    for block in model:
        block.compile(backend=counter, fullgraph=True)
    results = []
    for each in (model, eager):
        control(each).collecting = True
        each(torch.linspace(-1, 1, 64).reshape(2, 32)).sum().backward()
        results.append((control(each).take(), [p.grad for p in each.parameters()]))
    (mine, gradients), (theirs, expected) = results
    assert counter.frame_count <= 2  # the first block's input takes no gradient
    assert mine.keys() == theirs.keys()
    assert len(mine) == 54
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


def test_casts_are_switched_off_in_compiled_code() -> None:
    model = converted("e5m2")
    plain = Block()
    plain.load_state_dict(model.state_dict())
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.linspace(-1, 1, 64).reshape(2, 32)
    cast = compiled(x)
    with casts_off(compiled):
        assert torch.equal(compiled(x), plain(x))
    assert torch.equal(compiled(x), cast)
    assert not torch.equal(plain(x), cast)


@pytest.mark.slow
def test_checkpoints_in_compiled_code() -> None:
    """The same gradients, and elements that count once, where a cast depends on its operand alone; else an error."""
    x = torch.linspace(-1, 1, 64).reshape(2, 32)
    model = converted("mxfp8", again=True)
    eager = copy.deepcopy(model)
    eager.again = False
    for each in (model, eager):
        control(each).collecting = True
    torch.compile(model, backend="aot_eager", fullgraph=True)(x).square().sum().backward()
    eager(x).square().sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), eager.parameters(), strict=True))
    mine, theirs = control(model).take(), control(eager).take()
    assert {key: vector.tolist() for key, vector in mine.items()} == {k: v.tolist() for k, v in theirs.items()}


@pytest.mark.parametrize(
    "recipe", [pytest.param(STOCHASTIC, marks=pytest.mark.slow), {"base": "e4m3fn", "scaling": "delayed"}], ids=str
)
def test_checkpoints_that_cannot_be_repeated_are_refused(recipe: object) -> None:
    model = converted(recipe, again=True)
    loss = torch.compile(model, backend="aot_eager", fullgraph=True)(torch.ones(2, 32)).sum()
    with pytest.raises(
        AltgradError, match="computed again in the backward pass, by activation checkpointing of compiled"
    ):
        loss.backward()


@pytest.mark.slow
def test_copies_are_places_of_their_own() -> None:
    model = converted(STOCHASTIC)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        control(other).collecting = True
        torch.compile(other, backend="eager", fullgraph=True)(torch.ones(2, 32))
        assert set(control(other).take()) == {
            f"{layer}.{side}" for layer in ("up", "down") for side in ("input", "weight")
        }
    compiled(torch.ones(2, 32))
    assert control(model).take() == {}


def test_keys_and_order() -> None:
    """``torch.compile`` puts ``_orig_mod.`` before the keys; a model may be converted after it, and compiles anew."""
    model = Block()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.linspace(-1, 1, 64).reshape(2, 32)
    before = compiled(x)
    altgrad.convert(model, "e5m2")
    assert set(compiled.state_dict()) == {f"_orig_mod.{key}" for key in model.state_dict()}
    assert torch.equal(compiled(x), model(x))
    assert not torch.equal(compiled(x), before)


class Attention(nn.Module):
    def __init__(self, seen: bool = True) -> None:
        super().__init__()
        self.qkv, self.out, self.seen = nn.Linear(32, 96), nn.Linear(32, 32), seen

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(2, 8, 3, 2, 16).permute(2, 0, 3, 1, 4)
        if self.seen:
            y = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.einsum("bhts,bhsd->bhtd", torch.einsum("bhtd,bhsd->bhts", q, k).softmax(-1), v)
        return self.out(y.transpose(1, 2).reshape(2, 8, 32))


class Mixed(nn.Module):
    """One layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(40, 32), nn.LayerNorm(32)
        self.conv, self.attention = nn.Conv1d(8, 8, 3, padding=1), Attention()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.attention(self.conv(self.norm(self.table(tokens))))


@pytest.mark.parametrize(
    "recipe",
    [
        {"base": "e4m3fn", "scaling": "delayed", "rounding": "stochastic"},
        pytest.param({"base": "mxfp8"}, marks=pytest.mark.slow),
        pytest.param(STOCHASTIC, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_all_kinds_of_layers(recipe: dict[str, Any]) -> None:
    torch.manual_seed(0)
    kinds = ["linear", "conv", "embedding", "norm", "attention"]
    model, summary = altgrad.convert(Mixed(), {**recipe, "layers": kinds})
    assert {layer.kind for layer in summary.layers if layer.converted} == set(kinds)
    other = copy.deepcopy(model)
    tokens = torch.arange(16).reshape(2, 8)
    results = []
    for it, call in ((model, model), (other, torch.compile(other, backend="aot_eager"))):
        control(it).collecting = True
        for _ in range(3):
            y = call(tokens)
            y.square().mean().backward()
        statistics = {key: vector.tolist() for key, vector in control(it).take().items()}
        results.append((y.tolist(), [p.grad.tolist() for p in it.parameters() if p.grad is not None], statistics))
    assert results[0] == results[1]
    assert "attention.probabilities" in results[0][2]


def test_an_attention_is_never_left_uncast_in_silence() -> None:
    """The part that watches for its products is not compiled: fullgraph says so, and products that are not seen are told of."""
    whole, _ = altgrad.convert(Attention(), {"base": "e5m2", "layers": ["attention"]})
    with pytest.raises(torch._dynamo.exc.Unsupported, match="products of a cast attention are watched for"):
        torch.compile(whole, backend="eager", fullgraph=True)(torch.ones(2, 8, 32))
    blind, _ = altgrad.convert(Attention(seen=False), {"base": "e5m2", "layers": ["attention"]})
    with pytest.warns(UserWarning, match="multiplies in a way that altgrad does not see"):
        torch.compile(blind, backend="eager")(torch.ones(2, 8, 32))
