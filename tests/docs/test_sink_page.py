"""The suite for a sink of one's own, as the page on plugins has it, on the sink that another page writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from page_blocks import blocks

ROOT = Path(__file__).parents[2]


def test_the_suite_of_the_page_runs(tmp_path: Path) -> None:
    package = tmp_path / "altgrad_sink_mydb"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (sink,) = [block.text for block in blocks(ROOT / "docs" / "write-a-sink.md") if "class MySink" in block.text]
    (package / "sink.py").write_text(sink)
    (code,) = [block.text for block in blocks(ROOT / "docs" / "plugins.md") if "SinkConformance" in block.text]
    (tmp_path / "test_my_sink.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "test_my_sink.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "18 passed, 2 skipped" in done.stdout
    assert "TestMySink: " in done.stdout
    assert "no store that fails was tried" in done.stdout
