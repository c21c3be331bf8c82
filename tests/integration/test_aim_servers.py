"""Aim's own servers on this machine: its UI shows the runs of the sink ``aim``, its tracking server takes them."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
from aim_reader import AIM, aim_runs, assert_is_of, fetch, serving
from helpers import MakeExperiment, altgrad_cli

import altgrad_core as altgrad

pytest.importorskip("aim", reason="pip install 'altgrad[aim]'; there is no Aim for Python 3.13 and newer")
pytestmark = pytest.mark.slow

RUN = '[[run]]\nname = "{name}"\nrecipe = "e5m2"\ntrain = {{ steps = 12 }}\nalerts = {{ bit_stall = 0.001 }}\n'
SINK = '[[sink]]\nkind = "aim"\n'


def runs_in_the_ui(port: int) -> dict[str, dict[str, object]]:
    found = json.loads(fetch(port, "api/experiments/"))
    runs = []
    for experiment in found:
        runs += json.loads(fetch(port, f"api/experiments/{experiment['id']}/runs/"))["runs"]
    return {run["name"]: run for run in runs}


def test_the_ui_shows_runs_that_end_while_it_is_open(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    """One run before it is started, one while it runs: both are there, and its indexing is alive after each."""
    file = make_experiment(RUN.format(name="before") + SINK, launcher="process")
    done = altgrad_cli("run", file)
    assert done.returncode == 0, done.stdout + done.stderr
    with serving("up", tmp_path, "--workers", "1") as port:
        assert b"<title>Aim</title>" in fetch(port, "")
        assert set(runs_in_the_ui(port)) == {"before"}
        for name in ("while", "after"):
            done = altgrad_cli("run", make_experiment(RUN.format(name=name) + SINK, launcher="process"))
            assert done.returncode == 0, done.stdout + done.stderr
            assert altgrad.load_run(tmp_path / "runs" / "small" / name).sinks["aim"]["status"] == "complete"
            deadline = time.monotonic() + 60
            while name not in aim_runs(tmp_path) and time.monotonic() < deadline:
                time.sleep(0.5)
            assert_is_of(aim_runs(tmp_path)[name], tmp_path / "runs" / "small" / name)
        shown = runs_in_the_ui(port)
        assert set(shown) == {"before", "while", "after"}
        assert all(run["end_time"] for run in shown.values())
    assert "Exception" not in (tmp_path / "up.log").read_text()


def test_a_tracking_server_takes_the_run(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    """The run goes to the repository behind ``aim server``; beside the runs there is none."""
    store = tmp_path / "store"
    store.mkdir()
    subprocess.run([*AIM, "init", "--repo", str(store)], check=True, capture_output=True, cwd=store)
    with serving("server", store) as port:
        file = make_experiment(RUN.format(name="r") + SINK + f'repo = "aim://127.0.0.1:{port}"\n', launcher="process")
        done = altgrad_cli("run", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert altgrad.load_run(tmp_path / "runs" / "small" / "r").sinks["aim"]["status"] == "complete"
    assert not (tmp_path / ".aim").exists()
    subprocess.run([*AIM, "storage", "--repo", str(store), "reindex", "-y"], check=True, capture_output=True, cwd=store)
    assert_is_of(aim_runs(store)["r"], tmp_path / "runs" / "small" / "r")


def test_a_tracking_server_that_is_not_there_ends_the_sink_and_not_the_run(
    make_experiment: MakeExperiment, tmp_path: Path
) -> None:
    file = make_experiment(RUN.format(name="r") + SINK + 'repo = "aim://127.0.0.1:9"\n', launcher="process")
    done = altgrad_cli("run", file)
    assert done.returncode == 0, done.stdout + done.stderr
    run = altgrad.load_run(tmp_path / "runs" / "small" / "r")
    assert run.status == "done"
    assert run.sinks["aim"]["status"] in ("disabled", "abandoned")
    assert "The sink 'aim' was" in done.stdout
