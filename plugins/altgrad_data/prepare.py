"""From documents to a cached folder of tokens.

The cache folder's name comes from everything that decides the tokens: the hash of the source's content, the options,
the tokenizer and the format version. A finished folder is never changed, so processes share it without locks: each
prepares in a temporary folder and renames it; the one that comes second uses what the first one made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from altgrad_core.errors import AltgradError
from altgrad_core.files import write_whole
from altgrad_core.training.data import FolderOccupied, TokenData, Workspace, open_tokens, write_tokens
from altgrad_data import tokenizers

_FORMAT = 1  # raise when the same source and options shall give other tokens


def prepare(
    workspace: Workspace,
    *,
    name: str,
    tokenizer: str,
    source_sha256: str,
    options: Mapping[str, Any],
    splits: Mapping[str, Iterable[str]],
) -> TokenData:
    """Return the tokens of ``splits`` (``train`` and ``val``: documents), from the cache when they are there.

    ``options`` are those that decide which text goes where; ``splits`` are iterated over only when tokens are made.
    """
    key = _digest([_FORMAT, name, tokenizer, source_sha256, dict(options)])
    folder = workspace.cache / "tokens" / f"{name}-{tokenizer}-{key[:20]}"
    if not (folder / "meta.json").exists():
        encoding = tokenizers.load(tokenizer)
        workspace.say(f"Preparing the dataset '{name}' with the tokenizer '{tokenizer}' in {folder}")
        try:
            write_tokens(
                folder,
                name=name,
                tokenizer=tokenizer,
                vocab_size=encoding.n_vocab,
                splits={split: tokenizers.encode(encoding, documents) for split, documents in splits.items()},
                source_sha256=source_sha256,
                libraries={"tiktoken": version("tiktoken")},
            )
        except FolderOccupied:
            workspace.say(f"Another process prepared {folder} at the same time; using that.")
    return open_tokens(folder)


def content_sha256(workspace: Workspace, files: Mapping[str, Path]) -> str:
    """Return the sha256 over names and contents of ``files`` (name -> path), in the order of the names.

    The hash is remembered under the paths, sizes and modification times of the files, so that a source is read again
    only when one of these changed (the rule of make and git).
    """
    try:
        facts = [(name, str(path.resolve()), path.stat()) for name, path in sorted(files.items())]
        stamp = _digest([(name, path, stat.st_size, stat.st_mtime_ns) for name, path, stat in facts])
        remembered = workspace.cache / "sources" / stamp
        if remembered.exists():
            return remembered.read_text()
        total = hashlib.sha256()
        for name, path in sorted(files.items()):
            with path.open("rb") as file:
                total.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    except OSError as error:
        raise AltgradError(f"{error.filename} could not be read: {error.strerror}.") from error
    write_whole(remembered, total.hexdigest())
    return total.hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
