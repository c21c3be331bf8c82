"""``stdlib``, ``text`` and ``tokens``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
from altgrad_data import stdlib
from altgrad_data.text import divide

from altgrad_core.errors import AltgradError
from altgrad_core.training.data import TokenData

Write = Callable[[str, str | bytes], Path]


def text_of(tokens: np.ndarray) -> str:
    return bytes(token for token in tokens.tolist() if token < 256).decode()


def test_checking_options_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; sys.path[:0] = %r\n"
        "from altgrad_core.plugins import load_plugins\n"
        "plugins = load_plugins(modules=['altgrad_data'], entry_points=[])\n"
        "assert plugins.names('dataset') == ['eurlex', 'stdlib', 'text', 'tokens'], plugins.rows\n"
        "plugins.get('dataset', 'text').options(path='x')\n"
        "print(sorted({'torch', 'numpy', 'tiktoken'} & set(sys.modules)))\n"
    )
    paths = [path for path in sys.path if path]
    done = subprocess.run([sys.executable, "-c", code % paths], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


# stdlib


@pytest.fixture(scope="module")
def library() -> dict[str, str]:
    return stdlib.documents()


def test_stdlib_has_modules_and_help_but_no_tests_and_no_packages(library: dict[str, str]) -> None:
    assert {"argparse.py", "json/decoder.py", "help/while"} <= set(library)
    assert next(iter(library)).endswith(".py")
    assert not [name for name in library if {"test", "tests", "site-packages", "idlelib"} & set(name.split("/"))]
    assert 'The "while" statement' in library["help/while"]
    assert len(set(library.values())) == len(library)
    assert all(text.strip() for text in library.values())


def test_stdlib_is_capped_and_spread(library: dict[str, str]) -> None:
    train, val = stdlib.choose(library, 1_000_000, 0.1)
    sizes = [sum(len(text.encode()) for text in split) for split in (train, val)]
    assert 900_000 < sum(sizes) <= 1_000_000
    assert 0.1 <= sizes[1] / sum(sizes) < 0.2
    assert not set(train) & set(val)
    assert (train, val) == stdlib.choose(dict(reversed(library.items())), 1_000_000, 0.1)
    names = {text: name for name, text in library.items()}
    assert len({names[text][0] for text in train}) > 10, "names from all over the alphabet"


def test_stdlib_always_has_a_validation_document() -> None:
    train, val = stdlib.choose({"a": "x" * 100, "b": "y" * 100}, 1000, 0.999)
    assert (len(train), len(val)) == (1, 1)
    with pytest.raises(AltgradError, match=r"of which 1 fit into data.max_bytes = 150; it needs two"):
        stdlib.choose({"a": "x" * 100, "b": "y" * 100}, 150, 0.1)


def test_stdlib_is_prepared_once(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = place.build("stdlib", max_bytes=200_000)
    assert (data.name, data.tokenizer, data.vocab_size) == ("stdlib", "bytes", 257)
    assert 150_000 < len(data.train) + len(data.val) < 210_000
    assert int((data.train == 256).sum() + (data.val == 256).sum()) == data.documents
    assert len(place.said) == 1
    assert "Preparing the dataset 'stdlib' with the tokenizer 'bytes'" in place.said[0]
    again = place.build("stdlib", max_bytes=200_000)
    assert again.path == data.path
    assert len(place.said) == 1
    assert place.build("stdlib", max_bytes=200_001).path != data.path


# text


def test_text_from_one_file_is_divided_at_a_line_end(place: Any, write: Write) -> None:
    lines = "".join(f"line {number} is here\n" for number in range(100))
    data = place.build("text", path=str(write("a.txt", lines)), val_fraction=0.25)
    train, val = text_of(data.train), text_of(data.val)
    assert train + val == lines
    assert train.endswith("\n")
    assert abs(len(val) / len(lines) - 0.25) < 0.02
    assert data.train[-1] == data.val[-1] == 256
    assert data.documents == 2


def test_text_from_a_folder(place: Any, write: Write, tmp_path: Path) -> None:
    write("books/b.txt", "bb\n" * 10)
    write("books/sub/a.MD", "cc\n" * 10)
    write("books/empty.txt", "")
    write("books/c.rst", "never\n" * 10)
    data = place.build("text", path=str(tmp_path / "books"), val_fraction=0.5)
    assert (text_of(data.train), text_of(data.val)) == ("bb\n" * 10, "cc\n" * 10)
    assert data.documents == 2


def test_text_from_a_pattern(place: Any, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("x/1.rst", "one\n")
    write("x/y/2.rst", "two\n")
    monkeypatch.chdir(tmp_path)
    data = place.build("text", path="x/**/*.rst", val_fraction=0.5)
    assert (text_of(data.train), text_of(data.val)) == ("one\n", "two\n")


@pytest.mark.parametrize("fraction", [0.001, 0.3, 0.999])
@pytest.mark.parametrize("text", ["ab", "a\nb\n", "one line without an end", "\n\n\n", "é" * 9])
def test_both_parts_of_a_division_have_text(text: str, fraction: float) -> None:
    first, second = divide(text, fraction)
    assert first
    assert second
    assert first + second == text


def test_text_is_prepared_again_only_when_it_changed(place: Any, write: Write) -> None:
    path = write("a.txt", "one\ntwo\n")
    first = place.build("text", path=str(path))
    os.utime(path, ns=(1, 1))
    assert place.build("text", path=str(path)).path == first.path, "a new time alone makes no new data"
    assert len(place.said) == 1
    path.write_text("one\nTWO\n")
    second = place.build("text", path=str(path))
    assert second.path != first.path
    assert second.source_sha256 != first.source_sha256
    assert place.build("text", path=str(path), val_fraction=0.2).path != second.path
    assert first.train[:4].tolist() == [*b"one\n"], "data that a run holds open stays"


def test_the_source_is_not_read_again(place: Any, write: Write) -> None:
    path = write("a.txt", "one\ntwo\n")
    first = place.build("text", path=str(path))
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(b"ONE\nTWO\n")
    os.utime(path, ns=times)  # same size and time: taken as unchanged, which only holds if it was not read
    assert place.build("text", path=str(path)).path == first.path


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.txt", "does not exist"),
        ("*.none", r"No file matches data.path = '\*.none'"),
        ("folder", r"has no \*.txt and no \*.md file"),
        ("empty.txt", "has no text: 1 files, all empty"),
        ("latin1.txt", r"latin1.txt is not UTF-8: byte 0xe9 at offset 3 .*iconv"),
    ],
)
def test_text_that_cannot_be_used(
    place: Any, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str
) -> None:
    write("folder/a.rst", "x")
    write("empty.txt", "")
    write("latin1.txt", b"caf\xe9 au lait\n" * 3)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AltgradError, match=message):
        place.build("text", path=path)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 2])
def test_val_fraction_is_checked(place: Any, value: float) -> None:
    with pytest.raises(ValueError, match="val_fraction"):
        place.build("stdlib", val_fraction=value)


def test_the_tokenizer_is_checked_with_the_options(place: Any) -> None:
    with pytest.raises(ValueError, match=r"Unknown tokenizer 'gtp2'. Did you mean 'gpt2'\?"):
        place.build("stdlib", tokenizer="gtp2")


def test_gpt2_tokens(place: Any, write: Write, gpt2_cache: Path) -> None:
    text = "The quick brown fox.\n\n  It's here — naïve.\n" * 20
    data = place.build("text", path=str(write("a.txt", text)), tokenizer="gpt2")
    encoding = tiktoken.get_encoding("gpt2")
    assert (data.vocab_size, data.train.dtype) == (50257, np.uint16)
    assert encoding.decode(data.train[:-1].tolist()) + encoding.decode(data.val[:-1].tolist()) == text
    assert data.train[-1] == encoding.eot_token
    assert json.loads((data.path / "meta.json").read_text())["libraries"]["tiktoken"] == tiktoken.__version__


# tokens


@pytest.fixture
def prepared(place: Any, write: Write) -> TokenData:
    return place.build("text", path=str(write("a.txt", "one\ntwo\n")))


def test_tokens_opens_prepared_files(place: Any, prepared: TokenData) -> None:
    data = place.build("tokens", path=str(prepared.path))
    assert data.name == "text"
    assert data.train.tolist() == prepared.train.tolist()
    assert place.build("tokens", path=str(prepared.path)).val.tolist() == prepared.val.tolist()


def test_tokens_without_meta_says_what_to_write(place: Any, prepared: TokenData) -> None:
    (prepared.path / "meta.json").unlink()
    with pytest.raises(AltgradError, match=r"no meta\.json to say what they are") as raised:
        place.build("tokens", path=str(prepared.path))
    line = str(raised.value).partition("meta.json: ")[2]
    (prepared.path / "meta.json").write_text(line)
    data = place.build("tokens", path=str(prepared.path))
    assert (data.tokenizer, data.vocab_size, data.documents) == ("gpt2", 50257, 0)
    assert data.train.tolist() == prepared.train.tolist()


def test_tokens_beyond_the_vocabulary_are_found(place: Any, prepared: TokenData) -> None:
    meta = prepared.path / "meta.json"
    meta.write_text(meta.read_text().replace('"vocab_size": 257', '"vocab_size": 256'))
    with pytest.raises(AltgradError, match=r"train\.bin has the token 256, but 'vocab_size' in meta\.json is 256"):
        place.build("tokens", path=str(prepared.path))
    meta.write_text(meta.read_text().replace('"vocab_size": 256', '"vocab_size": 300'))
    assert place.build("tokens", path=str(prepared.path)).vocab_size == 300


def test_tokens_that_are_not_there(place: Any, tmp_path: Path) -> None:
    with pytest.raises(AltgradError, match=r"is not a folder .*altgrad data prepare"):
        place.build("tokens", path=str(tmp_path / "none"))
    with pytest.raises(AltgradError, match=r"has no train.bin, val.bin and meta.json"):
        place.build("tokens", path=str(tmp_path))
    with pytest.raises(ValueError, match="path must not be empty"):
        place.build("tokens", path="")
