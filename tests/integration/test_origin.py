"""A run goes on as it began, or not at all: other data, an edited ``run.toml``, a lost ``events.jsonl``."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import MakeExperiment, altgrad_here

import altgrad_core as altgrad
from altgrad_core.experiments.config import dump_run, load_experiment
from altgrad_core.experiments.folder import RunFolder
from altgrad_core.experiments.worker import execute
from altgrad_core.files import write_whole

RUN = '[[run]]\nname = "r"\nrecipe = "bf16"\nprobes = { shadow = false }\n'


@pytest.fixture
def interrupted(make_experiment: MakeExperiment) -> RunFolder:
    (config,) = load_experiment(make_experiment(RUN)).runs
    folder = RunFolder(Path("runs/small/r"))
    write_whole(folder.config, dump_run(config))
    assert execute(folder, "cpu", stop_at=6) == 128
    return folder


def test_other_data_are_refused(interrupted: RunFolder, tmp_path: Path) -> None:
    text = tmp_path / "text" / "0.txt"
    before = text.read_text()
    text.write_text("Completely other words, no foxes here at all. " * 30)
    status, said = altgrad_here("run", "small.toml")
    assert status == 1
    assert "step-000006 was trained otherwise than this run would go on (then -> now):" in said
    assert "the data: source_sha256: " in said
    assert "Put run.toml and the data back as they were" in said
    text.write_text(before)
    status, said = altgrad_here("run", "small.toml", "--retry-failed")
    assert (status, "resumed at step 6" in said) == (0, True)


def test_a_lost_events_file_does_not_hide_another_configuration(interrupted: RunFolder) -> None:
    interrupted.events.unlink()
    assert interrupted.status() == "interrupted"
    before = interrupted.config.read_bytes()
    status, said = altgrad_here("run", "small.toml", "--set", "train.learning_rate=1e-4")
    assert (status, "train.learning_rate: 0.003 -> 0.0001" in said) == (2, True)
    assert interrupted.config.read_bytes() == before
    status, said = altgrad_here("run", "small.toml")
    assert (status, "resumed at step 6" in said) == (0, True)


def test_an_edited_run_toml_is_refused(interrupted: RunFolder) -> None:
    text = interrupted.config.read_text()
    interrupted.config.write_text(text.replace("learning_rate = 0.003", "learning_rate = 0.001"))
    status, said = altgrad_here("run", "small.toml", "--set", "train.learning_rate=0.001")
    assert (status, "  train.learning_rate: 0.003 -> 0.001" in said) == (1, True)
    interrupted.config.write_text(text.replace("baseline = false", "baseline = true"))  # decides nothing
    status, said = altgrad_here("run", "small.toml", "--retry-failed")
    assert status == 0, said


def test_a_fork_on_other_data_says_so(interrupted: RunFolder, tmp_path: Path) -> None:
    status, said = altgrad_here("run", "small.toml")
    assert status == 0, said
    other = tmp_path / "other"
    other.mkdir()
    for number in range(20):
        (other / f"{number}.txt").write_text(f"Something else altogether, {number}. " * 30)
    status, said = altgrad_here(
        "fork",
        "runs/small/r@8",
        "--name",
        "f",
        "--set",
        f'data={{ kind = "text", path = "{other}", tokenizer = "bytes" }}',
    )
    assert status == 0, said
    assert altgrad.load_run("runs/small/f").status == "done"
    assert (
        "The data are others than those of the checkpoint (source_sha256: "
        in Path("runs/small/f/events.jsonl").read_text()
    )
