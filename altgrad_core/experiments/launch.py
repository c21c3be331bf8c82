"""Launchers start the worker of a run. A worker executes one run folder: ``python -m altgrad_core.experiments.worker``."""

from __future__ import annotations

from typing import Protocol

from altgrad_core.experiments.folder import RunFolder


class Worker(Protocol):
    """A started worker."""

    def poll(self) -> int | None:
        """Return the exit status, None while it runs. Negative: ended by that signal."""

    def interrupt(self, signal: int) -> None:
        """Ask it to save a checkpoint and end (SIGINT, SIGTERM)."""


class Launcher(Protocol):
    """Starts workers."""

    def start(self, folder: RunFolder, device: str) -> Worker:
        """Start the worker of a run whose ``run.toml`` is written; returns at once or, inline, after the run."""
