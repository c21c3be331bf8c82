"""Reading a run folder: resumes, torn lines, damage, and what the folder of no run is answered."""

from __future__ import annotations

import fcntl
import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from run_folders import START, config, metrics, status, write_run

from altgrad_core.analysis.runs import find_runs, load_experiment_runs, load_run
from altgrad_core.console.words import event_line, sink_lines
from altgrad_core.errors import AltgradError


def alert(step: int, name: str = "overflow", value: float = 0.02) -> dict[str, Any]:
    return {
        "time": START + step,
        "event": "alert",
        "step": step,
        "alert": name,
        "value": value,
        "message": f"at {step}",
    }


def checkpoint(step: int, path: str, seconds: float = 0.1) -> dict[str, Any]:
    return {"time": START, "event": "checkpoint", "step": step, "kind": "step", "path": path, "seconds": seconds}


def test_how_the_sinks_fared_in_the_last_stretch(tmp_path: Path) -> None:
    good = {"status": "complete", "missed": 0, "reason": ""}
    bad = {"status": "disabled", "missed": 1200, "reason": "write(): OSError: gone (8 times)"}
    first = [status("running", pid=1), status("interrupted"), {"time": START, "event": "sinks", "sinks": {"a": bad}}]
    second = [
        status("running", pid=2),
        status("done"),
        {"time": START, "event": "sinks", "sinks": {"a": good, "b": bad}},
    ]
    assert load_run(write_run(tmp_path / "one", config("r"), first)).sinks == {"a": bad}
    assert load_run(write_run(tmp_path / "going on", config("r"), [*first, second[0]])).sinks == {}
    run = load_run(write_run(tmp_path / "two", config("r"), [*first, *second]))
    assert run.sinks == {"a": good, "b": bad}
    assert run.status == "done"
    (line,) = sink_lines(run.sinks)
    assert line == "The sink 'b' was disabled, 1,200 events are missing in it: write(): OSError: gone (8 times)."
    assert event_line(second[-1]) == ("warning", line)
    assert event_line({"event": "sinks", "sinks": {"a": good}}) is None


def test_a_finished_run(tmp_path: Path) -> None:
    events = [
        status("running", time=100.0, pid=1),
        {"time": 101.0, "event": "init", "what": "model", "facts": {"parameters": 12}},
        metrics(1, {"train/loss": 3.5, "train/tokens_per_s": 10.0}, time=102),
        {"time": 102.5, "event": "log", "level": "info", "message": "naïve — ok"},
        metrics(2, {"train/loss": 3.25, "train/tokens_per_s": 400.0, "val/loss": 3.0}, time=103),
        metrics(3, {"train/loss": 3.0, "train/tokens_per_s": 300.0}, time=104),
        alert(2),
        checkpoint(3, "checkpoints/step-000003"),
        status("done", time=110.0, step=3),
    ]
    run = load_run(write_run(tmp_path / "r", config("größe 8·bit", train={"steps": 3}), events))
    assert run.name == "größe 8·bit"
    assert (run.experiment, run.status, run.reason) == ("e5m2-vs-bf16", "done", "")
    assert run.metrics("train/loss") == ([1, 2, 3], [3.5, 3.25, 3.0])
    assert run.metrics("val/loss") == ([2], [3.0])
    assert run.metrics("never/logged") == ([], [])
    assert run.metric_names() == ["train/loss", "train/tokens_per_s", "val/loss"]
    assert run.tokens_per_s == 300.0  # the median; the slow first step does not move it
    assert run.wall_time_s == 10.0
    assert run.started_s == 100.0
    assert len(repr(run)) < 400  # not every value there is
    assert (run.last_step, run.planned_steps, run.stretches) == (3, 3, 1)
    assert run.facts == {"model": {"parameters": 12}}
    assert run.environment["torch"] == "2.13.0"
    assert [event["step"] for event in run.alerts] == [2]
    assert [event["path"] for event in run.checkpoints] == ["checkpoints/step-000003"]


def test_values_that_json_has_no_number_for(tmp_path: Path) -> None:
    values = {"train/loss": "NaN", "train/grad_norm": "Infinity", "x": "-Infinity"}
    run = load_run(write_run(tmp_path / "r", config("r"), [status("running"), metrics(1, values)]))
    assert math.isnan(run.metrics("train/loss")[1][0])
    assert run.metrics("train/grad_norm") == ([1], [math.inf])
    assert run.metrics("x") == ([1], [-math.inf])


