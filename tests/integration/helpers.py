"""What the integration tests share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

MakeExperiment = Callable[..., Path]


def altgrad_cli(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own and return what it said."""
    command = [sys.executable, "-m", "altgrad_core.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, cwd=cwd)
