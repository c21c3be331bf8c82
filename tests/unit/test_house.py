"""The house rules: who may import whom, and that the command line starts without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_imports_run_downwards() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import altgrad_core",
        "import altgrad_core.plugins; altgrad_core.plugins.load_plugins()",
        "import sys; sys.argv = ['altgrad', '--help']; from altgrad_core.cli.main import app; app(standalone_mode=False)",
        "import sys; sys.argv = ['altgrad', 'formats']; from altgrad_core.cli.main import app; app(standalone_mode=False)",
        "import sys; sys.argv = ['altgrad', 'simulate', '--help']; from altgrad_core.cli.main import app; "
        "app(standalone_mode=False)",
        "import altgrad_core.console.follow, altgrad_core.simulation.play",
        "from altgrad_core.testing import SinkConformance",
        "from altgrad_core.experiments.config import load_experiment; load_experiment('experiments.toml')",
    ],
)
def test_loads_no_torch(code: str) -> None:
    check = "import sys; heavy = {'torch', 'matplotlib', 'tiktoken'} & set(sys.modules); assert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{check}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_package_is_in_wheel_and_contracts() -> None:
    """Wheel, editable install, import contracts and DEFAULT_PLUGINS name the same packages."""
    import tomli

    from altgrad_core.plugins import DEFAULT_PLUGINS

    project = tomli.loads((ROOT / "pyproject.toml").read_text())
    on_disk = {f"{p.parent.parent.name}/{p.parent.name}" for p in ROOT.glob("formats/*/plugin.py")}
    on_disk |= {f"{p.parent.parent.name}/{p.parent.name}" for p in ROOT.glob("plugins/*/plugin.py")}
    packages = set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert packages == on_disk | {"altgrad_core"}
    names = {package.rpartition("/")[2] for package in on_disk}
    assert set(DEFAULT_PLUGINS) == names
    assert set(project["tool"]["importlinter"]["root_packages"]) == names | {"altgrad_core"}
