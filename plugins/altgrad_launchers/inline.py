"""The launcher ``inline``: a run in this very process."""

from __future__ import annotations

import signal

from altgrad_core.experiments.folder import RunFolder


class FinishedWorker:
    """A run that is over."""

    def __init__(self, status: int) -> None:
        self._status = status

    def poll(self) -> int:
        """Return the exit status."""
        return self._status

    def interrupt(self, signal: int) -> None:
        """Nothing is left to interrupt."""


class InlineLauncher:
    """Runs the worker's code here and returns when it is done."""

    def start(self, folder: RunFolder, device: str) -> FinishedWorker:
        """Execute the run; a signal that ended it is raised again, for it was meant for this process as a whole."""
        from altgrad_core.experiments.worker import execute

        status = execute(folder, device)
        if status > 128:
            signal.raise_signal(status - 128)
        return FinishedWorker(status)
