"""The sink ``wandb``: one W&B run a run, one row a step, whatever comes between.

W&B drops a row whose step is not above the last one, loses the rows that a killed process had not uploaded (those of the
last 15 s), and gives the steps of an offline run that resumes another new numbers. So this sink

* collects the metrics of a step (training and validation come as two events) and logs them as one whole row;
* asks the server, when a run goes on, up to which step it has the run, and logs what comes again from there only;
* lets all events come again when the server has less than it was given, and when it writes offline: a folder for
  ``wandb sync`` holds a run from its first step on, and those of earlier stretches are removed.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from altgrad_core.analysis.tracking import outcome, settings_of
from altgrad_core.training.events import SIMULATED, Event, StateLost
from altgrad_core.training.histograms import histograms_of
from altgrad_wandb.artifacts import log_report, log_weights
from altgrad_wandb.connection import Connection, connect, mode
from altgrad_wandb.plugin import WandbOptions

_LEVELS = {"log": "INFO", "checkpoint": "WARN", "stop": "ERROR"}
_LOSSES = ("train/loss", "val/loss")


class WandbSink:
    """Logs the run in ``run_folder``."""

    def __init__(self, options: WandbOptions, run_folder: Path) -> None:
        self._options, self._run_folder = options, run_folder
        self._mode = options.mode or mode()
        self._id = uuid.uuid4().hex[:12]
        self._connection: Connection | None = None
        self._first = 0  # the first step that W&B does not have from before
        self._given = -1  # the last step of which W&B was given the row
        self._step = -1  # the step whose row may not be whole yet
        self._row: dict[str, Any] = {}
        self._evaluating: int | None = None  # the step of the evaluation that has begun and not ended
        self._ended: Event | None = None
        self._problem = ""
        self._is_silent = False  # the server did not answer when there was an alert

    def write(self, event: Event) -> str | None:
        """Collect what belongs to a step, and log its row when the next one begins; send alerts at once."""
        if self._connection is None and self._mode != "disabled":
            self._connect()
        if event["event"] == "metrics":
            self._collect(event, event["values"])
        elif event["event"] == "histograms":
            found = {name: its for name, its in histograms_of(event).items() if its.counts}
            self._collect(event, {f"histogram/{name}": [list(its.counts), its.edges] for name, its in found.items()})
        elif event["event"] == "alert":
            self._alert(event)
        elif event["event"] == "evaluation":
            self._evaluating = event["step"] if event["state"] == "begin" else None
        elif event["event"] == "status":
            self._ended = None if event["status"] == "running" else event
        problem, self._problem = self._problem, ""
        return problem

    def close(self) -> str | None:
        """Log the last row, the outcome and the files that were asked for; wait for the upload, in bounded time."""
        if self._connection is None:
            return None
        run, folder = self._connection.run, self._connection.folder
        status = self._ended["status"] if self._ended else "failed"
        try:
            if self._step != self._evaluating:  # or it would be taken for whole when the run goes on
                self._log_row()
            if self._ended is not None:
                self._log_end(self._ended)
        finally:
            try:
                run.finish(exit_code=0 if status in ("done", "stopped") else 1)
                said = None
            except TimeoutError:
                said = f"the upload is not finished. W&B keeps everything in {folder}: wandb sync {folder}"
        return said

    def state_dict(self) -> dict[str, Any]:
        """Return the W&B run, how much of it W&B was given, and the row that it was not given yet."""
        row = {"step": self._step, "row": self._row, "evaluating": self._evaluating}
        return {"run_id": self._id, "given": self._given, **row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the W&B run; ``StateLost`` when rows that it was given are not where the others will be."""
        self._id = state["run_id"]
        if self._connection is None and self._mode != "disabled":
            self._connect()
        if self._connection is not None and state["given"] >= 0:
            if self._connection.run.offline:
                raise StateLost("a folder for `wandb sync` holds a run from its first step on.")
            if state["given"] >= self._first:
                has = f"up to step {self._first - 1}" if self._first else "no step"
                raise StateLost(f"W&B has {has} of those up to {state['given']} that were given to it.")
        self._given, self._step, self._row = state["given"], state["step"], state["row"]
        self._evaluating = state["evaluating"]

    def _connect(self) -> None:
        options, settings = self._options, settings_of(self._run_folder)
        simulated = (SIMULATED,) if settings.get(SIMULATED) else ()
        connection = connect(
            online=self._mode == "online",
            run_id=self._id,
            run_folder=self._run_folder,
            project=options.project,
            entity=options.entity,
            name=settings["name"],
            group=options.group or settings["experiment"],
            job_type=options.job_type,
            tags=(*options.tags, *simulated) or None,
            notes=options.notes,
            config=settings,
        )
        for loss in _LOSSES:
            connection.run.define_metric("/".join((*simulated, loss)), summary="min,last")
        self._connection, self._first = connection, connection.run.starting_step
        if connection.problem:
            self._problem = (
                f"{connection.problem}. W&B keeps the run in {connection.folder}; when the run has ended and W&B can be "
                f"reached: wandb sync {connection.folder}"
            )

    def _collect(self, event: Event, values: dict[str, Any]) -> None:
        if event["step"] != self._step:
            self._log_row()
            self._step, self._row = event["step"], {"_timestamp": event["time"]}
        self._row = self._row | values

    def _log_row(self) -> None:
        if self._row and self._connection is not None and self._step >= self._first:
            row = {name: _logged(value) for name, value in self._row.items()}
            self._connection.run.log(row, step=self._step, commit=True)
        self._given, self._row = max(self._given, self._step), {}

    def _alert(self, event: Event) -> None:
        simulated = event.get(SIMULATED, False)
        self._collect(event, {f"{f'{SIMULATED}/' if simulated else ''}alerts/{event['alert']}": event["value"]})
        if self._connection is None or event["step"] < self._first:
            return
        # W&B's client sends nothing else while it waits for the answer to an alert, and then ends in no bounded time.
        was_silent, silence = self._is_silent, self._connection.silence()
        self._is_silent = bool(silence)
        if silence:
            if not was_silent:
                self._problem = f"W&B does not answer ({silence}): no messages of alerts are sent until it does."
            return
        run = self._connection.run
        run.alert(
            title=f"{run.name}: {event['alert']}{' (simulated)' if simulated else ''}",
            text=f"Step {event['step']}: {event['message']}".encode(errors="backslashreplace").decode(),
            level=_LEVELS[event["action"]],
            wait_duration=1,  # s; the default keeps the same alert back for a minute
        )

    def _log_end(self, ended: Event) -> None:
        assert self._connection is not None
        run = self._connection.run
        run.summary["outcome"] = outcome(self._run_folder, ended)
        if ended["status"] == "done" and not ended.get(SIMULATED):
            if self._options.weights:
                log_weights(run, self._run_folder)
            if self._options.report:
                log_report(run, self._run_folder, ended)


def _logged(value: Any) -> Any:
    """Return what W&B takes for a number, or for a histogram: counts and the edges of their bins."""
    if not isinstance(value, list):
        return float(value)
    import wandb

    return wandb.Histogram(np_histogram=tuple(value))
