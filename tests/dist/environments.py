"""A new virtual environment, as a user of AltGrad has one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import attrs


@attrs.frozen
class Environment:
    """A virtual environment, and a folder to work in."""

    root: Path
    folder: Path

    @property
    def site(self) -> Path:
        return next((self.root / "lib").glob("python*/site-packages"))

    def run(self, *command: str | Path, status: int = 0, cwd: Path | None = None) -> str:
        """Run a command whose program is the environment's; return what it said."""
        # pip as a user has it, but that nothing is fetched: dependencies and build backend are there already.
        offline = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_QUIET": "1"}
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST", "VIRTUAL_ENV"))}
        path = f"{self.root / 'bin'}{os.pathsep}{variables['PATH']}"
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True, text=True, check=False, cwd=cwd or self.folder,
            env={**variables, **offline, "PATH": path, "ALTGRAD_CACHE": str(self.root / "cache")},
        )  # fmt: skip
        assert done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr
