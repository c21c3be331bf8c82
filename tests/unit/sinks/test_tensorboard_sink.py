"""The sink ``tensorboard``, read by TensorBoard's own reader."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from altgrad_tensorboard.plugin import TensorBoardOptions, build
from altgrad_tensorboard.sink import TensorBoardSink
from sink_events import TIME, feed, histograms, make_run, metrics, status, training
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.util.tensor_util import make_ndarray

from altgrad_core.errors import AltgradError
from altgrad_core.training.events import StateLost, marked_as_simulated

EVERYTHING = {"scalars": 0, "tensors": 0}


def reader(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance=EVERYTHING).Reload()


def scalars(folder: Path, tag: str) -> dict[int, float]:
    """Return step -> value, after checking that no step is there twice."""
    events = reader(folder).Scalars(tag)
    steps = [event.step for event in events]
    assert steps == sorted(set(steps)), tag
    return {event.step: event.value for event in events}


def texts(folder: Path, tag: str) -> dict[int, str]:
    return {event.step: event.tensor_proto.string_val[0].decode() for event in reader(folder).Tensors(tag)}


def test_what_it_writes_is_what_tensorboard_reads(tmp_path: Path) -> None:
    run = make_run(tmp_path, recipe={"name": "e5m2", "overrides": [{"match": "lm_head"}]}, sink=[{"kind": "secret"}])
    (run / "events.jsonl").write_text("")
    sink = TensorBoardSink(run, run)
    feed(sink, [status("running"), *training(range(9)), status("done", 8)])
    sink.close()
    losses = scalars(run, "train/loss")
    assert list(losses) == list(range(1, 9))
    assert math.isnan(losses.pop(5))
    assert losses == pytest.approx({step: 1 / (step + 1) for step in losses})
    assert list(scalars(run, "val/loss")) == [0, 4, 8]
    assert scalars(run, "grad_norm_l2/blocks.2.mlp.up.weight")[7] == pytest.approx(7.2)
    assert [event.wall_time for event in reader(run).Scalars("train/lr")] == [TIME + step for step in range(1, 9)]
    (settings,) = texts(run, "settings").values()
    assert "| train.steps | 12 |" in settings
    assert '| recipe.overrides | [{"match": "lm_head"}] |' in settings
    assert "secret" not in settings
    alert = texts(run, "alerts/overflow")
    assert list(alert) == [6]
    assert alert[6].startswith("The mean overflow rate is 50 %.")
    assert "| layer | blocks.0.mlp.up.input |" in alert[6]
    assert "| status | done |" in texts(run, "outcome")[8]


def test_histograms_are_those_of_its_tab(tmp_path: Path) -> None:
    """Read as the Histograms tab does: a tensor of that plugin, [left, right, count] a bin, over log2."""
    run = make_run(tmp_path)
    sink = TensorBoardSink(run, run)
    feed(sink, [metrics(1, **{"train/loss": 4.0}), histograms(1), metrics(2, **{"train/loss": 3.0}), histograms(2)])
    sink.close()
    read = reader(run)
    (tag,) = read.PluginTagToContent("histograms")
    assert tag == "histogram/blocks.0.mlp.up.input"
    events = read.Tensors(tag)
    assert [event.step for event in events] == [1, 2]
    wanted = [[-18, -17, 1], [-17, -16, 0], [-16, -15, 5], [-15, -14, 7]]
    assert make_ndarray(events[1].tensor_proto).tolist() == wanted
    assert list(scalars(run, "train/loss")) == [1, 2]


def test_the_hparams_tab_gets_settings_metrics_and_the_end(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "events.jsonl").write_text("")
    sink = TensorBoardSink(run, run)
    feed(sink, [*training(range(3)), status("failed", 2)])
    sink.close()
    content = reader(run).PluginTagToContent("hparams")
    begun = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert begun.hparams["train.steps"].number_value == 12
    assert begun.hparams["name"].string_value == "e5m2"
    assert begun.hparams["baseline"].WhichOneof("kind") == "bool_value"
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    assert [info.name.tag for info in experiment.metric_infos] == ["val/loss", "train/loss"]
    ended = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])
    assert ended.status == metadata.plugin_data_pb2.tensorboard_dot_plugins_dot_hparams_dot_api__pb2.STATUS_FAILURE


def test_300_metrics_a_step(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    sink = TensorBoardSink(run, run)
    feed(sink, training(range(1, 21), layers=300))
    sink.close()
    read = reader(run)
    assert len(read.Tags()["scalars"]) == 303
    assert all(len(read.Scalars(tag)) == 20 for tag in read.Tags()["scalars"] if tag != "val/loss")


@pytest.mark.parametrize("seed", range(8))
def test_after_crashes_no_step_is_there_twice(tmp_path: Path, seed: int) -> None:
    """Crashes at random, and a TensorBoard that is open all the time: it and a new one read the same."""
    chance = random.Random(seed)
    run = make_run(tmp_path)
    events = list(training(range(30)))
    saved: list[tuple[int, dict[str, Any]]] = [(0, TensorBoardSink(run, run).state_dict())]
    live, at = EventAccumulator(str(run), size_guidance=EVERYTHING), 0
    while at < len(events):
        at, state = chance.choice(saved[-3:])
        sink = TensorBoardSink(run, run)
        sink.load_state_dict(json.loads(json.dumps(state)))
        crash = len(events) if chance.random() < 0.2 else chance.randint(at, len(events))
        while at < crash:
            feed(sink, [events[at]])
            at += 1
            if chance.random() < 0.2:
                saved.append((at, sink.state_dict()))
        sink.close()  # writes nothing more: the run has not told an end
        live.Reload()
        if at < len(events) and chance.random() < 0.5:
            with max(run.glob("*tfevents*"), default=run / "tfevents").open("ab") as file:
                file.write(b"torn")
    for tag, count in {"train/loss": 29, "val/loss": 8, "grad_norm_l2/blocks.1.mlp.up.weight": 29}.items():
        assert len(scalars(run, tag)) == count
        seen = live.Reload().Scalars(tag)
        assert {event.step: event.value for event in seen} == pytest.approx(scalars(run, tag), nan_ok=True)
        assert len(seen) == count or tag == "val/loss"  # of the step that a stretch began in the middle of
    assert len(texts(run, "settings")) == 1


def test_event_files_that_are_gone_are_made_anew(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    sink = TensorBoardSink(run, run)
    feed(sink, training(range(5)))
    state = sink.state_dict()
    sink.close()
    (file,) = run.glob("*tfevents*")
    file.write_bytes(file.read_bytes()[:-1])
    sink = TensorBoardSink(run, run)
    with pytest.raises(StateLost, match="are not all there any more"):
        sink.load_state_dict(state)
    feed(sink, training(range(7)))
    sink.close()
    assert list(scalars(run, "train/loss")) == list(range(1, 7))


def test_files_of_others_stay(tmp_path: Path) -> None:
    """A user's own event file in the folder, and the ones of a run that started over."""
    run = make_run(tmp_path)
    (run / "events.out.tfevents.1234.host").write_bytes(b"not ours")
    for steps in (9, 4):
        sink = TensorBoardSink(run, run)
        feed(sink, training(range(steps)))
        sink.close()
    assert (run / "events.out.tfevents.1234.host").read_bytes() == b"not ours"
    (run / "events.out.tfevents.1234.host").unlink()
    assert list(scalars(run, "train/loss")) == [1, 2, 3]


