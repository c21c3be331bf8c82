from __future__ import annotations

import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from altgrad_data import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from altgrad_core.errors import AltgradError

VOCAB_BPE = "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"  # sha1 of its URL


def encode(name: str, texts: list[str]) -> list[list[int]]:
    return [ids.tolist() for ids in tokenizers.encode(tokenizers.load(name), texts)]


@given(st.lists(st.text(max_size=40), max_size=4))
def test_bytes_are_the_utf8_bytes(texts: list[str]) -> None:
    assert encode("bytes", texts) == [[*text.encode(), 256] for text in texts]


def test_bytes_is_an_encoding() -> None:
    encoding = tokenizers.load("bytes")
    assert (encoding.n_vocab, encoding.eot_token) == (257, 256)
    assert encoding.decode([*"né\n".encode(), 256]) == "né\n<|endoftext|>"
    assert encode("bytes", ["<|endoftext|>"]) == [[*b"<|endoftext|>", 256]]


def test_gpt2(gpt2_cache: Path) -> None:
    assert encode("gpt2", ["hello world", "", "<|endoftext|>"]) == [
        [31373, 995, 50256],
        [50256],
        [27, 91, 437, 1659, 5239, 91, 29, 50256],
    ]


def test_long_documents_in_pieces_give_the_same_tokens(gpt2_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alphabet = ["\n", "\n", " ", "a", "b", "word", ".", "é", "7", "_", "\r\n", "\n\n", "'s", "/", "\u00a0"]
    text = "".join(random.Random(1).choices(alphabet, k=20_000))
    monkeypatch.setattr(tokenizers, "_pieces", lambda text: iter([text]))
    whole = encode("gpt2", [text])
    monkeypatch.undo()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_cache))
    monkeypatch.setattr(tokenizers, "_PIECE_CHARACTERS", 50)
    pieces = list(tokenizers._pieces(text))
    assert len(pieces) > 100
    assert "".join(pieces) == text
    encoding = tokenizers.load("gpt2")
    assert [token for piece in pieces for token in encoding.encode_ordinary(piece)] == whole[0][:-1]


def test_documents_are_grouped_without_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "_GROUP_CHARACTERS", 10)
    texts = ["abcdef"] * 5 + ["x" * 100, "", "y"]
    assert encode("bytes", texts) == [[*text.encode(), 256] for text in texts]
    monkeypatch.setattr(tokenizers, "_PIECE_CHARACTERS", 7)
    texts = ["ab\ncd\n\nef\n" * 9, "", "no line end " * 9, "x\ny\n" * 9]
    assert encode("bytes", texts) == [[*text.encode(), 256] for text in texts]


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        AltgradError, match=r"Unknown tokenizer 'gtp2'. Did you mean 'gpt2'\? Known: bytes, cl100k_base"
    ):
        tokenizers.load("gtp2")


def run(tmp_path: Path, proxy: str, limit_s: float = 20.0) -> str:
    """Load gpt2 in a process of its own whose only way out is ``proxy``; returns the error's text."""
    code = (
        "from altgrad_data import tokenizers\n"
        "from altgrad_core.errors import AltgradError\n"
        f"tokenizers._DOWNLOAD_LIMIT_S = {limit_s}\n"
        "try:\n    tokenizers.load('gpt2')\n"
        "except AltgradError as error:\n    print(error)\n"
    )
    environment = {"PATH": "", "HTTPS_PROXY": proxy, "TIKTOKEN_CACHE_DIR": str(tmp_path / "tiktoken")}
    paths = [str(path) for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path, closed_port: str) -> None:
    text = run(tmp_path, closed_port)
    assert "vocabulary of the tokenizer 'gpt2' could not be loaded" in text
    assert "gpt-2/encodings/main/vocab.bpe" in text
    assert f"set TIKTOKEN_CACHE_DIR to a folder that holds that file under the name {VOCAB_BPE}" in text
    assert 'tokenizer = "bytes"' in text
    assert len(text.splitlines()) == 1


def test_a_damaged_cached_file_is_told(tmp_path: Path, gpt2_cache: Path, closed_port: str) -> None:
    with (gpt2_cache / VOCAB_BPE).open("ab") as file:
        file.write(b"x")
    text = run(tmp_path, closed_port)
    assert f"{gpt2_cache / VOCAB_BPE} was there, but its content was not the expected one" in text


def test_a_silent_server_does_not_hang_the_process(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        text = run(tmp_path, f"http://127.0.0.1:{server.getsockname()[1]}", limit_s=0.3)
    assert "TimeoutError: no answer within 0.3 s" in text
    assert "TIKTOKEN_CACHE_DIR" in text
