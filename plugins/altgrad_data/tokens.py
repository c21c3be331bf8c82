"""The dataset ``tokens``: a folder that holds prepared token files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from altgrad_core.errors import AltgradError
from altgrad_core.files import write_whole
from altgrad_core.training.data import META_VERSION, TokenData, Tokens, Workspace, open_tokens
from altgrad_data.prepare import content_sha256

if TYPE_CHECKING:
    from altgrad_data.plugin import TokensOptions

_CHUNK_TOKENS = 1 << 24


def build(options: TokensOptions, workspace: Workspace) -> TokenData:
    """Return the tokens in ``options.path``, a folder with ``train.bin``, ``val.bin`` and ``meta.json``.

    The files may come from elsewhere, so every token is checked once to be below the vocabulary size: an id beyond it
    would end a training on a GPU with an assertion that says nothing.
    """
    folder = Path(options.path).expanduser()
    if not folder.is_dir():
        raise AltgradError(
            f"data.path = '{options.path}' is not a folder (seen from {Path.cwd()}). Expected one with train.bin, "
            "val.bin and meta.json, as `altgrad data prepare` writes it."
        )
    if not (folder / "meta.json").exists():
        raise AltgradError(_no_meta(folder))
    data = open_tokens(folder)
    _check_ids(data, workspace)
    return data


def _no_meta(folder: Path) -> str:
    if not ((folder / "train.bin").exists() and (folder / "val.bin").exists()):
        return f"{folder} has no train.bin, val.bin and meta.json. `altgrad data prepare` writes such a folder."
    example = {
        "version": META_VERSION,
        "name": folder.name,
        "tokenizer": "gpt2",
        "vocab_size": 50257,
        "dtype": "uint16",
    }
    return (
        f"{folder} has token files but no meta.json to say what they are. If they were made as nanoGPT does (GPT-2 "
        f"tokens, uint16), write this line to {folder / 'meta.json'}: {json.dumps(example)}"
    )


def _check_ids(data: TokenData, workspace: Workspace) -> None:
    files = {name: data.path / name for name in ("train.bin", "val.bin", "meta.json")}
    checked = workspace.cache / "checked" / content_sha256(workspace, files)
    if checked.exists():
        return
    for split, tokens in (("train", data.train), ("val", data.val)):
        largest = _largest(tokens)
        if largest >= data.vocab_size:
            raise AltgradError(
                f"{data.path / split}.bin has the token {largest}, but 'vocab_size' in meta.json is {data.vocab_size}. "
                "Correct 'vocab_size' or 'dtype', or prepare the data again."
            )
    write_whole(checked, b"")


def _largest(tokens: Tokens) -> int:
    return max(int(np.max(tokens[start : start + _CHUNK_TOKENS])) for start in range(0, len(tokens), _CHUNK_TOKENS))