def test_a_resume_overwrites_only_what_it_writes_again(tmp_path: Path) -> None:
    events = [
        status("running", time=0.0),
        *[metrics(step, {"train/loss": 10.0 + step, "probe": 1.0}, time=float(step)) for step in range(1, 6)],
        alert(4, value=0.5),
        checkpoint(2, "checkpoints/step-000002", 0.5),
        # killed at step 5 without a word; resumed from step 2 an hour later
        status("running", time=3600.0, resumed=True, step=2),
        metrics(3, {"train/loss": 3.0}, time=3601.0),
        metrics(4, {"train/loss": 4.0}, time=3602.0),
        alert(4, value=0.25),
        alert(4, name="bit_stall"),
        checkpoint(2, "checkpoints/step-000002", 0.7),
        status("interrupted", time=3604.0, step=4, reason="SIGINT"),
    ]
    events[6]["time"] = events[7]["time"] = 7.0
    run = load_run(write_run(tmp_path / "r", config("r"), events))
    assert run.metrics("train/loss") == ([1, 2, 3, 4, 5], [11.0, 12.0, 3.0, 4.0, 15.0])
    assert run.metrics("probe") == ([1, 2, 3, 4, 5], [1.0] * 5)
    assert [(event["alert"], event["value"]) for event in run.alerts] == [("overflow", 0.25), ("bit_stall", 0.02)]
    assert [event["seconds"] for event in run.checkpoints] == [0.7]
    assert run.wall_time_s == 7.0 + 4.0  # the hour between is not counted
    assert (run.stretches, run.status, run.reason) == (2, "interrupted", "SIGINT")


def test_what_a_start_tells_before_it_runs_is_no_time_of_the_stretch_that_was_killed(tmp_path: Path) -> None:
    getting_ready = [
        {"time": 3600.0, "event": "task", "task": "building the model", "state": "begin"},
        {"time": 3601.0, "event": "log", "level": "info", "message": "Reading"},
    ]
    killed = [status("running", time=0.0), metrics(1, {"train/loss": 1.0}, time=7.0), *getting_ready]
    run = load_run(write_run(tmp_path / "killed", config("r"), killed))
    assert (run.wall_time_s, run.stretches) == (7.0, 1)
    resumed = [*killed, status("running", time=3602.0), status("done", time=3606.0)]
    run = load_run(write_run(tmp_path / "resumed", config("r"), resumed))
    assert (run.wall_time_s, run.stretches) == (7.0 + 4.0, 2)


@pytest.mark.parametrize(
    "tail",
    ['{"time": 3, "event": "metrics", "st', '{"time": 3, "event": "metrics", "step": 2, "values": {}}', "\x00\x00"],
)
def test_a_torn_last_line_is_left_out(tmp_path: Path, tail: str) -> None:
    folder = write_run(tmp_path / "r", config("r"), [status("running"), metrics(1, {"train/loss": 1.0})], tail=tail)
    assert load_run(folder).metrics("train/loss") == ([1], [1.0])


def test_a_garbled_last_line_is_an_error(tmp_path: Path) -> None:
    """A line that was cut off has no end; one that has is damaged."""
    folder = write_run(tmp_path / "r", config("r"), [status("running"), metrics(1, {"train/loss": 1.0}), '{"time": 1,'])
    with pytest.raises(AltgradError, match=r"events\.jsonl:3: expected one JSON object with an event"):
        load_run(folder)


@pytest.mark.parametrize(
    "line",
    ["{half", "[1, 2]", '{"time": 1}', '{"time": 1, "event": "metrics", "step": 1, "values": {"a": "many"}}', ""],
)
def test_a_garbled_line_in_the_middle_is_an_error(tmp_path: Path, line: str) -> None:
    folder = write_run(tmp_path / "r", config("r"), [status("running"), line, metrics(1, {"train/loss": 1.0})])
    with pytest.raises(AltgradError, match=r"events\.jsonl:2: expected one JSON object with an event") as raised:
        load_run(folder)
    assert "--fresh" in str(raised.value)


