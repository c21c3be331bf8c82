"""The dataset ``stdlib``: Python source and help texts that come with every Python, for runs without a network.

It differs between Python versions; ``TokenData.source_sha256`` says which text it was.
"""

from __future__ import annotations

import hashlib
import importlib
import sysconfig
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING

from altgrad_core.errors import AltgradError
from altgrad_core.training.data import TokenData, Workspace
from altgrad_data.prepare import prepare

if TYPE_CHECKING:
    from altgrad_data.plugin import StdlibOptions

# Installed packages, tests (some are deliberately broken source), and what a build or a platform makes different.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data"}
_LEFT_OUT_PREFIXES = ("_sysconfigdata", "config-")


def build(options: StdlibOptions, workspace: Workspace) -> TokenData:
    """Return the tokens of the standard library's modules and of ``help()``'s topics."""
    train, val = choose(documents(), options.max_bytes, options.val_fraction)
    return prepare(
        workspace,
        name="stdlib",
        tokenizer=options.tokenizer,
        source_sha256=hashlib.sha256("\0".join([*train, "", *val]).encode()).hexdigest(),
        options={"max_bytes": options.max_bytes, "val_fraction": options.val_fraction},
        splits={"train": train, "val": val},
    )


def documents() -> dict[str, str]:
    """Return name -> text of every module and help topic, sorted by name; empty and repeated texts are left out."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if _LEFT_OUT.isdisjoint(name.parts) and not any(part.startswith(_LEFT_OUT_PREFIXES) for part in name.parts):
            with tokenize.open(path) as file:  # obeys the file's coding line
                found[name.as_posix()] = file.read()
    for topic, text in sorted(importlib.import_module("pydoc_data.topics").topics.items()):
        found[f"help/{topic}"] = text
    # the first name of each text only: the same text must not be in both splits
    first = {text: name for name, text in reversed(found.items()) if text.strip()}
    return {name: text for name, text in found.items() if first.get(text) == name}


def choose(texts: dict[str, str], max_bytes: int, val_fraction: float) -> tuple[list[str], list[str]]:
    """Return the training and the validation documents: together at most ``max_bytes`` of UTF-8.

    Documents are taken in the order of the sha256 of their names, which spreads both splits over the whole library:
    first training, and from the last documents at least ``val_fraction`` of the bytes for validation.
    """
    chosen: list[tuple[str, int]] = []
    total = 0
    for name in sorted(texts, key=lambda name: hashlib.sha256(name.encode()).digest()):
        size = len(texts[name].encode())
        if total + size <= max_bytes:
            chosen.append((texts[name], size))
            total += size
    if len(chosen) < 2:
        raise AltgradError(
            f"The dataset 'stdlib' found {len(texts)} documents in {sysconfig.get_path('stdlib')}, of which "
            f'{len(chosen)} fit into data.max_bytes = {max_bytes}; it needs two. Raise it, or use data.kind = "text".'
        )
    val: list[str] = []
    left = total * val_fraction
    while len(chosen) > 1 and (left > 0 or not val):
        text, size = chosen.pop()
        val.append(text)
        left -= size
    return [text for text, _ in chosen], val
