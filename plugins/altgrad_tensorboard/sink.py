"""The sink ``tensorboard``: metrics as scalars, one record an event; histograms; settings, alerts and the outcome as texts.

A resumed run cuts its event files back to where its checkpoint was taken, so that no step stands in them twice, whoever
reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event as Record
from tensorboard.compat.proto.summary_pb2 import Summary

from altgrad_core.analysis.tracking import flat, outcome, settings_of
from altgrad_core.training.events import SIMULATED, Event, StateLost, metrics_of
from altgrad_core.training.histograms import histograms_of
from altgrad_tensorboard import summaries
from altgrad_tensorboard.eventfiles import EventFiles, claim


class TensorBoardSink:
    """Writes event files into ``folder`` for the run in ``run_folder``; ``AltgradError`` when the folder is another run's."""

    def __init__(self, folder: Path, run_folder: Path) -> None:
        claim(folder, run_folder)
        self._files = EventFiles(folder)
        self._run_folder = run_folder
        self._began = False  # the settings are in the files
        self._ended: Event | None = None

    def write(self, event: Event) -> None:
        """Write what TensorBoard has a place for: settings first, then metrics and alerts; keep the end for ``close``."""
        if not self._began:
            self._write_settings(event)
            self._began = True
        if event["event"] == "metrics":
            self._write(event, event["step"], summaries.scalars(metrics_of(event)))
        elif event["event"] == "histograms":
            found = {name: its for name, its in histograms_of(event).items() if its.counts}
            self._write(event, event["step"], summaries.histograms(found))
        elif event["event"] == "alert":
            facts = summaries.table({key: event.get(key) for key in ("value", "threshold", "action", "layer")})
            name = f"{_prefix(event)}alerts/{event['alert']}"
            self._write(event, event["step"], summaries.text(name, f"{event['message']}\n\n{facts}"))
        elif event["event"] == "status":
            self._ended = None if event["status"] == "running" else event

    def close(self) -> None:
        """Write how the run ended and close the file."""
        try:
            if self._ended is not None:
                self._write_end(self._ended)
        finally:
            self._files.close()

    def state_dict(self) -> dict[str, Any]:
        """Return where the event files end."""
        return self._files.state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut the event files back to where they ended."""
        if not self._files.cut(state):
            raise StateLost(f"its event files in {self._files.folder} are not all there any more.")
        self._began = state["file"] > 0

    def _write_end(self, ended: Event) -> None:
        facts = outcome(self._run_folder, ended)
        step = max(0, self._files.state()["step"])
        text = summaries.text(f"{_prefix(ended)}outcome", summaries.table(facts))
        self._write(ended, step, text, summaries.ended(ended["status"], ended["time"]))

    def _write_settings(self, event: Event) -> None:
        values, prefix = flat(settings_of(self._run_folder)), _prefix(event)
        text = summaries.text(f"{prefix}settings", summaries.table(values))
        compared = summaries.compared(prefix, event["time"])
        self._write(event, 0, text, compared, summaries.settings(values, event["time"]))

    def _write(self, event: Event, step: int, *parts: Summary) -> None:
        """Write one record, so that all of it is there or nothing."""
        whole = Summary()
        for part in parts:
            whole.MergeFrom(part)
        self._files.write(Record(wall_time=event["time"], step=step, summary=whole))


def _prefix(event: Event) -> str:
    return f"{SIMULATED}/" if event.get(SIMULATED) else ""