def test_a_run_is_running_only_while_its_process_lives(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", config("r"), [status("running", time=5.0), metrics(1, {"a": 1.0}, time=8.0)])
    with (folder / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert load_run(folder).status == "running"
    dead = load_run(folder)
    assert (dead.status, dead.reason) == ("interrupted", "its process ended without a word")
    assert dead.wall_time_s == 3.0


def test_a_run_that_has_not_started(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "r", config("r"), None))
    assert (run.status, run.last_step, run.tokens_per_s, run.started_s) == ("pending", None, None, None)
    assert (run.wall_time_s, run.stretches, run.metric_names()) == (0.0, 0, [])


def test_layers_come_in_the_order_of_the_model(tmp_path: Path) -> None:
    values = {f"overflow_rate/blocks.{i}.attn.qkv.input": 0.0 for i in (0, 1, 10, 2)}
    values |= {"overflow_rate": 0.0, "overflow_rate_other/x": 1.0}
    run = load_run(write_run(tmp_path / "r", config("r"), [status("running"), metrics(1, values)]))
    assert run.layers("overflow_rate") == [f"blocks.{i}.attn.qkv.input" for i in (0, 1, 10, 2)]


def test_no_run_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    write_run(tmp_path / "exp" / "a", config("a"), None)
    for folder, found in (
        ("absent", "there is no such folder"),
        ("empty", "that folder has no run.toml"),
        ("file", "that is a file"),
        ("exp", "that folder holds runs: name one of them (a)"),
    ):
        with pytest.raises(AltgradError, match="Expected a run's folder") as raised:
            load_run(tmp_path / folder)
        assert found in str(raised.value)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", config("r"), None)
    (folder / "env.json").write_text("[1]")
    with pytest.raises(AltgradError, match=r"env\.json: expected a JSON object, got list"):
        load_run(folder)
    (folder / "env.json").write_text("{")
    with pytest.raises(AltgradError, match=r"env\.json: expected the JSON that"):
        load_run(folder)
    (folder / "run.toml").write_text("name = ")
    with pytest.raises(AltgradError, match=r"run\.toml: expected the TOML that"):
        load_run(folder)


def test_the_runs_of_an_experiment(tmp_path: Path) -> None:
    for name in ("run-10", "run-2", "zero", "run-1"):
        write_run(tmp_path / "e" / name, config(name, baseline=name == "zero"), None)
    (tmp_path / "e" / "report.html").write_text("")
    (tmp_path / "e" / "not-a-run").mkdir()
    write_run(tmp_path / "e" / ".old" / "zero-20260101", config("zero"), None)
    assert [run.name for run in load_experiment_runs(tmp_path / "e")] == ["zero", "run-1", "run-2", "run-10"]
    assert [run.name for run in find_runs(tmp_path / "e")] == ["zero", "run-1", "run-2", "run-10"]
    assert [run.name for run in find_runs(tmp_path / "e" / "run-2")] == ["run-2"]
    with pytest.raises(AltgradError, match="got the folder of one run"):
        load_experiment_runs(tmp_path / "e" / "run-2")
    with pytest.raises(AltgradError, match="found none in"):
        load_experiment_runs(tmp_path / "e" / "not-a-run")
    with pytest.raises(AltgradError, match="there is no folder"):
        load_experiment_runs(tmp_path / "absent")


def test_a_frame_needs_pandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = load_run(write_run(tmp_path / "r", config("r"), [status("running"), metrics(1, {"a": 1.0})]))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(AltgradError, match="pip install pandas"):
        run.frame()


def test_a_frame_is_made_of_the_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Frame:
        def __init__(self) -> None:
            self.index = types.SimpleNamespace(name=None)

        @classmethod
        def from_dict(cls, values: Any, *, orient: str, columns: list[str]) -> Frame:
            assert (values, orient, columns) == ({1: {"a": 1.0}, 2: {"a": 2.0, "b": 3.0}}, "index", ["a", "b"])
            return cls()

    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=Frame))
    events = [status("running"), metrics(2, {"a": 2.0, "b": 3.0}), metrics(1, {"a": 1.0})]
    assert load_run(write_run(tmp_path / "r", config("r"), events)).frame().index.name == "step"


def test_a_frame_with_pandas_itself(tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="pandas is optional")
    events = [status("running"), metrics(2, {"a": 2.0, "b": 3.0}), metrics(1, {"a": 1.0})]
    frame = load_run(write_run(tmp_path / "r", config("r"), events)).frame()
    assert list(frame.index) == [1, 2]
    assert list(frame.columns) == ["a", "b"]
    assert frame.index.name == "step"
    assert math.isnan(frame.loc[1, "b"])


def test_the_events_of_a_large_run(tmp_path: Path) -> None:
    values = {f"overflow_rate/blocks.{i}.mlp.up.input": i / 977 for i in range(300)}
    line = json.dumps(values)
    events = [status("running")]
    events += [f'{{"time": {s}, "event": "metrics", "step": {s}, "values": {line}}}' for s in range(100)]
    run = load_run(write_run(tmp_path / "r", config("r"), events))
    assert len(run.layers("overflow_rate")) == 300
    assert run.metrics("overflow_rate/blocks.299.mlp.up.input") == (list(range(100)), [299 / 977] * 100)
