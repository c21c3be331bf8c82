"""``altgrad_core.run``: what ``altgrad run`` does, from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from altgrad_core.analysis.report import write_report
from altgrad_core.analysis.runs import Run, load_run
from altgrad_core.experiments.config import load_experiment
from altgrad_core.experiments.runner import Observer, PlannedRun, run_experiment
from altgrad_core.experiments.schema import Status
from altgrad_core.training.events import Event


class Silent:
    """An observer that shows nothing."""

    def say(self, message: str) -> None:
        """Nothing."""

    def begin(self, plan: Sequence[PlannedRun]) -> None:
        """Nothing."""

    def start(self, run: PlannedRun) -> None:
        """Nothing."""

    def event(self, run: str, event: Event) -> None:
        """Nothing."""

    def end(self, run: PlannedRun, status: Status, log_end: str, killed_by: str) -> None:
        """Nothing."""

    def idle(self) -> None:
        """Nothing."""


def run(
    file: str | Path,
    *,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    fresh: bool = False,
    retry_failed: bool = False,
    jobs: int = 1,
    device: str = "auto",
    runs: str | Path = "runs",
    observer: Observer | None = None,
) -> list[Run]:
    """Train what is missing of an experiment file, write its report, and return the selected runs in file order.

    The arguments are the options of ``altgrad run``; ``overrides`` are those of ``--set``. A run that failed is in the
    list with its status; raises ``AltgradError`` when the input is wrong. Must be called from the main thread, because
    it handles SIGINT and SIGTERM.
    """
    experiment = load_experiment(Path(file), overrides=overrides)
    statuses = run_experiment(
        experiment,
        Path(runs),
        observer or Silent(),
        only=only,
        fresh=fresh,
        retry_failed=retry_failed,
        jobs=jobs,
        device=device,
    )
    folder = Path(runs) / experiment.name
    write_report(folder)
    return [load_run(folder / name) for name in statuses]
