"""Small files that are there whole or not at all, and the folder for what may be made again."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from altgrad_core.errors import RunFailed


def cache_folder() -> Path:
    """Return the cache: ``$ALTGRAD_CACHE``, else ``$XDG_CACHE_HOME/altgrad``, else ``~/.cache/altgrad``."""
    if chosen := os.environ.get("ALTGRAD_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "altgrad"


def sync_folder(folder: Path) -> None:
    """Wait until a folder's entries, the names of its files, are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write ``content`` (texts as UTF-8) so that other processes, and a crash, see all of it or what was there before.

    Makes the folder when it is missing. A full or read-only disk is a ``RunFailed``.
    """
    # A name of its own for each process: two may write the same report or cache entry at once.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut may leave an empty file under the final name
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise RunFailed(
            f"Could not write {path}: {error}. Make room or make the folder writable; nothing that was there is lost. "
            "(Runs: --runs chooses another folder; the cache: ALTGRAD_CACHE.)"
        ) from error
