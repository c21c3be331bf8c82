"""docs/convert.md: its code runs, from top to bottom; so does the kind of layers in docs/plugins.md."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import altgrad_core as altgrad
from altgrad_core import plugins

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def test_the_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    printed = []
    for block in blocks("convert.md"):
        exec(compile(block, "convert.md", "exec"), names)
        printed.append(capsys.readouterr().out)
    assert len(printed) == 3
    assert printed[0].startswith(
        "hybrid: 2 of 2 linear layers converted\n  GEMMs of 2: emulated: the CPU has no FP8 units\nstep 20\n"
    )
    shown = [line.removeprefix("# ") for line in blocks("convert.md")[1].splitlines() if line.startswith("# ")]
    assert printed[1].splitlines() == shown


def test_the_kind_of_layers_of_the_plugin_page(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [block for block in blocks("plugins.md") if "altgrad_register_layers" in block]
    names: dict[str, object] = {}
    exec(compile(code, "plugins.md", "exec"), names)

    class Entry:
        name, value, dist = "mine", "", importlib.metadata.distribution("torch")

        def load(self) -> object:
            return type("module", (), {"altgrad_register_layers": staticmethod(names["altgrad_register_layers"])})

    found = plugins.load_plugins(entry_points=[Entry()])  # type: ignore[list-item]
    for module in ("altgrad_core.recipes.convert", "altgrad_core.recipes.resolve", "altgrad_core.recipes.quantizer"):
        monkeypatch.setattr(f"{module}.installed", lambda: found)
    model, summary = altgrad.convert(
        nn.Sequential(nn.Linear(4, 4), nn.GELU()), {"base": "e5m2", "layers": ["activation"]}
    )
    assert summary.converted == ["1"]
    x = torch.randn(3, 4)
    plain = nn.functional.gelu(model[0](x)).detach()
    scale = 2.0 ** torch.ceil(torch.log2(plain.abs().max() / 57344))
    assert torch.equal(model(x), altgrad.quantize(plain, "e5m2", scale=float(scale)))
