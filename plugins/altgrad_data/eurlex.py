"""The dataset ``eurlex``: EURLEX57K, English EU legislation (Chalkidis et al., ACL 2019).

A document's text is ``"\\n".join([header, recitals] + main_body)``, as in the Hugging Face loader of the dataset, with
``attachments`` after it when asked for, as in the authors' own loader.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altgrad_core.errors import AltgradError
from altgrad_core.training.data import TokenData, Workspace
from altgrad_data.fetch import fetch, file_name, is_url
from altgrad_data.prepare import content_sha256, prepare
from altgrad_data.records import SUFFIXES, Member, count, members, records

if TYPE_CHECKING:
    from altgrad_data.plugin import EurlexOptions

_FILES = (".zip", *SUFFIXES)


def build(options: EurlexOptions, workspace: Workspace) -> TokenData:
    """Return the tokens; validation is the source's dev split, else the last ``val_fraction`` of the documents."""
    source = locate(options.path, workspace)
    train, val = choose(members(source), source, workspace)
    if source.is_dir():
        files = {member.name: source / member.name for member in [*train, *val]}
    else:
        files = {source.name: source}
    return prepare(
        workspace,
        name="eurlex",
        tokenizer=options.tokenizer,
        source_sha256=content_sha256(workspace, files),
        options={"attachments": options.attachments, "val_fraction": None if val else options.val_fraction},
        splits={
            "train": _documents(train, val, options, "train", source),
            "val": _documents(train, val, options, "val", source),
        },
    )


def locate(path: str, workspace: Workspace) -> Path:
    """Return the local folder or file that ``path``, which may be a URL, stands for."""
    name = file_name(path) if is_url(path) else path
    source = Path(path).expanduser()
    if not name.lower().endswith(_FILES) and (is_url(path) or source.is_file()):
        raise AltgradError(
            f"data.path = '{path}' is not of a known kind. Expected a folder or one of {', '.join(_FILES)}."
        )
    if is_url(path):
        return fetch(path, workspace)
    if not source.exists():
        raise AltgradError(
            f"data.path = '{path}' does not exist (seen from {Path.cwd()}). Expected EURLEX57K as a folder, a file "
            f"({', '.join(_FILES)}) or an http(s) URL of such a file."
        )
    return source


def choose(found: Sequence[Member], source: Path, workspace: Workspace) -> tuple[list[Member], list[Member]]:
    """Return the files of the training and the validation split; the latter is empty when the source has none.

    The test split is never used. A file that is named alone is taken whole, whatever its name tells.
    """
    if not source.is_dir() and source.suffix.lower() != ".zip":
        if found[0].split == "test":
            raise AltgradError(
                f"{source} is the test split, which is not for training. Name the train file or its folder."
            )
        return list(found), []
    train = [member for member in found if member.split == "train"]
    val = [member for member in found if member.split == "val"]
    if not train:
        train, val = [member for member in found if member.split != "test"], []
    if not train:
        raise AltgradError(
            f"{source} has no file with training documents ({', '.join(SUFFIXES)}); it has {len(found)} files of "
            "a test split."
        )
    beside = sum(1 for member in found if member.split is None)
    if beside and train[0].split == "train":
        workspace.say(f"{beside} files of {source} are in none of train, dev and test and were left out.")
    return train, val


def _documents(
    train: list[Member], val: list[Member], options: EurlexOptions, split: str, source: Path
) -> Iterator[str]:
    """Yield the texts of a split; nothing is read before the first is asked for."""
    if val:
        chosen: Iterator[tuple[str, dict[str, Any]]] = _all(train if split == "train" else val)
    else:
        total = sum(map(count, train))
        if total < 2:
            raise AltgradError(f"{source} has {total} documents; two are needed, one of them for validation.")
        last = total - min(max(round(total * options.val_fraction), 1), total - 1)
        chosen = islice(_all(train), last) if split == "train" else islice(_all(train), last, None)
    for where, record in chosen:
        yield text_of(record, where, options.attachments)


def _all(found: list[Member]) -> Iterator[tuple[str, dict[str, Any]]]:
    return chain.from_iterable(map(records, found))


def text_of(record: dict[str, Any], where: str, attachments: bool) -> str:
    """Return a document's text, from EURLEX57K's own keys or from the ``text`` column of the Hugging Face files."""
    if "main_body" not in record and "text" in record:
        if attachments:
            raise AltgradError(
                f"{where}: this file has the finished 'text' only; data.attachments = true needs EURLEX57K's own files."
            )
        return _string(record, "text", where)
    parts = [_string(record, "header", where), _string(record, "recitals", where)]
    body = record.get("main_body")
    if not isinstance(body, list) or not all(isinstance(article, str) for article in body):
        raise AltgradError(f"{where}: 'main_body' must be a list of strings, got {_shown(record, 'main_body')}.")
    parts += body
    if attachments:
        parts.append(_string(record, "attachments", where))
    return "\n".join(parts)


def _string(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise AltgradError(f"{where}: '{key}' must be a string, got {_shown(record, key)}.")
    return value


def _shown(record: dict[str, Any], key: str) -> str:
    if key in record:
        return type(record[key]).__name__
    return f"no such key (keys: {', '.join(map(str, record)) or 'none'})"
