"""Tokenizers: any tiktoken encoding by name, and ``bytes``, which needs no vocabulary file.

tiktoken downloads a vocabulary at its first use and keeps it in ``TIKTOKEN_CACHE_DIR`` (else a temporary folder), in a
file named by the sha1 of the URL. It removes a cached file whose hash is wrong, and its download has no time limit.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tiktoken

from altgrad_core.errors import AltgradError, unknown

END_OF_TEXT = "<|endoftext|>"
_DOWNLOAD_LIMIT_S = 90.0
_GROUP_CHARACTERS = 1 << 22  # one call of the encoder: bounds its lists of Python integers to about 150 MB
_PIECE_CHARACTERS = 1 << 18
_LINE_END = re.compile(r"(?<=\w)\n(?=\w)")


def names() -> list[str]:
    """Return the names that ``load`` knows: ``bytes`` and tiktoken's encodings."""
    return ["bytes", *tiktoken.list_encoding_names()]


def check_name(name: str) -> None:
    """Raise an ``AltgradError`` with the known names when there is no tokenizer called ``name``."""
    if name != "bytes" and name not in names():
        raise AltgradError(unknown("tokenizer", name, names()))


def load(name: str) -> tiktoken.Encoding:
    """Return the tokenizer; an ``AltgradError`` when the name is unknown or its vocabulary cannot be had."""
    check_name(name)
    return byte_encoding() if name == "bytes" else _load_tiktoken(name)


def byte_encoding() -> tiktoken.Encoding:
    """Return the encoding whose token ids are the bytes of the UTF-8 text, and 256 for the end of a text."""
    return tiktoken.Encoding(
        "bytes",
        pat_str=r"[^\n]*\n|[^\n]+",  # any pattern that covers all text does; lines are the quickest of those tried
        mergeable_ranks={bytes([value]): value for value in range(256)},
        special_tokens={END_OF_TEXT: 256},
        explicit_n_vocab=257,
    )


def _load_tiktoken(name: str) -> tiktoken.Encoding:
    """Load in a thread of its own, because tiktoken's download would wait for a silent server for ever."""
    cache = _cache()
    before = set(os.listdir(cache)) if cache is not None and cache.is_dir() else set()
    outcome: list[tiktoken.Encoding | Exception] = []

    def work() -> None:
        try:
            outcome.append(tiktoken.get_encoding(name))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True, name=f"tiktoken {name}")
    thread.start()
    thread.join(_DOWNLOAD_LIMIT_S)
    result = outcome[0] if outcome else TimeoutError(f"no answer within {_DOWNLOAD_LIMIT_S:g} s")
    if isinstance(result, tiktoken.Encoding):
        return result
    # requests' exceptions are OSErrors; a download with the wrong hash is a ValueError of tiktoken's
    if isinstance(result, OSError) or (isinstance(result, ValueError) and "Hash mismatch" in str(result)):
        raise AltgradError(_unavailable(name, result, cache, before)) from result
    raise result


def _cache() -> Path | None:
    """Return tiktoken's cache folder, by the same rule as ``tiktoken.load``; None when caching is off."""
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if variable in os.environ:
            return Path(os.environ[variable]) if os.environ[variable] else None
    return Path(tempfile.gettempdir()) / "data-gym-cache"


def _unavailable(name: str, error: Exception, cache: Path | None, before: set[str]) -> str:
    """Return what is missing, why, and what to do about it."""
    url = getattr(getattr(error, "request", None), "url", None)
    said = f"The vocabulary of the tokenizer '{name}' could not be loaded"
    reason = type(error).__name__ if url else f"{type(error).__name__}: {error}"
    if url is None:
        what = "a folder that holds its files (each named by the sha1 of its URL)"
    else:
        file = hashlib.sha1(url.encode()).hexdigest()
        said += f": {url} could not be fetched"
        what = f"a folder that holds that file under the name {file} (and the encoding's other files, if any, likewise)"
        if cache is not None and file in before and not (cache / file).exists():
            said += f" ({cache / file} was there, but its content was not the expected one and tiktoken removed it)"
    return (
        f"{said} ({reason}). Connect to the network once, or set TIKTOKEN_CACHE_DIR to {what}, "
        'or use tokenizer = "bytes", which needs no file.'
    )


def encode(encoding: tiktoken.Encoding, documents: Iterable[str]) -> Iterator[npt.NDArray[np.uint32]]:
    """Yield the token ids [length] of each document, the end-of-text token last.

    Special tokens written out in the text are encoded as ordinary text. Long documents are encoded in pieces, on all
    cores, with the same result as in one go: none of tiktoken's patterns lets a token reach over a line end between
    two letters or digits, where they are divided.
    """
    end = np.array([encoding.encode_single_token(END_OF_TEXT)], dtype=np.uint32)
    threads = os.cpu_count() or 1
    ids: list[npt.NDArray[np.uint32]] = []  # of the document's pieces so far
    for group in _groups(documents):
        encoded = encoding.encode_ordinary_batch([piece for piece, _ in group], num_threads=threads)
        for (_, last), piece_ids in zip(group, encoded, strict=True):
            ids.append(np.array(piece_ids, dtype=np.uint32))
            if last:
                yield np.concatenate([*ids, end])
                ids = []


def _groups(documents: Iterable[str]) -> Iterator[list[tuple[str, bool]]]:
    """Gather pieces, each with whether it is its document's last, until a group has enough characters."""
    group: list[tuple[str, bool]] = []
    size = 0
    for document in documents:
        rest = len(document)
        for piece in _pieces(document):
            rest -= len(piece)
            group.append((piece, rest == 0))
            size += len(piece)
            if size >= _GROUP_CHARACTERS:
                yield group
                group, size = [], 0
    if group:
        yield group


def _pieces(text: str) -> Iterator[str]:
    """Divide a text at some of the line ends that no token reaches over; it may stay whole."""
    start = 0
    while len(text) - start > _PIECE_CHARACTERS:
        found = _LINE_END.search(text, start + _PIECE_CHARACTERS)
        if found is None:
            break
        yield text[start : found.end()]
        start = found.end()
    yield text[start:]
