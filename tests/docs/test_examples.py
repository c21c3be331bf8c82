"""The loops under examples/ run as they are, at a tiny size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def example(name: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_loop_in_the_style_of_nanogpt(tmp_path: Path) -> None:
    size = ("--n-layer", "1", "--n-embd", "32", "--block-size", "32", "--batch-size", "4")
    out = example("nanogpt_loop.py", *size, "--steps", "5", "--every", "2", "--out", str(tmp_path / "weights.pt"))
    assert "hybrid: 5 of 5 linear layers converted" in out
    assert "one parameter: wte.weight, lm_head.weight" in out
    assert "step 4: loss 5." in out
    table = out[out.index("step 4\n") :]
    assert "h.0.attn.c_attn.grad_output" in table
    assert "grad_cos_sim" in table
    assert "h.0.mlp.2.weight" in torch.load(tmp_path / "weights.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gpt2", "llama", "bert"])
def test_the_loop_with_a_hugging_face_model(model: str) -> None:
    pytest.importorskip("transformers", reason="needs transformers, which altgrad[test] brings")
    out = example("hf_loop.py", "--model", model, "--steps", "3", "--every", "2")
    assert "linear layers converted" in out
    assert "step 2: loss" in out
    assert "bit_stall_rate" in out


@pytest.mark.slow
def test_the_trainer_of_transformers() -> None:
    pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
    out = example("hf_loop.py", "--trainer", "--steps", "4", "--every", "2", "--recipe", "e5m2")
    assert "step 4\n" in out
    assert "bit_stall_rate" in out
