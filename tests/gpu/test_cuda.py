"""What must be the same on a CUDA device. Skipped, with the reason, where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import altgrad_core as altgrad
from altgrad_core.numerics.cast import cast
from altgrad_core.numerics.registry import format_names

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize("name", [*format_names(), "e0m7", "e1m6", "e6m1", "e7m0", "e8m3"])
@pytest.mark.parametrize("saturation", ["finite", "propagate", "none"])
def test_casts_give_the_bits_of_the_cpu(name: str, saturation: str) -> None:
    every_bf16 = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    torch.manual_seed(0)
    patterns = torch.randint(-(2**31), 2**31, (2**20,), dtype=torch.int64).to(torch.int32).view(torch.float32)
    for x in (every_bf16, patterns):
        here, counted = cast(x, name, saturation=saturation, dtype=torch.float32, statistics=True)
        there, counted_there = cast(x.cuda(), name, saturation=saturation, dtype=torch.float32, statistics=True)
        there = there.cpu()
        assert torch.equal(here.isnan(), there.isnan())
        numbers = ~here.isnan()
        assert torch.equal(here[numbers].view(torch.int32), there[numbers].view(torch.int32))
        assert torch.equal(counted[:6], counted_there.cpu()[:6])  # the counts; sums may round differently


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
