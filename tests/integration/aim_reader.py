"""Reads an Aim repository back through Aim's own classes, as a user's script does, and starts Aim's servers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altgrad_aim.names import from_aim

from altgrad_core.experiments.history import events_of
from altgrad_core.testing.sinkevents import by_metric, difference, rows_of
from altgrad_core.training.histograms import histograms_of

if TYPE_CHECKING:
    from aim import Run

AIM = [sys.executable, "-c", "from aim.cli.cli import cli_entry_point; cli_entry_point()"]


def aim_runs(place: Path) -> dict[str, Run]:
    """Return the runs that queries find in the repository, by name."""
    from aim import Repo

    return {run.name: run for run in Repo.from_path(str(place)).iter_runs()}


def aim_rows(run: Run) -> list[tuple[int, str, float]]:
    """Return (step, metric, value) of all metrics of a run."""
    rows = []
    for sequence in run.metrics():
        steps, (values, _, _) = sequence.data.items_list()
        metric = from_aim(sequence.name, sequence.context.to_dict())
        rows += [(step, metric, value) for step, value in zip(steps, values, strict=True)]
    return rows


def aim_alerts(run: Run) -> dict[tuple[int, str], str]:
    """Return the alerts of a run: step and kind -> text."""
    from aim.sdk.sequence_collection import SingleRunSequenceCollection
    from aim.sdk.sequences.text_sequence import Texts

    found = {}
    for sequence in SingleRunSequenceCollection(run, seq_cls=Texts):
        assert sequence.name == "alerts"
        steps, (texts, _, _) = sequence.data.items_list()
        found |= {(step, sequence.context["alert"]): text.data for step, text in zip(steps, texts, strict=True)}
    return found


def aim_histograms(run: Run) -> dict[tuple[int, str], tuple[list[int], list[float]]]:
    """Return the histograms of a run: step and ``layer.operand`` -> counts, and the edges of their bins."""
    from aim.sdk.sequence_collection import SingleRunSequenceCollection
    from aim.sdk.sequences.distribution_sequence import Distributions

    found = {}
    for sequence in SingleRunSequenceCollection(run, seq_cls=Distributions):
        assert sequence.name == "histogram"
        steps, (values, _, _) = sequence.data.items_list()
        for step, value in zip(steps, values, strict=True):
            counts, edges = value.to_np_histogram()
            found[step, sequence.context["layer"]] = (counts.tolist(), edges.tolist())
    return found


def told(folder: Path) -> list[dict[str, Any]]:
    """Return the events that a sink of the run got: all but the last, which tells of the sinks."""
    return [event for event in events_of(folder / "events.jsonl") if event["event"] != "sinks"]


def assert_is_of(run: Run, folder: Path) -> None:
    """Check that Aim has each metric and alert of the run in ``folder``, of a step that came twice the last, and no more."""
    last = {(step, name): value for step, name, value in rows_of(told(folder))}
    expected = sorted((*at, value) for at, value in last.items())
    assert difference(by_metric(sorted(aim_rows(run))), by_metric(expected)) == ""
    alerts = {(e["step"], e["alert"]): e["message"] for e in told(folder) if e["event"] == "alert"}
    assert alerts
    assert {at: text.split(": ", 1)[1] for at, text in aim_alerts(run).items()} == alerts
    histograms = {
        (event["step"], name): (list(its.counts), its.edges)
        for event in told(folder)
        for name, its in histograms_of(event).items()
    }
    assert aim_histograms(run) == histograms
    for sequence in run.metrics():
        steps, (values, _, _) = sequence.data.items_list()
        facts = run.meta_run_tree["traces", sequence.context.idx, sequence.name]
        assert (facts["last_step"], repr(facts["last"])) == (steps[-1], repr(values[-1])), sequence.name


@contextlib.contextmanager
def serving(verb: str, place: Path, *options: str) -> Iterator[int]:
    """Run ``aim server`` or ``aim up`` for the repository in ``place``, on a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (place / f"{verb}.log").open("w") as log:
        process = subprocess.Popen(
            [*AIM, verb, "--repo", str(place), "--host", "127.0.0.1", "--port", str(port), *options, "-y"],
            cwd=place, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                break
            assert process.poll() is None, (place / f"{verb}.log").read_text()
            assert time.monotonic() < deadline, f"aim {verb} does not answer"
            time.sleep(0.1)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # its child, which serves, would outlive it
        process.wait(30)


def fetch(port: int, path: str) -> bytes:
    """Return what a server of ``serving`` says at ``path``."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=60) as answer:
        content: bytes = answer.read()
    return content
