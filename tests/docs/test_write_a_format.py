"""The page on a format of one's own: what it says is what ``altgrad new`` writes, and its Python runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from altgrad_core.cli.main import app
from altgrad_core.numerics.cast import quantize
from altgrad_core.testing import FormatConformance

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "write-a-format.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_module_of_the_page_is_the_one_that_is_written(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["new", "format", "myfp8", "--in", str(tmp_path)])
    assert done.exit_code == 0, done.output
    module = (tmp_path / "altgrad-format-myfp8" / "altgrad_format_myfp8.py").read_text()
    assert module.split("\n\n", 1)[1] == BLOCKS[0]
    assert len(module.splitlines()) <= 30


@pytest.fixture(scope="module")
def names() -> dict[str, object]:
    found: dict[str, object] = {}
    for block in BLOCKS[2:]:
        exec(compile(block, "write-a-format.md", "exec"), found)
    return found


def test_the_other_kinds(names: dict[str, object]) -> None:
    assert quantize(torch.tensor([0.1, 0.9, -9.0]), names["thirds"]).tolist() == pytest.approx([0, 1, -3])
    x = torch.tensor([1.42, 1.40, -3.0, 0.0, 1e-6, 1e6])
    assert quantize(x, names["powers"]).tolist() == [2.0, 1.0, -4.0, 0.0, 0.0, 128.0]
    suite = type("Suite", (FormatConformance,), {"format": names["powers"]})()
    suite.test_each_element_by_itself()
    suite.test_idempotent()
    suite.test_landmarks_and_every_bfloat16_against_a_table()
