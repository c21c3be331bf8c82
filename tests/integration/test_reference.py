"""Without casts, a run is what plain PyTorch gives: bit for bit the losses of the reference loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import MakeExperiment
from reference_loop import GPT, train

import altgrad_core as altgrad
from altgrad_core.training.data import TokenData, Workspace, cache_folder

UNCAST = '{ input = "bf16", weight = "bf16", grad_output = "bf16", scaling = "none", compute = "bf16" }'


@pytest.mark.parametrize(
    ("recipe", "bf16"),
    [('"fp32"', False), ('"bf16"', True), (UNCAST, True)],
    ids=["fp32", "bf16", "bf16 operands cast to bf16"],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_losses_are_those_of_plain_pytorch(
    make_experiment: MakeExperiment, recipe: str, bf16: bool, accumulate: int
) -> None:
    file = make_experiment(f'[[run]]\nname = "r"\nrecipe = {recipe}\ntrain = {{ accumulate = {accumulate} }}\n')
    (run,) = altgrad.run(file)
    steps, losses = run.metrics("train/loss")
    data = tokens_of(file)
    torch.manual_seed(42)
    model = GPT(2, 2, 32, 32, data.vocab_size)
    expected = train(model, data, steps=12, batch_size=4, block_size=32, accumulate=accumulate, rate=3e-3, warmup=3,
                     seed=42, bf16=bf16)  # fmt: skip
    assert steps == list(range(1, 13))
    assert [np.float32(loss) for loss in losses] == [np.float32(loss) for loss in expected]
    assert losses[-1] < losses[0] - 0.5


def tokens_of(file: Path) -> TokenData:
    """Return the tokens that the run read: prepared once, found again in the cache."""
    from altgrad_core.experiments.config import load_experiment
    from altgrad_core.plugins import installed

    choice = load_experiment(file).runs[0].data
    workspace = Workspace(cache=cache_folder(), say=lambda message: None)
    data: TokenData = installed().get("dataset", choice.kind).value(choice.options, workspace)
    return data
