"""The wheel, installed in a new virtual environment, trains; wheel and editable install see the same names."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from environments import Environment

ROOT = Path(__file__).parents[2]


def test_the_wheel_holds_the_packages_and_their_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    sources = [p for p in (ROOT / "altgrad_core", *(ROOT / "formats").iterdir(), *(ROOT / "plugins").iterdir())]
    assert tops == {p.name for p in sources if p.is_dir() and p.name != "__pycache__"}
    expected = {
        str(file.relative_to(package.parent))
        for package in sources
        for file in package.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert expected <= set(names)
    assert "altgrad_core/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_a_training_from_the_wheel_in_a_new_environment(
    wheel: Path, make_environment: Callable[[], Environment]
) -> None:
    environment = make_environment()
    environment.run("pip", "install", wheel)
    where = environment.run(
        "python", "-c", "import altgrad_core, altgrad_gpt; print(altgrad_core.__file__, altgrad_gpt.__file__)"
    ).split()
    assert all(path.startswith(str(environment.site)) for path in where)
    (environment.folder / "experiments.toml").write_text((ROOT / "experiments.toml").read_text())
    said = environment.run("altgrad", "run", "--set", "train.steps=3", "--only", "bf16", "--only", "e5m2")
    assert "e5m2" in said
    assert (environment.folder / "runs" / "e5m2-vs-bf16" / "report.html").stat().st_size > 10_000
