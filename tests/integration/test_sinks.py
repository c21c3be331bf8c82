"""Sinks that are slow, blocked or broken, in real runs: the training has the same bits, ends, and loses nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import MakeExperiment, altgrad_here
from test_resume import altgrad_run, checkpoint_hashes, csv_rows, metrics_of, wait_for

import altgrad_core as altgrad

PLUGIN = """
import os
import time

from altgrad_csv.sink import CsvSink

from altgrad_core import hookimpl

bad = "GOOD_SINKS" not in os.environ


class Slow(CsvSink):
    def write(self, event):
        time.sleep(0.4 if bad else 0.001)
        super().write(event)


class Blocked(CsvSink):
    def write(self, event):
        while bad:
            time.sleep(1)
        super().write(event)


class Raising(CsvSink):
    def write(self, event):
        if bad:
            raise ConnectionError("no route to the tracker")
        super().write(event)


@hookimpl
def altgrad_register_sinks(register):
    for kind in (Slow, Blocked, Raising):
        name = kind.__name__.lower()
        register(name, lambda options, folder, kind=kind, name=name: kind(folder / f"{name}.csv"))
"""
RUN = '[[run]]\nname = "r"\nrecipe = "e5m2"\ntrain = {{ steps = {steps} }}\n[[sink]]\nkind = "csv"\n'
BAD = "".join(f'[[sink]]\nkind = "{kind}"\n' for kind in ("slow", "blocked", "raising"))


@pytest.fixture
def bad_sinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the plugin, as pip would, for the processes that the test starts."""
    site = tmp_path / "site"
    info = site / "bad_sinks-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "bad_sinks.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-sinks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[altgrad]\nbad = bad_sinks\n")
    monkeypatch.setenv("PYTHONPATH", str(site))


def summary(folder: Path) -> dict[str, dict[str, object]]:
    *_, last = (folder / "events.jsonl").read_text().splitlines()
    event = json.loads(last)
    assert event["event"] == "sinks"
    return event["sinks"]


