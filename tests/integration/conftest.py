"""A small experiment in a folder of its own, with its token cache beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import MakeExperiment

SMALL = """
[experiment]
name = "small"
[defaults]
launcher = "{launcher}"
[defaults.model]
n_layer = 2
n_head = 2
n_embd = 32
block_size = 32
dropout = {dropout}
[defaults.data]
kind = "text"
path = "{text}"
tokenizer = "bytes"
[defaults.train]
steps = 12
batch_size = 4
warmup_steps = 3
learning_rate = 3e-3
eval_every = 5
eval_batches = 2
[defaults.checkpoint]
every = 4
[defaults.probes]
gradients = {{ every = 2 }}
stability = {{ every = 2 }}
updates = {{ every = 2 }}
shadow = {{ every = 3 }}
"""


@pytest.fixture
def make_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeExperiment:
    """Return a function that writes ``small.toml`` with the given ``[[run]]`` tables and returns its path."""
    monkeypatch.setenv("ALTGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text"
    text.mkdir()
    for number in range(20):
        (text / f"{number}.txt").write_text(f"Document {number}. " + "The quick brown fox jumps over it. " * 20)

    def make(runs: str, *, launcher: str = "inline", dropout: float = 0.0) -> Path:
        file = tmp_path / "small.toml"
        file.write_text(SMALL.format(launcher=launcher, dropout=dropout, text=text) + runs)
        return file

    return make
