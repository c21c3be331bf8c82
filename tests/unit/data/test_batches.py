from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from altgrad_core.errors import AltgradError
from altgrad_core.training.data import TokenData, batch, check_lengths, evaluation_batches

TOKENS = np.arange(1000, dtype=np.uint16)


def data(train: int, val: int) -> TokenData:
    return TokenData(
        name="mine",
        train=np.arange(train, dtype=np.uint16),
        val=np.arange(val, dtype=np.uint16),
        vocab_size=1 << 16,
        tokenizer="bytes",
        documents=2,
        source_sha256="",
        path=Path("/data/mine"),
    )


def starts(tokens: np.ndarray = TOKENS, *, seed: int = 42, step: int = 1, micro_step: int = 0) -> list[int]:
    inputs, _ = batch(tokens, seed=seed, step=step, micro_step=micro_step, batch_size=6, block_size=4)
    return inputs[:, 0].tolist()


def test_pinned_values() -> None:
    """Sampling must not change: a run resumed or repeated with a newer version sees the same batches."""
    inputs, targets = batch(TOKENS, seed=42, step=1, batch_size=6, block_size=4)
    assert inputs[:, 0].tolist() == [195, 327, 694, 489, 585, 776]
    assert targets[0].tolist() == [196, 197, 198, 199]
    assert starts(micro_step=1) == [772, 547, 975, 861, 507, 486]
    assert starts(step=2) == [960, 320, 770, 670, 536, 755]
    assert starts(seed=0) == [175, 187, 852, 37, 32, 197]


def test_targets_are_the_inputs_one_token_later() -> None:
    inputs, targets = batch(TOKENS, seed=1, step=1, batch_size=8, block_size=16)
    assert inputs.shape == targets.shape == (8, 16)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.is_contiguous()
    assert targets.is_contiguous()
    assert torch.equal(targets, inputs + 1)  # the tokens count upwards
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(16))


def test_a_batch_depends_on_its_arguments_only() -> None:
    first = starts()
    starts(step=99)
    np.random.seed(0)
    torch.manual_seed(0)
    assert starts() == first


def test_seed_step_and_micro_step_give_different_batches() -> None:
    seen = {tuple(starts(seed=s, step=t, micro_step=m)) for s in range(5) for t in range(5) for m in range(5)}
    assert len(seen) == 125


def test_the_start_of_a_batch_does_not_depend_on_its_size() -> None:
    small, _ = batch(TOKENS, seed=3, step=7, batch_size=2, block_size=8)
    large, _ = batch(TOKENS, seed=3, step=7, batch_size=64, block_size=8)
    assert torch.equal(small, large[:2])


def test_positions_are_uniform() -> None:
    """Chi-square over all 100 possible starts, 40,000 draws: mean 99, standard deviation 14."""
    tokens = np.arange(104, dtype=np.uint16)
    drawn = [batch(tokens, seed=5, step=step, batch_size=400, block_size=4)[0][:, 0] for step in range(100)]
    counts = torch.bincount(torch.cat(drawn), minlength=100).double()
    assert len(counts) == 100
    assert 50 < float(((counts - 400) ** 2 / 400).sum()) < 160


def test_exactly_one_sample() -> None:
    inputs, targets = batch(np.arange(9, dtype=np.uint16), seed=1, step=1, batch_size=2, block_size=8)
    assert inputs.tolist() == [list(range(8))] * 2
    assert targets.tolist() == [list(range(1, 9))] * 2


def test_too_few_tokens() -> None:
    with pytest.raises(AltgradError, match=r"8 tokens are too few: a sample needs block_size \+ 1 = 9"):
        batch(np.arange(8, dtype=np.uint16), seed=1, step=1, batch_size=2, block_size=8)


@pytest.mark.parametrize(("train", "val", "split"), [(8, 100, "training"), (100, 8, "validation")])
def test_a_split_shorter_than_a_sample(train: int, val: int, split: str) -> None:
    with pytest.raises(AltgradError) as raised:
        evaluation_batches(data(train, val), batches=1, batch_size=1, block_size=8)
    text = str(raised.value)
    assert text.startswith(f"The {split} split of the dataset 'mine' has 8 tokens; a sample needs block_size + 1 = 9.")
    assert "Lower model.block_size" in text
    assert "/data/mine" in text
    check_lengths(data(9, 9), 8)


def test_large_ids_and_the_whole_range_of_seeds() -> None:
    tokens = np.array([4_000_000_000, 3_999_999_999], dtype=np.uint32)
    inputs, targets = batch(tokens, seed=2**63 - 1, step=2**40, batch_size=1, block_size=1)
    assert (inputs.item(), targets.item()) == (4_000_000_000, 3_999_999_999)


def test_evaluation_windows_are_fixed_and_spread_evenly() -> None:
    found = list(evaluation_batches(data(9, 1008), batches=5, batch_size=4, block_size=8))
    assert [inputs.shape for inputs, _ in found] == [(4, 8)] * 5
    starts = torch.cat([inputs[:, 0] for inputs, _ in found])
    assert starts.tolist() == list(range(0, 1000, 50))
    assert all(torch.equal(targets, inputs + 1) for inputs, targets in found)
    again = evaluation_batches(data(9, 1008), batches=5, batch_size=4, block_size=8)
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(found, again, strict=True))


@pytest.mark.parametrize("val", [9, 10, 50])
def test_evaluation_windows_stay_inside_a_short_split(val: int) -> None:
    for inputs, targets in evaluation_batches(data(9, val), batches=3, batch_size=7, block_size=8):
        assert inputs.shape == (7, 8)
        assert int(targets.max()) < val
