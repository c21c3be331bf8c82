"""The sink ``wandb``, read back from W&B's own files and from what its client sends to a server."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from altgrad_wandb import connection
from altgrad_wandb.plugin import WandbOptions
from altgrad_wandb.sink import WandbSink
from sink_events import TIME, feed, histograms, make_run, metrics, status, training
from wandb_parts import Server, offline_file, records, rows, summary, whole_rows

from altgrad_core.training.events import StateLost, marked_as_simulated

KEY = "0123456789" * 4
OFFLINE = WandbOptions(mode="offline")
ONLINE = WandbOptions(mode="online")


@pytest.fixture(autouse=True)
def fresh_session() -> Iterator[None]:
    """W&B reads the environment once a session."""
    yield
    wandb.teardown()


@pytest.fixture
def start_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Server]]:
    started = []

    def start() -> Server:
        started.append(Server(started[-1].port if started else 0))
        monkeypatch.setenv("WANDB_BASE_URL", started[-1].url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        return started[-1]

    yield start
    for server in started:
        server.stop()


def end(sink: WandbSink, run: Path, word: str | None = "done", folder: Path | None = None) -> str | None:
    """Close the sink as at a run's end, and wait until W&B's client has written its file to the end."""
    (run / "events.jsonl").touch()
    feed(sink, [status(word, 99)] if word else [])
    said = sink.close()
    deadline = time.monotonic() + 10
    while not written(folder or run) and time.monotonic() < deadline:
        time.sleep(0.01)
    return said


def written(run: Path) -> bool:
    files = list(run.glob("wandb/*run-*/run-*.wandb"))
    return all(any(record.WhichOneof("record_type") == "exit" for record in records(file)) for file in files)


def losses(found: list[dict[str, Any]]) -> dict[int, float]:
    """Return step -> training loss, after checking that each step is there once, in order."""
    steps = [row["_step"] for row in found]
    assert steps == sorted(set(steps))
    return {int(row["_step"]): float(row["train/loss"]) for row in found if "train/loss" in row}


def test_one_row_a_step(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    sink = WandbSink(OFFLINE, run)
    assert feed(sink, [status("running"), *training(range(9))]) == []
    assert end(sink, run) is None
    found = rows(offline_file(run))
    assert [row["_step"] for row in found] == list(range(9))
    assert [row["_step"] for row in found if "val/loss" in row] == [0, 4, 8]
    assert math.isnan(found[5]["train/loss"])
    assert found[7]["grad_norm_l2/blocks.2.mlp.up.weight"] == 7.2
    assert [row["_timestamp"] for row in found] == [TIME + step for step in range(9)]
    assert [row["alerts/overflow"] for row in found if "alerts/overflow" in row] == [0.5]
    assert found[6]["alerts/overflow"] == 0.5
    assert capfd.readouterr() == ("", "")


def test_what_w_and_b_is_told_of_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, recipe={"name": "e5m2"}, sink=[{"kind": "wandb", "entity": "nobodys-business"}])
    (run / "env.json").write_text('{"device": "cpu"}')
    sink = WandbSink(WandbOptions(mode="offline", project="p", tags=("a", "b"), notes="Why.", job_type="sweep"), run)
    feed(sink, training(range(9)))
    end(sink, run, "stopped")
    kinds: dict[str, list[Any]] = {}
    for record in records(offline_file(run)):
        kind = record.WhichOneof("record_type")
        kinds.setdefault(kind, []).append(getattr(record, kind))
    (told,) = kinds["run"]
    assert (told.project, told.run_group, told.display_name, told.job_type) == ("p", "small", "e5m2", "sweep")
    assert (list(told.tags), told.notes) == (["a", "b"], "Why.")
    assert not told.git.remote_url
    config = {item.key: json.loads(item.value_json) for item in told.config.update}
    assert config["train"] == {"steps": 12}
    assert config["recipe"] == {"name": "e5m2"}
    assert config["environment"] == {"device": "cpu"}
    assert "nobodys-business" not in str(config)
    (alert,) = kinds["alert"]
    assert (alert.title, alert.level) == ("e5m2: overflow", "INFO")
    assert alert.text == "Step 6: The mean overflow rate is 50 %."
    (ended,) = kinds["exit"]
    assert ended.exit_code == 0, "an alert stopped it: that is a result"
    last = summary(offline_file(run))
    assert last["outcome"]["status"] == "stopped"
    assert last["val/loss"] == {"min": 1 / 9 + 0.5, "last": 1 / 9 + 0.5}


def test_300_metrics_a_step(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    sink = WandbSink(OFFLINE, run)
    feed(sink, training(range(1, 21), layers=300))
    end(sink, run)
    found = rows(offline_file(run))
    assert len(found) == 20
    assert all(sum(name.startswith("grad_norm_l2/") for name in row) == 300 for row in found)


@pytest.mark.parametrize("options", [OFFLINE, ONLINE], ids=["offline", "online"])
def test_histograms_are_w_and_b_s(tmp_path: Path, start_server: Callable[[], Server], options: WandbOptions) -> None:
    """In the row of their step, also where a checkpoint comes between."""
    run, server = make_run(tmp_path), start_server()
    sink = WandbSink(options, run)
    feed(sink, [metrics(1, **{"train/loss": 4.0}), histograms(1)])
    state = json.loads(json.dumps(sink.state_dict()))
    assert state["row"]["histogram/blocks.0.mlp.up.input"] == [[1, 0, 5, 7], [-18, -17, -16, -15, -14]]
    feed(sink, [metrics(2, **{"train/loss": 3.0})])
    end(sink, run)
    first, second = server.history(state["run_id"]) if options is ONLINE else whole_rows(offline_file(run))
    assert {name for name in first if name[0] != "_"} == {"train/loss", "histogram/blocks.0.mlp.up.input"}
    assert first["histogram/blocks.0.mlp.up.input"] == {
        "_type": "histogram", "values": [1, 0, 5, 7], "bins": [-18, -17, -16, -15, -14]
    }  # fmt: skip
    assert {name for name in second if name[0] != "_"} == {"train/loss"}


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    sink = WandbSink(OFFLINE, run)
    feed(sink, [metrics(1, a=math.inf, b=-math.inf, c=math.nan, d=1e300, e=5e-324)])
    end(sink, run)
    (row,) = rows(offline_file(run))
    assert math.isnan(row["c"])
    assert {name: row[name] for name in "abde"} == {"a": math.inf, "b": -math.inf, "d": 1e300, "e": 5e-324}


def test_a_simulation_is_marked(tmp_path: Path) -> None:
    run = make_run(tmp_path, "llama", simulated=True)
    sink = WandbSink(WandbOptions(mode="offline", tags=("a",), report=True, weights=True), run)
    feed(sink, map(marked_as_simulated, training(range(9))))
    feed(sink, [marked_as_simulated(status("done", 8))])
    assert end(sink, run, None) is None
    file = offline_file(run)
    assert {name.partition("/")[0] for row in rows(file) for name in row if name[0] != "_"} == {"simulated"}
    (told,) = [record.run for record in records(file) if record.WhichOneof("record_type") == "run"]
    assert list(told.tags) == ["a", "simulated"]
    assert json.loads({item.key: item.value_json for item in told.config.update}["simulated"]) is True
    (alert,) = [record.alert for record in records(file) if record.WhichOneof("record_type") == "alert"]
    assert alert.title == "llama: overflow (simulated)"
    assert summary(file)["outcome"] == {"status": "done", "reason": ""}


def test_an_evaluation_that_failed_leaves_no_half_row(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    sink = WandbSink(OFFLINE, run)
    events = list(training(range(9)))
    feed(sink, events[:-2])  # the evaluation of step 8 has begun
    end(sink, run, "failed")
    assert [row["_step"] for row in rows(offline_file(run))] == list(range(8))


def test_a_row_whose_evaluation_was_cut_waits_for_it(tmp_path: Path, start_server: Callable[[], Server]) -> None:
    """Interrupted in an evaluation, then failed before it came again, then whole: W&B takes no second row of a step."""
    server, run = start_server(), make_run(tmp_path)
    events = list(training(range(9)))
    sink = WandbSink(ONLINE, run)
    feed(sink, events[:-2])  # the evaluation of step 8 has begun
    state = json.loads(json.dumps(sink.state_dict()))
    end(sink, run, "interrupted")
    sink = WandbSink(ONLINE, run)
    sink.load_state_dict(state)
    feed(sink, [status("running", 8)])
    end(sink, run, "failed")
    sink = WandbSink(ONLINE, run)
    sink.load_state_dict(state)
    feed(sink, [status("running", 8), *events[-3:]])
    end(sink, run)
    found = server.history(state["run_id"])
    assert [row["_step"] for row in found] == list(range(9))
    assert (found[8]["train/loss"], found[8]["val/loss"]) == (1 / 9, 1 / 9 + 0.5)


def test_offline_it_begins_anew_and_leaves_one_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    first = WandbSink(OFFLINE, run)
    unused = first.state_dict()
    feed(first, training(range(6)))
    state = json.loads(json.dumps(first.state_dict()))
    end(first, run, "interrupted")
    again = WandbSink(OFFLINE, run)
    with pytest.raises(StateLost, match="holds a run from its first step on"):
        again.load_state_dict(state)
    feed(again, training(range(9)))
    end(again, run)
    file = offline_file(run)
    assert list(losses(rows(file))) == list(range(1, 9))
    assert file.stem == f"run-{state['run_id']}"
    third = WandbSink(OFFLINE, run)  # a run that starts over before its first checkpoint: nothing to say
    third.load_state_dict(unused)
    third.close()
    assert offline_file(run).stem == file.stem


def test_online_it_goes_on_where_the_server_is(tmp_path: Path, start_server: Callable[[], Server]) -> None:
    """The first stretch logged more than the checkpoint holds, and other values for it."""
    server, run = start_server(), make_run(tmp_path)
    first = WandbSink(ONLINE, run)
    assert feed(first, training(range(4))) == []
    state = json.loads(json.dumps(first.state_dict()))
    feed(first, training(range(4, 7)))
    end(first, run, "interrupted")
    assert [row["_step"] for row in server.history(state["run_id"])] == list(range(7))
    assert server.exit_codes[state["run_id"]] == 1
    again = WandbSink(ONLINE, run)
    again.load_state_dict(state)
    feed(again, training(range(4, 12)))
    assert end(again, run) is None
    found = server.history(state["run_id"])
    assert list(losses(found)) == list(range(1, 12))
    assert [row["_step"] for row in found if "val/loss" in row] == [0, 4, 8]
    assert server.exit_codes[state["run_id"]] == 0
    assert list(server.buckets) == [state["run_id"]]
    assert server.buckets[state["run_id"]]["groupName"] == "small"


def test_online_it_repeats_what_the_server_lacks(tmp_path: Path, start_server: Callable[[], Server]) -> None:
    """As after kill -9, which takes along what W&B's client had not uploaded."""
    server, run = start_server(), make_run(tmp_path)
    first = WandbSink(ONLINE, run)
    feed(first, training(range(8)))
    state = json.loads(json.dumps(first.state_dict()))
    end(first, run, "interrupted")
    for line in range(3, 8):
        del server.lines[state["run_id"]][line]
    server.summaries[state["run_id"]] = '{"_step": 2}'
    again = WandbSink(ONLINE, run)
    with pytest.raises(StateLost, match="has up to step 2 of those up to 6 that"):
        again.load_state_dict(state)
    feed(again, training(range(11)))
    end(again, run)
    assert list(losses(server.history(state["run_id"]))) == list(range(1, 11))