@pytest.mark.usefixtures("bad_sinks")
def test_what_bad_sinks_missed_they_get_when_the_run_goes_on(
    make_experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, then interrupted, then trained to the end with sinks that work again."""
    file = make_experiment(RUN.format(steps=30) + BAD, launcher="process")
    folder = tmp_path / "runs" / "small" / "r"
    killed = altgrad_run(file, "runs")
    events = wait_for(folder / "events.jsonl", '"event": "metrics", "step": 10, ')
    os.kill(killed.pid, signal.SIGKILL)
    os.kill(next(e["pid"] for e in events if e.get("status") == "running"), signal.SIGKILL)
    killed.communicate()
    time.sleep(0.2)

    stopped = altgrad_run(file, "runs")
    wait_for(folder / "events.jsonl", '"event": "metrics", "step": 14, ')
    stopped.send_signal(signal.SIGTERM)
    said, _ = stopped.communicate(timeout=120)
    assert stopped.returncode == 143, said
    assert "The sink 'blocked' was abandoned" in said
    assert "write() took more than" in said
    assert "no route to the tracker" in said
    outcome = summary(folder)
    assert {name: o["status"] == "complete" for name, o in outcome.items()} == {
        "csv": True, "slow": False, "blocked": False, "raising": False,
    }  # fmt: skip

    monkeypatch.setenv("GOOD_SINKS", "1")
    resumed = altgrad_run(file, "runs")
    said, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, said
    assert {o["status"] for o in summary(folder).values()} == {"complete"}
    assert "missing" not in said
    rows = (folder / "metrics.csv").read_bytes()
    losses = [row.split(",")[0] for row in rows.decode().splitlines() if ",train/loss," in row]
    assert losses == [str(step) for step in range(1, 31)]
    for name in ("slow", "blocked", "raising"):
        assert (folder / f"{name}.csv").read_bytes() == rows, name


@pytest.mark.slow
@pytest.mark.usefixtures("bad_sinks")
def test_a_run_killed_after_its_end_gives_its_sinks_the_rest(
    make_experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is done, but one sink was 0.4 s an event behind; so is one that the file names only afterwards."""
    slow = '[[sink]]\nkind = "slow"\n'
    folder = tmp_path / "runs" / "small" / "r"
    killed = altgrad_run(make_experiment(RUN.format(steps=30) + slow, launcher="process"), "runs")
    events = wait_for(folder / "events.jsonl", '"status": "done"')
    os.kill(next(e["pid"] for e in events if e.get("status") == "running"), signal.SIGKILL)
    killed.communicate(timeout=120)
    assert altgrad.load_run(folder).status == "done"
    before = metrics_of(folder)
    assert (folder / "slow.csv").stat().st_size < (folder / "metrics.csv").stat().st_size

    monkeypatch.setenv("GOOD_SINKS", "1")
    file = make_experiment(RUN.format(steps=30) + slow + '[[sink]]\nkind = "raising"\n', launcher="process")
    fed = altgrad_run(file, "runs")
    said, _ = fed.communicate(timeout=120)
    assert fed.returncode == 0, said
    assert "is done; what its sinks have not got, they get now" in said
    assert {name: o["status"] for name, o in summary(folder).items()} == dict.fromkeys(
        ("csv", "slow", "raising"), "complete"
    )
    assert metrics_of(folder) == before, "nothing was trained again"
    rows = (folder / "metrics.csv").read_bytes()
    assert (folder / "slow.csv").read_bytes() == (folder / "raising.csv").read_bytes() == rows

    done = altgrad_run(file, "runs")
    said, _ = done.communicate(timeout=120)
    assert "is done already" in said


def test_a_sink_named_after_the_end_gets_everything_from_the_log_alone(
    make_experiment: MakeExperiment, tmp_path: Path
) -> None:
    """Neither checkpoints nor data are needed, and what the run says of itself stays."""
    run = '[[run]]\nname = "r"\nrecipe = "e5m2"\n'
    folder = tmp_path / "runs" / "small" / "r"
    assert altgrad_here("run", make_experiment(run))[0] == 0
    before, environment = altgrad.load_run(folder), (folder / "env.json").read_bytes()
    shutil.rmtree(folder / "checkpoints")
    (tmp_path / "text" / "3.txt").write_text("The data are others since.")
    file = make_experiment(f'{run}[[sink]]\nkind = "csv"\n')
    status, said = altgrad_here("run", file)
    assert status == 0, said
    assert "complete sinks: csv" in said
    assert "ERROR" not in said
    assert "without a word" not in said
    after = altgrad.load_run(folder)
    assert (after.status, after.stretches, after.wall_time_s) == ("done", 1, before.wall_time_s)
    assert (folder / "env.json").read_bytes() == environment
    assert after.sinks["csv"] == {"status": "complete", "missed": 0, "reason": ""}
    rows = [row.split(",") for row in (folder / "metrics.csv").read_text().splitlines()[1:]]
    for name in before.metric_names():
        written = [(float(step), float(value)) for step, metric, value in rows if metric == name]
        np.testing.assert_array_equal(written, np.transpose(before.metrics(name)))
    assert "is done already" in altgrad_here("run", file)[1]


@pytest.mark.slow
@pytest.mark.usefixtures("bad_sinks")
def test_bad_sinks_change_no_bit_and_the_run_ends(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    folders = []
    for runs, sinks in (("without", ""), ("with", BAD)):
        file = make_experiment(RUN.format(steps=30) + sinks, launcher="process", dropout=0.1)
        process = altgrad_run(file, runs)
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 0, said
        folders.append(tmp_path / runs / "small" / "r")
    without, with_sinks = folders
    assert metrics_of(with_sinks) == metrics_of(without)
    assert csv_rows(with_sinks) == csv_rows(without)
    mine, theirs = (checkpoint_hashes(folder) for folder in folders)
    assert mine == theirs
    assert len(mine) >= 3
    run = altgrad.load_run(with_sinks)
    assert run.status == "done"
    assert set(run.sinks) == {"csv", "slow", "blocked", "raising"}
    assert run.sinks["blocked"]["status"] == "abandoned"
    assert run.sinks["raising"]["missed"] > 30
    *_, closing = said.strip().split("Report: ")
    assert "r: The sink 'blocked' was abandoned" in closing
    assert "r: The sink 'raising' was" in closing
    assert "no route to the tracker" in closing
    events = [json.loads(line) for line in (with_sinks / "events.jsonl").read_text().splitlines()]
    done = next(e["time"] for e in events if e.get("status") == "done")
    assert events[-1]["time"] - done < 75, "10 s for a call that does not come back, 60 s in all"
