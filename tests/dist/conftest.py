"""The wheel, and new environments that have it and nothing else of AltGrad."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from environments import Environment

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # The build backend is installed already: an isolated build would need a network.
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("altgrad-*.whl"))


@pytest.fixture(scope="session")
def make_environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Environment]:
    """Return a function that makes an environment with pip and AltGrad's dependencies, in an empty folder."""

    def make() -> Environment:
        root = tmp_path_factory.mktemp("environment")
        (root / "work").mkdir()
        venv.create(root / "venv", with_pip=True)
        environment = Environment(root / "venv", root / "work")
        # The dependencies come from this environment through a path file (torch alone is most of a gigabyte); AltGrad itself
        # can only come from the wheel, because path files inside a directory added this way are not read.
        places = [path for path in sys.path if path.endswith("site-packages")]
        (environment.site / "dependencies.pth").write_text("".join(f"{path}\n" for path in places))
        return environment

    return make