def test_a_folder_for_wandb_sync_can_be_uploaded(tmp_path: Path, start_server: Callable[[], Server]) -> None:
    server, run = start_server(), make_run(tmp_path)
    sink = WandbSink(OFFLINE, run)
    feed(sink, training(range(9)))
    end(sink, run)
    assert server.buckets == {}
    sync(offline_file(run).parent)
    ((run_id, bucket),) = server.buckets.items()
    assert losses(server.history(run_id)) == pytest.approx(losses(rows(offline_file(run))), nan_ok=True)
    assert bucket["displayName"] == "e5m2"


def sync(folder: Path) -> None:
    command = [sys.executable, "-m", "wandb", "sync", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Finished syncing" in done.stderr


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"},
         "http://127.0.0.1:9 does not answer ([Errno 111] Connection refused)"),
        ({"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://nowhere.invalid"}, "http://nowhere.invalid does not answer ("),
        ({}, "there is no W&B API key (`wandb login`, or WANDB_API_KEY)"),
    ],
)  # fmt: skip
def test_without_a_server_it_says_so_once_and_keeps_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], reason: str,
    start_server: Callable[[], Server], capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if not environment:
        start_server()
        monkeypatch.delenv("WANDB_API_KEY")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run = make_run(tmp_path)
    began = time.monotonic()
    sink = WandbSink(ONLINE, run)
    (said,) = feed(sink, training(range(9)))
    assert end(sink, run) is None
    assert time.monotonic() - began < 10
    folder = offline_file(run).parent
    assert said.startswith(reason)
    assert said.endswith(f"wandb sync {folder}")
    assert list(losses(rows(offline_file(run)))) == list(range(1, 9))
    assert list((run / "wandb").glob("run-*")) == []
    assert capfd.readouterr() == ("", "")


