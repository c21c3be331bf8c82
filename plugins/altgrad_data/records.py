"""Records (JSON objects) from a folder, a zip archive or a single file of JSON, JSON lines or Parquet."""

from __future__ import annotations

import gzip
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

import attrs

from altgrad_core.errors import AltgradError

SUFFIXES = (".json", ".jsonl", ".jsonl.gz", ".parquet")
Split = Literal["train", "val", "test"]
_SPLITS: dict[str, Split] = {"train": "train", "dev": "val", "val": "val", "validation": "val", "test": "test"}
_SPLIT_NAME = re.compile(r"(train|dev|val|validation|test)([-_.].*)?")


@attrs.frozen
class Member:
    """One file that holds records."""

    name: str
    """Path inside the source, with slashes."""
    where: str
    """The same for error texts: a path that the user recognises."""
    open: Callable[[], IO[bytes]]
    """Opens it for reading."""

    @property
    def split(self) -> Split | None:
        """The split that the file name or the nearest folder name tells, None when neither does."""
        for part in reversed(self.name.lower().split("/")):
            if match := _SPLIT_NAME.fullmatch(part):
                return _SPLITS[match[1]]
        return None


def members(source: Path) -> list[Member]:
    """Return the files with records in a folder or zip archive, sorted by name, or the single file itself."""
    if source.is_dir():
        paths = {p.relative_to(source).as_posix(): p for p in source.rglob("*") if p.is_file()}
        return [Member(name, str(paths[name]), _opener(paths[name])) for name in sorted(paths) if _wanted(name)]
    if source.suffix.lower() != ".zip":
        return [Member(source.name, str(source), _opener(source))]
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError) as error:
        raise AltgradError(f"{source} is not a readable zip archive ({error}). Download it again.") from error
    return [
        Member(name, f"{source}:{name}", _zip_opener(archive, name))
        for name in sorted(archive.namelist())
        if _wanted(name)
    ]


def _wanted(name: str) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    return not hidden and name.lower().endswith(SUFFIXES)


def _opener(path: Path) -> Callable[[], IO[bytes]]:
    return lambda: path.open("rb")


def _zip_opener(archive: zipfile.ZipFile, name: str) -> Callable[[], IO[bytes]]:
    return lambda: archive.open(name)


def count(member: Member) -> int:
    """Return the number of records, without parsing them."""
    name = member.name.lower()
    if name.endswith(".json"):
        return 1
    if name.endswith(".parquet"):
        with _reading(member), member.open() as file:
            return int(_parquet_file(file, member).metadata.num_rows)
    return sum(1 for _ in _lines(member))


def records(member: Member) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each record with the place it came from, for error texts."""
    name = member.name.lower()
    if name.endswith(".parquet"):
        with _reading(member), member.open() as file:
            row = 0
            for group in _parquet_file(file, member).iter_batches(batch_size=1024):
                for record in group.to_pylist():
                    row += 1
                    yield f"{member.where}, row {row}", record
    elif name.endswith(".json"):
        with _reading(member), member.open() as file:
            content = file.read()
        yield member.where, _parse(content, member.where, 1)
    else:
        for number, line in _lines(member):
            yield f"{member.where}, line {number}", _parse(line.rstrip(), member.where, number)


def _lines(member: Member) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers from 1."""
    with _reading(member), member.open() as raw:
        file = gzip.GzipFile(fileobj=raw) if member.name.lower().endswith(".gz") else raw
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def _parse(content: bytes, where: str, first_line: int) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise AltgradError(f"{where}, line {line}, column {error.colno}: malformed JSON: {error.msg}.") from error
    except UnicodeDecodeError as error:
        raise AltgradError(f"{where}, line {first_line}: not UTF-8 at byte {error.start} ({error.reason}).") from error
    if not isinstance(record, dict):
        raise AltgradError(f"{where}, line {first_line}: expected a JSON object, got {type(record).__name__}.")
    return record


class _reading:
    """Turns what a damaged file raises into an ``AltgradError`` that names the file."""

    def __init__(self, member: Member) -> None:
        self.member = member

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OSError | EOFError | zlib.error | zipfile.BadZipFile):
            raise AltgradError(f"{self.member.where} could not be read, it may be damaged ({error}).") from error


def _parquet_file(file: IO[bytes], member: Member) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise AltgradError(
            f"Reading {member.where} needs pyarrow, which is not installed: pip install 'altgrad[parquet]'"
        ) from error
    try:
        return pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise AltgradError(f"{member.where} is not a readable Parquet file ({error}).") from error