def test_a_run_of_the_same_name_elsewhere_keeps_its_files(tmp_path: Path) -> None:
    """As with ``--runs runs-43``: both would write to ``<logdir>/small/e5m2``."""
    options = TensorBoardOptions(logdir=str(tmp_path / "tb"))
    one, other = make_run(tmp_path / "runs"), make_run(tmp_path / "runs-43")
    sink = build(options, one)
    feed(sink, training(range(9)))
    with pytest.raises(AltgradError, match=f"has the event files of the run in {one}, and this is the run in {other}"):
        build(options, other)
    sink.close()
    assert list(scalars(tmp_path / "tb" / "small" / "e5m2", "train/loss")) == list(range(1, 9))
    again = build(options, one)  # the run itself may start over
    feed(again, training(range(4)))
    again.close()
    assert list(scalars(tmp_path / "tb" / "small" / "e5m2", "train/loss")) == [1, 2, 3]
    assert sorted(path.suffix for path in (tmp_path / "tb" / "small" / "e5m2").iterdir()) == ["", ".altgrad"]


def test_a_logdir_that_is_the_runs_folder_of_others(tmp_path: Path) -> None:
    one, other = make_run(tmp_path / "runs"), make_run(tmp_path / "runs-43")
    sink = build(TensorBoardOptions(), one)
    feed(sink, training(range(4)))
    sink.close()
    options = TensorBoardOptions(logdir=str(tmp_path / "runs"))
    with pytest.raises(AltgradError, match="give one of the two another logdir, or none"):
        build(options, other)
    assert list(scalars(one, "train/loss")) == [1, 2, 3]
    build(options, one).close()  # its own folder after all


