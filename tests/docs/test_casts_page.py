"""docs/casts.md: its pictures are what the code draws."""

from __future__ import annotations

import importlib.util
import re
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "casts.md"
PICTURES = sorted((ROOT / "docs" / "pictures").glob("*.svg"))
# Fonts and the layout differ by parts of a pixel between versions of matplotlib.
SHIFT = 1.5


@pytest.fixture(scope="module")
def pictures() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("make_pictures", ROOT / "docs" / "make_pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(svg: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", svg)]


@pytest.mark.parametrize("name", [path.stem for path in PICTURES])
def test_a_picture_is_what_the_code_draws(name: str, pictures: types.ModuleType) -> None:
    committed, drawn = (ROOT / "docs" / "pictures" / f"{name}.svg").read_text(), pictures.draw(name)
    assert "#ffffff" in committed  # opaque: it is read on dark pages, too
    assert re.sub(r"\d+", "", committed)[:400] == re.sub(r"\d+", "", drawn)[:400]
    shapes = [re.findall(r"<(?!/)(\w+)|>([^<>\n]+)</text", text) for text in (committed, drawn)]
    assert shapes[0] == shapes[1], "run: python docs/make_pictures.py"
    data = [re.findall(r' (?:d|x|y|transform)="([^"]*)"', text) for text in (committed, drawn)]
    for before, after in zip(*data, strict=True):
        far = [abs(a - b) for a, b in zip(numbers(before), numbers(after), strict=True)]
        assert max(far, default=0.0) <= SHIFT, "run: python docs/make_pictures.py"


def test_every_picture_is_shown_and_made(pictures: types.ModuleType) -> None:
    shown = re.findall(r"!\[[^\]]+\]\(pictures/([\w-]+)\.svg\)", PAGE.read_text())
    assert sorted(shown) == sorted(pictures.PICTURES) == [path.stem for path in PICTURES]


def test_the_script_writes_all_pictures(
    tmp_path: Path, pictures: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "PICTURES", {"error": pictures.error})
    pictures.main(tmp_path / "made")
    first = (tmp_path / "made" / "error.svg").read_text()
    pictures.main(tmp_path / "made")
    assert (tmp_path / "made" / "error.svg").read_text() == first
