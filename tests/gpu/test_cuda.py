"""What must be the same on a CUDA device. Skipped, with the reason, where there is none."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor

import altgrad_core as altgrad
from altgrad_core.numerics import BlockFormat, get_format
from altgrad_core.numerics.cast import cast
from altgrad_core.numerics.modes import ROUNDINGS, SATURATIONS, Saturation
from altgrad_core.numerics.registry import format_names
from altgrad_core.numerics.stochastic import Draw
from altgrad_core.training.saving import HostCopy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


CASTABLE = [name for name in format_names() if not isinstance(get_format(name), BlockFormat)]
BLOCKS = [name for name in format_names() if isinstance(get_format(name), BlockFormat)]


def same_bits(here: Tensor, there: Tensor) -> bool:
    there = there.cpu()
    numbers = ~here.isnan()
    alike = torch.equal(here[numbers].view(torch.int32), there[numbers].view(torch.int32))
    return alike and torch.equal(here.isnan(), there.isnan())


@pytest.mark.parametrize("name", [*CASTABLE, "e0m7", "e1m6", "e6m1", "e7m0", "e8m3"])
@pytest.mark.parametrize("saturation", SATURATIONS)
def test_casts_give_the_bits_of_the_cpu(name: str, saturation: Saturation) -> None:
    every_bf16 = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    torch.manual_seed(0)
    patterns = torch.randint(-(2**31), 2**31, (2**18,), dtype=torch.int64).to(torch.int32).view(torch.float32)
    for x, rounding in itertools.product((every_bf16, patterns), ROUNDINGS):
        how = {"saturation": saturation, "rounding": rounding, "draw": Draw(seed=1), "dtype": torch.float32}
        here, counted = cast(x, name, statistics=True, **how)
        there, counted_there = cast(x.cuda(), name, statistics=True, **how)
        assert same_bits(here, there)
        assert torch.equal(counted[:6], counted_there.cpu()[:6])  # the counts; sums may round differently


@pytest.mark.parametrize("name", BLOCKS)
def test_block_formats_give_the_bits_of_the_cpu(name: str) -> None:
    x = torch.randn(300, 301, generator=torch.Generator().manual_seed(0)) * torch.logspace(-20, 20, 300)[:, None]
    assert same_bits(altgrad.quantize(x, name), altgrad.quantize(x.cuda(), name))


@pytest.mark.parametrize("recipe", ["bf16", "e5m2", "hybrid"])
def test_the_same_run_twice_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    monkeypatch.setenv("ALTGRAD_CACHE", str(tmp_path / "cache"))
    file = Path(__file__).parents[2] / "experiments.toml"
    overrides = ["train.steps=6", "train.eval_batches=1", f'bf16:recipe="{recipe}"']
    runs = [
        altgrad.run(file, overrides=overrides, only=["bf16"], runs=tmp_path / where, device="cuda")[0]
        for where in ("one", "two")
    ]
    assert [run.status for run in runs] == ["done", "done"]
    assert runs[0].environment["device"] == "cuda"
    for metric in ("train/loss", "val/loss", "grad_cos_sim", "bit_stall_rate"):
        assert runs[0].metrics(metric) == runs[1].metrics(metric)


def test_a_checkpoint_is_that_of_the_moment_on_the_device_too() -> None:
    """Copied through pinned memory, and complete before training goes on."""
    weight = torch.randn(1 << 22, device="cuda")
    expected = weight.cpu()
    copied = HostCopy().take({"w": weight, "t": weight.view(2, -1).t(), "host": expected})
    weight.zero_()
    assert copied["w"].is_pinned()
    assert torch.equal(copied["w"], expected)
    assert torch.equal(copied["t"], expected.view(2, -1).t())
    assert torch.equal(copied["host"], expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_of_a_model_on_the_device_give_the_same_bits(reentrant: bool) -> None:
    """The backward pass runs in a thread of its own there; a converted model finds its buffers where its weights are."""
    recipe = {"base": "hybrid", "scaling": "delayed", "rounding": "stochastic", "layers": ["linear", "norm"]}

    def train(checkpointed: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        block = torch.nn.Sequential(torch.nn.LayerNorm(64), torch.nn.Linear(64, 64), torch.nn.GELU()).cuda()
        altgrad.convert(block, recipe)
        for _ in range(3):
            inputs = [torch.randn(8, 64, device="cuda", requires_grad=True) for _ in range(2)]
            for x in inputs:
                y = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=reentrant) if checkpointed else block(x)
                y.square().mean().backward()
        return {**block.state_dict(), **{f"gradient of {name}": p.grad for name, p in block.named_parameters()}}

    expected, got = train(False), train(True)
    assert all(value.is_cuda for value in expected.values())
    assert [name for name, value in expected.items() if not torch.equal(value, got[name])] == []
