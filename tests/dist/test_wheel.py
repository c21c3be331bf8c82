"""The wheel, installed in a new virtual environment, trains; wheel and editable install see the same names."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # The build backend is installed already: an isolated build would need a network.
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("altgrad-*.whl"))


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


def test_a_training_from_the_wheel_in_a_new_environment(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    # The dependencies come from this environment through a path file (torch alone is most of a gigabyte); AltGrad itself
    # can only come from the wheel, because path files inside a directory added this way are not read.
    site = next((environment / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    where = subprocess.run(
        [python, "-c", "import altgrad_core, altgrad_gpt; print(altgrad_core.__file__, altgrad_gpt.__file__)"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    ).stdout.split()  # fmt: skip
    assert all(path.startswith(str(site)) for path in where)
    (tmp_path / "experiments.toml").write_text((ROOT / "experiments.toml").read_text())
    done = subprocess.run(
        [environment / "bin" / "altgrad", "run", "--set", "train.steps=3", "--only", "bf16", "--only", "e5m2"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "e5m2" in done.stdout
    assert (tmp_path / "runs" / "e5m2-vs-bf16" / "report.html").stat().st_size > 10_000
