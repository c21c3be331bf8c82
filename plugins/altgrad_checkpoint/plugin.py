"""Registers the checkpoint backend ``local``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from altgrad_core.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    from altgrad_checkpoint.local import LocalBackend


def build(options: object, folder: Path) -> LocalBackend:
    """Store checkpoints under ``folder``, which is made when the first one is saved."""
    from altgrad_checkpoint.local import LocalBackend

    return LocalBackend(folder)


@hookimpl
def altgrad_register_checkpoints(register: Register) -> None:
    """Register ``local``."""
    register("local", build)
