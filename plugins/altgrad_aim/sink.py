"""The sink ``aim``: metrics, histograms and alerts become sequences of an Aim run, the configuration its parameters.

The run's hash and the last step are the sink's state. Aim keeps one value for each name, context and step, so that a step
which comes again overwrites itself; what a crashed stretch tracked later is taken away when the run is resumed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from altgrad_aim.names import to_aim
from altgrad_aim.repository import Repository
from altgrad_core.analysis.tracking import outcome, settings_of
from altgrad_core.training.events import SIMULATED, Event, metrics_of
from altgrad_core.training.histograms import histograms_of

if TYPE_CHECKING:
    from aim import Run

_NO_STEP = -1
_TRACKED = ("metrics", "histograms", "alert")


class AimSink:
    """Writes the run in ``run_folder`` to the repository in ``place``; by default ``.aim`` beside the runs folder."""

    def __init__(self, place: str, run_folder: Path) -> None:
        self._folder = run_folder.resolve()
        self._repository = Repository(place or str(self._folder.parents[2]))
        self._run: Run | None = None
        self._step = _NO_STEP
        self._ended: Event | None = None
        self._is_described = self._is_marked = self._is_closed = False
        self._is_torn = False  # the last write failed, maybe half way

    def write(self, event: Event) -> None:
        """Track what comes at a step; take facts and status as parameters; pass over what else there is."""
        kind = event["event"]
        if kind not in (*_TRACKED, "init", "status"):
            return
        run = self._opened()
        self._is_torn = True
        if event.get(SIMULATED) and not self._is_marked:
            with self._repository.lock():
                run.add_tag(SIMULATED)
            self._is_marked = True
        if kind == "metrics":
            self._track(run, event)
        elif kind == "histograms":
            self._track_histograms(run, event)
        elif kind == "alert":
            self._alert(run, event)
        elif kind == "init":
            run["facts", event["what"]] = storable(event["facts"])
        else:
            run["altgrad", "status"] = event["status"]
            if event["status"] == "running":
                run["outcome"] = {}  # that of an earlier stretch is no more
            self._ended = None if event["status"] == "running" else event
        self._repository.flush()
        self._is_torn = False
        if kind in _TRACKED:
            self._step = max(self._step, event["step"])

    def close(self) -> str | None:
        """End the run in Aim and show it to queries; returns why they do not find it."""
        run, self._run = self._run, None
        if self._is_closed:
            return None
        self._is_closed, said = True, None
        if run is not None:
            run_hash = run.hash
            try:
                if self._ended is not None:
                    run["outcome"] = storable(outcome(self._folder, self._ended))
            finally:
                run.close()
            del run  # with it the files are closed
            if self._is_torn:
                self._repository.cut(run_hash, self._step)
            said = self._repository.index(run_hash)
        self._repository.close()
        return said

    def state_dict(self) -> dict[str, Any]:
        """Return the run's hash, which makes the run if there is none, and the last step that was written."""
        return {"run": self._opened().hash, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with that run, without what it tracked later; ``StateLost`` when it is gone."""
        self._repository.cut(state["run"], state["step"])
        self._run = self._repository.open(state["run"])
        self._step = state["step"]

    def _opened(self) -> Run:
        """Return the run, made when there is none; after a failure half way the same is gone on with."""
        if self._run is None:
            self._run = self._repository.open(None)
        if not self._is_described:
            with self._repository.lock():
                self._describe(self._run)
            self._is_described = True
        return self._run

    def _describe(self, run: Run) -> None:
        run.name, run.experiment = self._folder.name, self._folder.parent.name
        run["altgrad", "folder"] = storable(str(self._folder))
        run["hparams"] = storable(settings_of(self._folder))

    def _track(self, run: Run, event: Event) -> None:
        for metric, value in metrics_of(event).items():
            name, context = to_aim(storable(metric))
            run.track(value, name=name, step=event["step"], context=context)

    def _track_histograms(self, run: Run, event: Event) -> None:
        """Track each as an Aim distribution over log2 of abs(x / scale)."""
        import numpy as np
        from aim import Distribution

        for cast, its in histograms_of(event).items():
            if its.counts:  # of zeros alone there is nothing to draw
                values = Distribution(hist=np.array(its.counts), bin_range=(its.edges[0], its.edges[-1]))
                run.track(values, name="histogram", step=event["step"], context={"layer": storable(cast)})

    def _alert(self, run: Run, event: Event) -> None:
        from aim import Text

        text = f"{event['alert']} ({event['action']}): {event['message']}"
        run.track(Text(storable(text)), name="alerts", step=event["step"], context={"alert": storable(event["alert"])})


def storable(value: Any) -> Any:
    """Return a nested value as Aim can store it: with texts that are UTF-8, half a surrogate pair spelled out."""
    if isinstance(value, dict):
        return {storable(str(key)): storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [storable(item) for item in value]
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
