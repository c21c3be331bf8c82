"""The dataset ``text``: UTF-8 text files; the last part of the text is the validation split."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from altgrad_core.errors import AltgradError
from altgrad_core.training.data import TokenData, Workspace
from altgrad_data.prepare import content_sha256, prepare

if TYPE_CHECKING:
    from altgrad_data.plugin import TextOptions

_SUFFIXES = {".txt", ".md"}


def build(options: TextOptions, workspace: Workspace) -> TokenData:
    """Return the tokens of the files that ``options.path`` names, each file a document, in the order of their names."""
    files = find_files(options.path)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    if sum(sizes.values()) == 0:
        raise AltgradError(f"data.path = '{options.path}' has no text: {len(files)} files, all empty.")
    cut = int(sum(sizes.values()) * (1 - options.val_fraction))
    return prepare(
        workspace,
        name="text",
        tokenizer=options.tokenizer,
        source_sha256=content_sha256(workspace, files),
        options={"val_fraction": options.val_fraction},
        splits={
            "train": _documents(files, sizes, cut, "train"),
            "val": _documents(files, sizes, cut, "val"),
        },
    )


def find_files(path: str) -> dict[str, Path]:
    """Return name -> file, sorted, for a file, a folder (``*.txt`` and ``*.md`` at any depth) or a glob pattern."""
    root = Path(path).expanduser()
    if root.is_file():
        return {root.name: root}
    if root.is_dir():
        found = [p for p in root.rglob("*") if p.is_file() and p.suffix.lower() in _SUFFIXES]
        if not found:
            raise AltgradError(
                f"The folder data.path = '{path}' has no *.txt and no *.md file, at any depth. Name other files with a "
                "pattern, such as 'folder/**/*.rst'."
            )
        return {p.relative_to(root).as_posix(): p for p in sorted(found)}
    if glob.has_magic(path):
        matches = sorted(Path(name) for name in glob.glob(str(root), recursive=True) if Path(name).is_file())
        if not matches:
            raise AltgradError(f"No file matches data.path = '{path}' (seen from {Path.cwd()}).")
        return {match.as_posix(): match for match in matches}
    raise AltgradError(
        f"data.path = '{path}' does not exist (seen from {Path.cwd()}). Expected a text file, a folder with *.txt or "
        "*.md files, or a pattern."
    )


def _documents(files: dict[str, Path], sizes: dict[str, int], cut: int, split: str) -> Iterator[str]:
    """Yield the documents of a split; the file in which byte ``cut`` of all text falls is divided at a line end."""
    start = 0
    for name, path in files.items():
        end = start + sizes[name]
        if start < cut < end:
            first, second = divide(read(path), (cut - start) / sizes[name])
            yield first if split == "train" else second
        elif sizes[name] and (split == "train") == (end <= cut):
            yield read(path)
        start = end


def divide(text: str, fraction: float) -> tuple[str, str]:
    """Return ``text`` in two parts, the first about ``fraction`` of it and ending with a line where there is one."""
    middle = min(max(int(len(text) * fraction), 1), len(text) - 1)
    line_end = text.rfind("\n", 0, middle) + 1
    cut = line_end or text.find("\n", middle, len(text) - 1) + 1 or middle
    return text[:cut], text[cut:]


def read(path: Path) -> str:
    """Return the file's text; an ``AltgradError`` names the place of the first byte that is not UTF-8."""
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise AltgradError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start} ({error.reason}). "
            "Convert it first, for instance with iconv -f LATIN1 -t UTF-8."
        ) from error
    except OSError as error:
        raise AltgradError(f"{path} could not be read: {error.strerror}.") from error