def test_a_write_that_failed_half_way_leaves_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    sink = TensorBoardSink(run, run)
    feed(sink, training(range(3)))

    class Full:
        """A disk that takes a part of what is written before it raises."""

        def __init__(self, file: Any) -> None:
            self.file, self.calls = file, 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            self.calls += 1
            if self.calls % 2:
                return self.file.write(data[:7])
            raise OSError(28, "No space left on device")

    real = sink._files._file
    sink._files._file = Full(real)
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            sink.write(metrics(3, **{"train/loss": 9.0}))
    sink._files._file = real
    feed(sink, training(range(3, 6)))
    sink.close()
    assert scalars(run, "train/loss")[3] == pytest.approx(0.25)
    assert list(scalars(run, "train/loss")) == [1, 2, 3, 4, 5]


def test_values_that_float32_does_not_hold(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    sink = TensorBoardSink(run, run)
    feed(sink, [metrics(1, a=math.inf, b=-math.inf, c=math.nan, d=1e300, e=1e-300, f=1 / 3)])
    sink.close()
    read = {tag: scalars(run, tag)[1] for tag in "abcdef"}
    assert math.isnan(read.pop("c"))
    assert read == {"a": math.inf, "b": -math.inf, "d": math.inf, "e": 0.0, "f": pytest.approx(1 / 3)}


def test_a_simulation_is_marked(tmp_path: Path) -> None:
    run = make_run(tmp_path, "llama", simulated=True)
    sink = TensorBoardSink(run, run)
    feed(sink, map(marked_as_simulated, [*training(range(8)), status("done", 7)]))
    sink.close()
    tags = reader(run).Tags()
    names = [tag for tag in [*tags["scalars"], *tags["tensors"]] if not tag.startswith("_hparams_/")]
    assert {name.partition("/")[0] for name in names} == {"simulated"}
    assert "| status | done |" in texts(run, "simulated/outcome")[7]


def test_tensorflow_is_not_imported_where_it_is_installed(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('imported')")
    code = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(tmp_path)!r}, {str(Path(__file__).parent)!r}]
from altgrad_tensorboard.plugin import TensorBoardOptions, build
from sink_events import feed, training, status
sink = build(TensorBoardOptions(logdir={str(tmp_path / "tb")!r}), Path({str(run)!r}))
feed(sink, training(range(8)))
sink.close()
assert not {{"tensorflow", "torch"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(scalars(tmp_path / "tb" / "small" / "e5m2", "train/loss")) == list(range(1, 8))
