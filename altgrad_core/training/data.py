"""Tokens on disk and the batches drawn from them.

Token files are flat little-endian arrays of uint16 (vocabularies up to 65,536) or uint32, memory-mapped, with a
``meta.json`` beside them. A batch is a pure function of (seed, step, micro-step): resuming needs no replay.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import numpy.typing as npt

from altgrad_core.errors import AltgradError, RunFailed
from altgrad_core.files import cache_folder

if TYPE_CHECKING:
    from torch import Tensor

META_VERSION = 1
SPLITS = ("train", "val")
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_REQUIRED = {"version": int, "name": str, "tokenizer": str, "vocab_size": int, "dtype": str}
_OCCUPIED = "{} is there already and is not an empty folder. Choose another folder, or remove it first."
_TRAIN_BATCHES = 1  # second key word of the generator: other uses of the same seed must draw other numbers

DataIdentity = Mapping[str, str | int]
Tokens = npt.NDArray[np.unsignedinteger[Any]]


def _silent(message: str) -> None:
    del message


@attrs.frozen(kw_only=True)
class Workspace:
    """What a dataset may use beside its options."""

    cache: Path = attrs.field(factory=cache_folder)
    """Folder for what is worth keeping between runs; made when needed, shared by processes."""
    say: Callable[[str], None] = _silent
    """Tells the user one line about a step that takes time."""


@attrs.frozen(kw_only=True, eq=False)
class TokenData:
    """The two splits of a tokenized dataset."""

    name: str
    """Kind of the dataset that made it: ``stdlib``, ``eurlex``, ..."""
    train: Tokens
    """Training tokens [N], memory-mapped."""
    val: Tokens
    """Validation tokens [M], memory-mapped."""
    vocab_size: int
    """Number of token ids; every token is below it."""
    tokenizer: str
    """Name of the tokenizer: ``bytes`` or a tiktoken encoding."""
    documents: int
    """Documents of both splits together; 0 when unknown."""
    source_sha256: str
    """sha256 of the text the tokens were made from; empty when unknown."""
    path: Path
    """Folder of the token files."""

    @property
    def identity(self) -> DataIdentity:
        """What tells these tokens from others; a run's checkpoints keep it."""
        return {
            "source_sha256": self.source_sha256,
            "tokenizer": self.tokenizer,
            "vocab_size": self.vocab_size,
            "train_tokens": len(self.train),
            "val_tokens": len(self.val),
        }


def data_changes(then: DataIdentity, now: DataIdentity) -> str:
    """Return what differs (``train_tokens: 900 -> 800; ...``); empty when the data are the same."""
    return "; ".join(f"{key}: {then[key]} -> {now[key]}" for key in now if then[key] != now[key])


class FolderOccupied(AltgradError):
    """The folder for new token files is there already and is not empty; it was left as it is."""


def write_tokens(
    folder: Path,
    *,
    name: str,
    tokenizer: str,
    vocab_size: int,
    splits: Mapping[str, Iterable[npt.ArrayLike]],
    source_sha256: str,
    libraries: Mapping[str, str] | None = None,
) -> None:
    """Write ``train.bin``, ``val.bin`` and ``meta.json`` into ``folder``, which appears whole or not at all.

    ``splits`` has the keys ``train`` and ``val``, each an iterable of documents: integer ids [length], written one
    after the other as they come. Everything goes to a temporary folder beside ``folder``, is synced, and renamed.
    An id outside [0, ``vocab_size``) and a split without tokens are ``AltgradError``s; a ``folder`` with something in
    it is ``FolderOccupied``, also when another process was quicker.
    """
    dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
    meta: dict[str, Any] = {
        "version": META_VERSION,
        "name": name,
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
        "dtype": dtype,
    }
    with _draft(folder) as made:
        for split in SPLITS:
            documents, tokens = _write_split(made / f"{split}.bin", DTYPES[dtype], vocab_size, splits[split])
            if not tokens:
                raise AltgradError(f"The {split} split of the dataset '{name}' has no tokens; it needs some text.")
            meta[split] = {"documents": documents, "tokens": tokens}
        meta["source_sha256"] = source_sha256
        meta["libraries"] = {"python": platform.python_version(), "numpy": np.__version__, **(libraries or {})}
        _write_synced(made / "meta.json", (json.dumps(meta, indent=2) + "\n").encode())
        publish(made, folder)


@contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``folder`` that is gone in the end; a full or read-only disk is a ``RunFailed``."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise RunFailed(
            f"Could not write the tokens to {folder}: {error}. Make room there, or choose another place: --out of "
            "altgrad data prepare, ALTGRAD_CACHE for the cache."
        ) from error


def publish(made: Path, folder: Path) -> None:
    """Rename the finished folder ``made`` to ``folder``; ``FolderOccupied`` when something is there already."""
    made.chmod(0o777 & ~_umask())  # mkdtemp makes folders that only their owner can read
    try:
        made.rename(folder)  # replaces an empty folder; fails on one with files and on a file
    except OSError as error:
        if folder.exists():
            raise FolderOccupied(_OCCUPIED.format(folder)) from error
        raise


def free_folder(folder: Path) -> None:
    """Raise ``FolderOccupied`` when ``folder`` exists and is not an empty folder: before the work, not after it."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FolderOccupied(_OCCUPIED.format(folder))


def copy_tokens(data: TokenData, folder: Path) -> None:
    """Copy the token files of ``data`` to ``folder``, which appears whole or not at all, or is ``FolderOccupied``."""
    folder = folder.absolute()
    with _draft(folder) as made:
        for name in (*(f"{split}.bin" for split in SPLITS), "meta.json"):
            shutil.copyfile(data.path / name, made / name)
        publish(made, folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_split(
    path: Path, dtype: np.dtype[Any], vocab_size: int, documents: Iterable[npt.ArrayLike]
) -> tuple[int, int]:
    count = tokens = 0
    with path.open("wb") as file:
        for document in documents:
            ids = np.asarray(document)
            if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
                raise AltgradError(
                    f"Token ids must be from 0 to {vocab_size - 1} (vocabulary of {vocab_size}); document {count} of "
                    f"{path.name} has ids from {int(ids.min())} to {int(ids.max())}."
                )
            file.write(ids.astype(dtype).tobytes())
            count, tokens = count + 1, tokens + ids.size
        file.flush()
        os.fsync(file.fileno())
    return count, tokens


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def open_tokens(folder: Path) -> TokenData:
    """Open a folder written by ``write_tokens``; its files must be those that ``meta.json`` describes.

    ``documents``, ``source_sha256``, ``libraries`` and the token counts may be absent from ``meta.json`` (of a folder
    made by something else); what is there must be right. Every mismatch is an ``AltgradError``.
    """
    meta = _read_meta(folder / "meta.json")
    dtype = DTYPES[meta["dtype"]]
    arrays = {split: _map(folder / f"{split}.bin", dtype, meta.get(split, {}).get("tokens")) for split in SPLITS}
    return TokenData(
        name=meta["name"],
        **arrays,
        vocab_size=meta["vocab_size"],
        tokenizer=meta["tokenizer"],
        documents=sum(meta.get(split, {}).get("documents", 0) for split in SPLITS),
        source_sha256=meta.get("source_sha256", ""),
        path=folder,
    )


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise AltgradError(f"{path} is missing: {path.parent} is not a folder of prepared tokens.") from error
    except ValueError as error:
        raise AltgradError(f"{path} is not JSON ({error}). Prepare the data again.") from error
    if not isinstance(meta, dict):
        raise AltgradError(f"{path} must hold a JSON object, got {type(meta).__name__}. Prepare the data again.")
    for key, expected in _REQUIRED.items():
        if type(meta.get(key)) is not expected:
            raise AltgradError(f"{path}: '{key}' must be of type {expected.__name__}, got {meta.get(key)!r}.")
    if meta["version"] != META_VERSION:
        raise AltgradError(
            f"{path} has version {meta['version']}; this AltGrad reads version {META_VERSION}. Prepare the data again."
        )
    if meta["dtype"] not in DTYPES:
        raise AltgradError(f"{path}: 'dtype' must be one of {', '.join(DTYPES)}, got {meta['dtype']!r}.")
    if meta["vocab_size"] < 1:
        raise AltgradError(f"{path}: 'vocab_size' must be at least 1, got {meta['vocab_size']}.")
    for split in SPLITS:
        counts = meta.get(split, {})
        if not isinstance(counts, dict) or any(type(count) is not int for count in counts.values()):
            raise AltgradError(f"{path}: '{split}' must hold the counts 'documents' and 'tokens', got {counts!r}.")
    return meta


def _map(path: Path, dtype: np.dtype[Any], tokens: int | None) -> Tokens:
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise AltgradError(f"{path} is missing. Remove the folder and prepare the data again.") from error
    if size == 0 or size % dtype.itemsize or (tokens is not None and size != tokens * dtype.itemsize):
        expected = "at least one token" if tokens is None else f"{tokens} tokens"
        raise AltgradError(
            f"{path} has {size} bytes, but meta.json says {expected} of {dtype.name} ({dtype.itemsize} bytes each). "
            "The file is damaged: remove the folder and prepare the data again."
        )
    return np.memmap(path, dtype=dtype, mode="r")


def check_lengths(data: TokenData, block_size: int) -> None:
    """Raise an ``AltgradError`` when a split is too short for one sample: ``block_size`` inputs and a last target."""
    for split, tokens in (("training", data.train), ("validation", data.val)):
        if len(tokens) <= block_size:
            raise AltgradError(
                f"The {split} split of the dataset '{data.name}' has {len(tokens)} tokens; a sample needs "
                f"block_size + 1 = {block_size + 1}. Lower model.block_size, give more text, or change "
                f"data.val_fraction. (Tokens: {data.path})"
            )


def batch(
    tokens: Tokens, *, seed: int, step: int, micro_step: int = 0, batch_size: int, block_size: int
) -> tuple[Tensor, Tensor]:
    """Return the inputs and targets, int64 [batch_size, block_size] each, of one micro-step.

    A pure function of its arguments: start positions are uniform over the ``len(tokens) - block_size`` possible ones,
    drawn with replacement from Philox keyed by ``seed`` (0 to 2**64 - 1) and counting from (``step``, ``micro_step``).
    Targets are the inputs one token later. ``tokens`` of ``block_size`` or fewer are an ``AltgradError``.
    """
    positions = len(tokens) - block_size
    if positions < 1:
        raise AltgradError(f"{len(tokens)} tokens are too few: a sample needs block_size + 1 = {block_size + 1}.")
    generator = np.random.Philox(
        key=np.array([seed, _TRAIN_BATCHES], dtype=np.uint64),
        counter=np.array([0, micro_step, step, 0], dtype=np.uint64),
    )
    # Raw words, not Generator.integers: NumPy promises a stable stream for the former only.
    starts = [(int(word) * positions) >> 64 for word in generator.random_raw(batch_size)]
    return _windows(tokens, np.array(starts, dtype=np.int64), block_size)


def evaluation_batches(
    data: TokenData, *, batches: int, batch_size: int, block_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return an iterator over ``batches`` pairs (inputs, targets), int64 [batch_size, block_size], for validation.

    The windows start at places evenly spread over the split: the same for every run and step. They overlap when the
    split has fewer than ``batches * batch_size * block_size`` tokens. Either split being too short for a sample is an
    ``AltgradError``, raised by this call.
    """
    check_lengths(data, block_size)
    count = batches * batch_size
    starts = np.arange(count, dtype=np.int64) * (len(data.val) - block_size) // count
    return (_windows(data.val, row, block_size) for row in starts.reshape(batches, batch_size))


def _windows(tokens: Tokens, starts: npt.NDArray[np.int64], block_size: int) -> tuple[Tensor, Tensor]:
    import torch

    samples = tokens[starts[:, None] + np.arange(block_size + 1)].astype(np.int64)
    both = torch.from_numpy(np.asarray(samples))
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()
