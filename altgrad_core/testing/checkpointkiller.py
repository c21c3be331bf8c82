"""Uses a checkpoint backend in a process of its own, and kills that one before each of its operations on the file system.

Python tells audit hooks of each file that is opened, renamed or removed. A process of its own prepares a folder with a
checkpoint in it; then a fork for each operation does what the scenario says and dies by SIGKILL just before that
operation. A fork that comes to its end tells that all have been tried.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import attrs

from altgrad_core.training.checkpoint import CheckpointBackend, Saved

SCENARIOS = ("save", "replace", "point", "delete")
_AT_MOST = 200
_FILE_EVENTS = ("open", "os.", "shutil.", "pathlib.")


class Backends(Protocol):
    """What a conformance suite gives of its backend."""

    def build(self, folder: Path) -> CheckpointBackend:
        """Return the backend that stores in ``folder``."""


def kill_at_every_operation(suite: Backends, root: Path) -> dict[str, list[Path]]:
    """Return scenario -> the folders that the killed processes left, each killed an operation later than the one before.

    At the start ``step-000001`` was saved, ``latest`` names it, and but for ``save`` there is ``step-000002``. The suite's
    class must stand at the top of a file, since the other process has to find it.
    """
    _elsewhere(suite, "die_again_and_again", root=str(root))
    return {name: sorted(path for path in (root / name).iterdir() if path.name.isdigit()) for name in SCENARIOS}


def save_elsewhere(suite: Backends, folder: Path, name: str, seed: int) -> Saved:
    """Return what ``save`` tells another process that saves ``every_kind(seed)`` to ``folder`` under ``name``, and ends."""
    said = _elsewhere(suite, "save_and_tell", folder=str(folder), name=name, seed=seed)
    return Saved(**json.loads(said.splitlines()[-1]))


def _elsewhere(suite: Backends, function: str, **order: str | int) -> str:
    """Run a function of this module in a new process, with the suite and the order on its standard input; what it prints."""
    kind = type(suite)
    assert "<locals>" not in kind.__qualname__, f"{kind.__qualname__}: define the class at the top of its file"
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import {function}; {function}()"],
        input=json.dumps({"file": inspect.getfile(kind), "suite": kind.__qualname__, **order}),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"the backend failed in a process of its own:\n{done.stdout}{done.stderr}"
    return done.stdout


def save_and_tell() -> None:
    """Do what ``save_elsewhere`` asks for on standard input."""
    from altgrad_core.testing.checkpointstates import every_kind

    order = json.load(sys.stdin)
    backend = _suite(order["file"], order["suite"]).build(Path(order["folder"]))
    saved = backend.save(order["name"], every_kind(order["seed"]), _silent)
    sys.stdout.write(f"\n{json.dumps(attrs.asdict(saved))}\n")


def die_again_and_again() -> None:
    """Do what ``kill_at_every_operation`` asks for on standard input."""
    from altgrad_core.testing.checkpointstates import ordinary

    order = json.load(sys.stdin)
    suite = _suite(order["file"], order["suite"])
    actions: dict[str, Callable[[CheckpointBackend], object]] = {
        "save": lambda b: b.save("step-000002", ordinary(2), _silent),
        "replace": lambda b: b.save("step-000002", ordinary(7), _silent),
        "point": lambda b: b.point("latest", "step-000002"),
        "delete": lambda b: b.delete("step-000002"),
    }
    for scenario in SCENARIOS:
        root = Path(order["root"]) / scenario
        backend = suite.build(root / "before")
        backend.save("step-000001", ordinary(1), _silent)
        backend.point("latest", "step-000001")
        if scenario != "save":
            backend.save("step-000002", ordinary(2), _silent)
        for number in range(_AT_MOST):
            folder = root / f"{number:03d}"
            shutil.copytree(root / "before", folder)
            child = os.fork()
            if not child:
                _die_before(number, folder, suite, actions[scenario])
            _, status = os.waitpid(child, 0)
            if os.WIFEXITED(status):
                shutil.rmtree(folder)
                if os.WEXITSTATUS(status):
                    sys.exit(1)
                break
        else:
            sys.exit(f"{scenario}: more than {_AT_MOST} operations")


def _die_before(number: int, folder: Path, suite: Backends, act: Callable[[CheckpointBackend], object]) -> None:
    """Do it, and die before operation ``number``; exit with 0 when there are not so many."""
    backend, seen, where = suite.build(folder), 0, os.fspath(folder)

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        named = event.startswith(_FILE_EVENTS) and any(where in os.fsdecode(a) for a in arguments if _is_path(a))
        if named:
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(count)
    try:
        act(backend)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


def _is_path(value: object) -> bool:
    return isinstance(value, str | bytes | os.PathLike)


def _suite(file: str, qualified_name: str) -> Backends:
    spec = importlib.util.spec_from_file_location("suite_of_a_backend", file)
    assert spec is not None
    assert spec.loader is not None
    found: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    for name in qualified_name.split("."):
        found = getattr(found, name)
    suite: Backends = found()
    return suite


def _silent(written: int) -> None:
    del written
