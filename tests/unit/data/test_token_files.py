from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from altgrad_core.errors import AltgradError
from altgrad_core.training.data import (
    FolderOccupied,
    Workspace,
    cache_folder,
    copy_tokens,
    free_folder,
    open_tokens,
    write_tokens,
)


def make(folder: Path, **changes: Any) -> Path:
    write_tokens(
        folder,
        **{
            "name": "mine",
            "tokenizer": "bytes",
            "vocab_size": 257,
            "splits": {"train": [[1, 2, 256], [3, 256]], "val": [np.array([7, 256])]},
            "source_sha256": "ab" * 32,
            "libraries": {"tiktoken": "0.14.0"},
            **changes,
        },
    )
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    change(meta)
    (folder / "meta.json").write_text(json.dumps(meta))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = make(tmp_path / "new" / "tokens")
    data = open_tokens(folder)
    assert data.train.tolist() == [1, 2, 256, 3, 256]
    assert data.val.tolist() == [7, 256]
    assert (data.name, data.tokenizer, data.vocab_size, data.documents) == ("mine", "bytes", 257, 3)
    assert (data.source_sha256, data.path) == ("ab" * 32, folder)
    assert isinstance(data.train, np.memmap)
    assert not data.train.flags.writeable
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["train"] == {"documents": 2, "tokens": 5}
    assert meta["val"] == {"documents": 1, "tokens": 2}
    assert meta["libraries"]["tiktoken"] == "0.14.0"
    assert [p.name for p in folder.parent.iterdir()] == ["tokens"]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(257, "uint16"), (1 << 16, "uint16"), ((1 << 16) + 1, "uint32")])
def test_the_dtype_follows_the_vocabulary(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    folder = make(tmp_path / "t", vocab_size=vocab_size, splits={"train": [[0, vocab_size - 1]], "val": [[0]]})
    assert json.loads((folder / "meta.json").read_text())["dtype"] == dtype
    assert (folder / "train.bin").stat().st_size == 2 * np.dtype(dtype).itemsize
    assert open_tokens(folder).train.tolist() == [0, vocab_size - 1]


@pytest.mark.parametrize("ids", [[257], [-1, 3], [70_000]])
def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path, ids: list[int]) -> None:
    with pytest.raises(AltgradError, match="from 0 to 256") as raised:
        make(tmp_path / "t", splits={"train": [[1], ids], "val": [[1]]})
    assert "document 1 of train.bin" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AltgradError, match="val split of the dataset 'mine' has no tokens"):
        make(tmp_path / "t", splits={"train": [[1]], "val": [[]]})
    assert list(tmp_path.iterdir()) == []


def test_a_failure_midway_leaves_nothing(tmp_path: Path) -> None:
    def documents() -> Any:
        yield [1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "t", splits={"train": documents(), "val": [[1]]})
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_folder_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    make(folder)  # an empty folder is free
    with pytest.raises(FolderOccupied, match="Choose another folder"):
        make(folder, splits={"train": [[9]], "val": [[9]]})
    with pytest.raises(FolderOccupied):
        free_folder(folder)
    free_folder(tmp_path / "not yet")
    assert open_tokens(folder).val.tolist() == [7, 256]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_copy_is_the_same_data(tmp_path: Path) -> None:
    data = open_tokens(make(tmp_path / "t"))
    copy_tokens(data, tmp_path / "deep" / "copy")
    copy = open_tokens(tmp_path / "deep" / "copy")
    assert (copy.train.tolist(), copy.val.tolist()) == (data.train.tolist(), data.val.tolist())
    with pytest.raises(FolderOccupied):
        copy_tokens(data, tmp_path / "deep" / "copy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(dtype="float16"), "'dtype' must be one of uint16, uint32, got 'float16'"),
        (lambda m: m.update(version=2), "version 2; this AltGrad reads version 1"),
        (lambda m: m.update(vocab_size=True), "'vocab_size' must be of type int, got True"),
        (lambda m: m.update(vocab_size=0), "at least 1, got 0"),
        (lambda m: m.pop("tokenizer"), "'tokenizer' must be of type str, got None"),
        (lambda m: m.update(train=5), "'train' must hold the counts"),
        (lambda m: m["val"].update(tokens="2"), "'val' must hold the counts"),
        (lambda m: m["train"].update(tokens=6), r"train.bin has 10 bytes, but meta.json says 6 tokens of uint16"),
    ],
)
def test_a_wrong_meta_is_named(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    folder = make(tmp_path / "t")
    edit(folder, change)
    with pytest.raises(AltgradError, match=message):
        open_tokens(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b'{"version": 1', "is not JSON"), (b"\xff", "is not JSON"), (b"[1]", "a JSON object, got list")],
)
def test_a_broken_meta_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    folder = make(tmp_path / "t")
    (folder / "meta.json").write_bytes(content)
    with pytest.raises(AltgradError, match=message):
        open_tokens(folder)


@pytest.mark.parametrize("size", [0, 3, 4])
def test_a_truncated_file_is_named(tmp_path: Path, size: int) -> None:
    folder = make(tmp_path / "t")
    (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes()[:size])
    with pytest.raises(AltgradError, match=f"train.bin has {size} bytes.*damaged"):
        open_tokens(folder)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(AltgradError, match="not a folder of prepared tokens"):
        open_tokens(tmp_path)
    folder = make(tmp_path / "t")
    (folder / "val.bin").unlink()
    with pytest.raises(AltgradError, match=r"val\.bin is missing"):
        open_tokens(folder)


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ALTGRAD_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "altgrad"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/altgrad")
    monkeypatch.setenv("ALTGRAD_CACHE", "/mine")
    assert cache_folder() == Path("/mine")


def _prepare(cache: Path, gate: Any, results: Any) -> None:
    from altgrad_data import prepare as module

    inner = module.write_tokens

    def at_the_same_time(*args: Any, **kwargs: Any) -> None:
        gate.wait(30)  # both have found the cache empty
        inner(*args, **kwargs)

    module.write_tokens = at_the_same_time
    said: list[str] = []
    splits = {"train": ["one", "two"], "val": ["three"]}
    data = module.prepare(
        Workspace(cache=cache, say=said.append),
        name="mine",
        tokenizer="bytes",
        source_sha256="",
        options={},
        splits=splits,
    )
    results.put((str(data.path), data.train.tolist(), any("Another process" in line for line in said)))


def test_two_processes_prepare_the_same_data(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    gate, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_prepare, args=(tmp_path, gate, results)) for _ in range(2)]
    for process in processes:
        process.start()
    (first, second) = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert first[:2] == second[:2]
    assert first[1] == [*b"one", 256, *b"two", 256]
    assert sorted([first[2], second[2]]) == [False, True], "one of them used what the other made"
    assert len(list((tmp_path / "tokens").iterdir())) == 1, "no temporary folder is left"
