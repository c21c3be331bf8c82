"""``altgrad data prepare``, its typer app called as the command line does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from altgrad_core.cli.data import app
from altgrad_core.errors import AltgradError
from altgrad_core.training.data import open_tokens


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    monkeypatch.setenv("ALTGRAD_CACHE", str(tmp_path / "cache"))

    def prepare(*arguments: str | Path) -> str:
        return (
            CliRunner()
            .invoke(app, ["prepare", *map(str, arguments)], catch_exceptions=False, standalone_mode=False)
            .output
        )

    return prepare


def test_the_folder_and_the_counts(prepare: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    out = tmp_path / "new" / "tokens"
    output = prepare(
        "text", "--path", tmp_path / "a.txt", "--val-fraction", "0.5", "--tokenizer", "bytes", "--out", out
    )
    assert output.splitlines()[-1] == (
        f"{out}: 5 training and 5 validation tokens from 2 documents (tokenizer bytes, vocabulary 257)"
    )
    data = open_tokens(out)
    assert (data.train.tolist(), data.val.tolist()) == ([*b"one\n", 256], [*b"two\n", 256])
    assert sorted(path.name for path in out.iterdir()) == ["meta.json", "train.bin", "val.bin"]
    with pytest.raises(AltgradError, match="is there already"):
        prepare("text", "--path", tmp_path / "a.txt", "--out", out)


def test_options_are_those_of_the_dataset(prepare: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(AltgradError, match="attachments"):
        prepare("stdlib", "--attachments", "--out", tmp_path / "out")
    with pytest.raises(AltgradError, match="path"):
        prepare("text", "--out", tmp_path / "out")
    with pytest.raises(AltgradError, match="Chalkidis"):
        prepare("eurlex", "--out", tmp_path / "out")
    with pytest.raises(AltgradError, match="Did you mean 'gpt2'"):
        prepare("stdlib", "--tokenizer", "gtp2", "--out", tmp_path / "out")
    with pytest.raises(AltgradError, match=r"Unknown dataset 'stdlb'\. Did you mean 'stdlib'"):
        prepare("stdlb", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
