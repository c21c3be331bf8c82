"""The suite for a sink of one's own, as the page on plugins has it, on a sink that a third party might write."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

SINK = """
import json
import sqlite3

from altgrad_core.training.events import StateLost


class MySink:
    def __init__(self, path):
        self.store = sqlite3.connect(path)
        self.store.execute("CREATE TABLE IF NOT EXISTS metrics (step INTEGER, metric TEXT, value TEXT)")
        self.rows = 0

    def write(self, event):
        if event["event"] == "metrics":
            rows = [(event["step"], name, str(value)) for name, value in event["values"].items()]
            with self.store:
                self.store.executemany("INSERT INTO metrics VALUES (?, ?, ?)", rows)
            self.rows += len(rows)

    def close(self):
        self.store.close()

    def state_dict(self):
        return {"rows": self.rows}

    def load_state_dict(self, state):
        (rows,) = self.store.execute("SELECT COUNT(*) FROM metrics").fetchone()
        if rows < state["rows"]:
            raise StateLost(f"{rows} rows, not {state['rows']}")
        with self.store:
            self.store.execute("DELETE FROM metrics WHERE rowid > ?", [state["rows"]])
        self.rows = state["rows"]
"""


def test_the_suite_of_the_page_runs(tmp_path: Path) -> None:
    package = tmp_path / "altgrad_sink_mydb"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sink.py").write_text(SINK)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "plugins.md").read_text(), re.MULTILINE | re.DOTALL)
    (code,) = [block for block in blocks if "SinkConformance" in block]
    (tmp_path / "test_my_sink.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "test_my_sink.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "18 passed, 2 skipped" in done.stdout
    assert "TestMySink: " in done.stdout
    assert "no store that fails was tried" in done.stdout