def test_a_server_that_comes_back_gets_the_run_from_its_beginning(
    tmp_path: Path, start_server: Callable[[], Server]
) -> None:
    server, run = start_server(), make_run(tmp_path)
    server.stop()
    first = WandbSink(ONLINE, run)
    (said,) = feed(first, training(range(6)))
    assert "does not answer" in said
    state = json.loads(json.dumps(first.state_dict()))
    end(first, run, "interrupted")
    wandb.teardown()
    server = start_server()
    again = WandbSink(ONLINE, run)
    with pytest.raises(StateLost, match="W&B has no step of those up to 4 "):
        again.load_state_dict(state)
    assert feed(again, training(range(9))) == []
    end(again, run)
    assert list(losses(server.history(state["run_id"]))) == list(range(1, 9))
    assert list(run.glob("wandb/offline-run-*")) == []


def test_a_server_that_goes_away_ends_the_wait(
    tmp_path: Path, start_server: Callable[[], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "FINISH_S", 3.0)
    server, run = start_server(), make_run(tmp_path)
    sink = WandbSink(ONLINE, run)
    feed(sink, training(range(6)))
    server.stop()
    (said,) = feed(sink, training(range(6, 9)))
    assert said.endswith("Connection refused): no messages of alerts are sent until it does.")
    began = time.monotonic()
    said = end(sink, run)
    assert time.monotonic() - began < 8
    (folder,) = run.glob("wandb/run-*")
    assert said is not None
    assert said.startswith("the upload is not finished.")
    assert said.endswith(f"wandb sync {folder}")
    assert list(losses(rows(next(folder.glob("*.wandb"))))) == list(range(1, 9))


def test_a_server_that_is_away_is_told_of_once(tmp_path: Path, start_server: Callable[[], Server]) -> None:
    """Each time it goes, not at each alert."""
    server, run = start_server(), make_run(tmp_path)
    alerts = [event | {"step": step} for step in range(4) for event in training([6]) if event["event"] == "alert"]
    sink = WandbSink(ONLINE, run)
    assert feed(sink, alerts[:1]) == []
    server.stop()
    assert len(feed(sink, alerts[1:])) == 1
    server = start_server()
    assert feed(sink, alerts[:1]) == []
    server.stop()
    assert len(feed(sink, alerts)) == 1
    start_server()
    assert end(sink, run) is None


KILLED = f"""
import json, os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from altgrad_wandb.plugin import WandbOptions
from altgrad_wandb.sink import WandbSink
from sink_events import feed, training
sink = WandbSink(WandbOptions(mode="offline"), Path(sys.argv[1]))
if len(sys.argv) > 2:
    sink.load_state_dict(json.loads(sys.argv[2]))
state = json.dumps(sink.state_dict())
feed(sink, training(range(4)))
print(state, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_killed_run_goes_on_though_its_parent_uses_w_and_b(tmp_path: Path) -> None:
    """As a worker of a script that has logged to W&B itself."""
    run = make_run(tmp_path)
    wandb.setup()
    assert "WANDB_SERVICE" in os.environ
    command = [sys.executable, "-c", KILLED, str(run)]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.stdout, first.stderr
    again = subprocess.run([*command, first.stdout], capture_output=True, text=True, check=False)
    assert again.stdout == first.stdout, again.stderr


def test_several_at_once_do_not_mix(tmp_path: Path) -> None:
    sinks = []
    for name in ("a", "b", "c"):
        run = make_run(tmp_path, name)
        for project in ("p", "q") if name == "a" else ("p",):
            sinks.append((WandbSink(WandbOptions(mode="offline", project=project), run), run, project))

    def work(sink: WandbSink, run: Path, project: str) -> None:
        feed(sink, [metrics(step, **{f"x/{run.name}-{project}": step}) for step in range(50)])
        end(sink, run)

    threads = [threading.Thread(target=work, args=arguments) for arguments in sinks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files = sorted(tmp_path.glob("small/*/wandb/offline-run-*/*.wandb"))
    assert len(files) == 4
    for file in files:
        (told,) = [record.run for record in records(file) if record.WhichOneof("record_type") == "run"]
        name = f"x/{told.display_name}-{told.project}"
        assert [(row["_step"], row[name]) for row in rows(file)] == [(step, step) for step in range(50)]


def test_disabled_it_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = make_run(tmp_path)
    sink = WandbSink(WandbOptions(), run)
    feed(sink, training(range(5)))
    state = sink.state_dict()
    end(sink, run)
    assert not (run / "wandb").exists()
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")  # switched on again, it gets all of the run
    sink = WandbSink(WandbOptions(), run)
    with pytest.raises(StateLost):
        sink.load_state_dict(state)
    sink.close()


def test_the_folder_of_wandb_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "scratch"))
    run = make_run(tmp_path)
    sink = WandbSink(WandbOptions(), run)
    feed(sink, training(range(3)))
    end(sink, run, folder=tmp_path / "scratch")
    assert not (run / "wandb").exists()
    assert list(losses(rows(offline_file(tmp_path / "scratch")))) == [1, 2]
