"""Real tokenizers and real text; the larger files are used where they lie beside the repository."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from altgrad_core.plugins import installed
from altgrad_core.training.data import TokenData, Workspace

TEST_DATA = Path(os.environ.get("ALTGRAD_TEST_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))


def _needed(name: str) -> Path:
    folder = TEST_DATA / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set ALTGRAD_TEST_DATA to a folder that has {name}/")
    return folder


@attrs.frozen
class Place:
    """A workspace and what was said in it."""

    workspace: Workspace
    said: list[str]

    def build(self, kind: str, **options: Any) -> TokenData:
        """Prepare a dataset through the plugin registry."""
        dataset = installed().get("dataset", kind)
        return dataset.value(dataset.options(**options), self.workspace)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    said: list[str] = []
    return Place(Workspace(cache=tmp_path / "cache", say=said.append), said)


@pytest.fixture
def gpt2_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A writable copy of the GPT-2 vocabulary, because tiktoken removes files that it does not like."""
    folder = tmp_path / "tiktoken"
    shutil.copytree(_needed("tiktoken_cache"), folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def sample() -> Path:
    """Folder with train, dev and test.jsonl.gz of EURLEX57K."""
    return _needed("eurlex57k_sample")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """Writes a file below ``tmp_path``."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write
