"""``run.toml`` holds everything and comes back exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from altgrad_core.errors import AltgradError
from altgrad_core.experiments.config import difference, dump_run, load_run
from altgrad_core.experiments.runfile import build_run, run_table
from altgrad_core.experiments.schema import AlertConfig, CheckpointConfig, Experiment, RunConfig, TrainConfig
from altgrad_core.plugins import Plugins

RICH = """
[defaults]
seed = 9223372036854775807
model = { kind = "tiny", dropout = 0.30000000000000004 }
data = { path = 'C:\\x "y" é', splits = [0.1, 0.2, 0.7], shuffle = false }
launcher = "inline"
[defaults.train]
learning_rate = 1e-323
min_learning_rate = 0
grad_clip = inf
weight_decay = 1
optimizer = "sgd"
[defaults.probes]
shadow = false
rank = { every = 7 }
[[run]]
name = "a"
baseline = true
[run.recipe]
base = "hybrid"
gradient = { format = "e5m2", scaling = { kind = "delayed", history = 3 } }
overrides = [{ match = "lm_head", recipe = "bf16" }, { match = "*", recipe = { input = "e3m4", saturation = "none" } }]
[[run]]
name = "b"
[[sink]]
kind = "tracker"
tags = ["x"]
[[sink]]
kind = "csv"
"""


def test_round_trip(load: Callable[..., Experiment], plugins: Plugins, tmp_path: Path) -> None:
    for text in (RICH, '[[run]]\nname = "a"'):
        for run in load(text).runs:
            (tmp_path / "run.toml").write_text(dump_run(run), encoding="utf-8")
            back = load_run(tmp_path / "run.toml", plugins=plugins)
            assert back == run
            assert dump_run(back) == dump_run(run)
            assert difference(run, back) == []


def test_it_is_complete(load: Callable[..., Experiment]) -> None:
    run = load(RICH).runs[0]
    table = tomli.loads(dump_run(run))
    for cls, part in ((TrainConfig, "train"), (CheckpointConfig, "checkpoint"), (AlertConfig, "alerts")):
        assert set(table[part]) == {field.name for field in attrs.fields(cls)}
    assert set(table) == {field.name for field in attrs.fields(RunConfig)} - {"sinks"} | {"sink"}
    assert table["probes"] == {"gradients": {"every": 10}, "rank": {"every": 7}}
    assert "min_learning_rate" not in tomli.loads(dump_run(load('[[run]]\nname = "a"').runs[0]))["train"]


def _numbers(field: Any) -> st.SearchStrategy[Any]:
    if field.type in (int, "int"):
        return st.integers(1, 2**63 - 1)
    return st.floats(min_value=5e-324, allow_nan=False)


@given(data=st.data())
def test_every_number_comes_back_bit_for_bit(plugins: Plugins, data: st.DataObject) -> None:
    table: dict[str, Any] = {"experiment": "e", "name": "n"}
    for key, cls in (("train", TrainConfig), ("alerts", AlertConfig)):
        fields = [field for field in attrs.fields(cls) if field.name != "optimizer"]
        table[key] = {field.name: data.draw(_numbers(field)) for field in fields}
    run = build_run(table, plugins)
    back = build_run(tomli.loads(dump_run(run)), plugins)
    assert back == run
    assert repr(back) == repr(run)


def test_difference(load: Callable[..., Experiment]) -> None:
    def one(text: str) -> RunConfig:
        return load(text + '\n[[run]]\nname = "a"').runs[0]

    old = one("")
    assert difference(old, old) == []
    new = one("""
[defaults]
train = { steps = 500, min_learning_rate = 1e-5 }
probes.shadow = false
probes.rank = true
model.width = 9
data.splits = [1]
[[sink]]
kind = "csv"
""")
    assert difference(old, new) == [
        "model.width: 8 -> 9",
        "data.splits: [0.9, 0.1] -> [1.0]",
        "train.steps: 300 -> 500",
        "probes.shadow.every: 10 -> not set",
        "train.min_learning_rate: not set -> 1e-05",
        "probes.rank.every: not set -> 10",
        'sink[0].kind: not set -> "csv"',
    ]
    recipe = difference(one('defaults.recipe = "e5m2"'), one('defaults.recipe = "e5m2"\ndefaults.seed = 1'))
    assert recipe == ["seed: 42 -> 1"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("steps = 300", "steps = 0", "12:1: train.steps: must be >= 1, got 0"),
        ("steps = 300", "steps = 300.0", "12:1: train.steps: expected an integer, got 300.0"),
        ('name = "a"', 'title = "a"', "2:1: title: Unknown key 'title'. Known: alerts, baseline, checkpoint, data, "
         "experiment, launcher, model, name, probes, recipe, seed, sink, train.\n"
         "run.toml:1:1: name: missing; it has no default"),
        ('name = "a"', 'name = "../a"', "2:1: name: expected a name that can be a folder (letters, digits, '.', '_', '+', "
         "'-'; no '.' or '-' in front), got \"../a\""),
        ('kind = "gpt"', 'kind = "gp"', "6:1: model.kind: Unknown model 'gp'. Did you mean 'gpt'? Known: gpt, tiny."),
    ],
)  # fmt: skip
def test_it_is_read_strictly(
    load: Callable[..., Experiment], plugins: Plugins, tmp_path: Path, old: str, new: str, expected: str
) -> None:
    table = run_table(load('[[run]]\nname = "a"').runs[0])
    text = "\n".join(
        ['experiment = "test"', 'name = "a"', "seed = 42", "", "[model]", 'kind = "gpt"', "", "[recipe]",
         'compute = "bf16"', "", "[train]", "steps = 300", "batch_size = 16"]
    )  # fmt: skip
    assert tomli.loads(text)["train"]["steps"] == table["train"]["steps"]
    assert old in text
    path = tmp_path / "run.toml"
    path.write_text(text.replace(old, new))
    with pytest.raises(AltgradError) as caught:
        load_run(path, plugins=plugins)
    lines = str(caught.value).replace(str(tmp_path) + "/", "").splitlines()
    assert sorted(lines) == sorted(f"run.toml:{expected}".splitlines())
