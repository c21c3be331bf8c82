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
from altgrad_core.experiments.schema import AlertConfig, CheckpointConfig, Experiment, Fork, RunConfig, TrainConfig
from altgrad_core.plugins import Plugins
from altgrad_core.training.config import ALERTS, DivergenceRule, NanRule, RateRule, SpikeRule

RICH = """
[defaults]
seed = 9223372036854775807
model = { kind = "tiny", dropout = 0.30000000000000004 }
data = { path = 'C:\\x "y" é', splits = [0.1, 0.2, 0.7], shuffle = false }
launcher = "inline"
[defaults.train]
learning_rate = 1e-323
min_learning_rate = 0
grad_clip = 1e30
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
    assert set(table) == {field.name for field in attrs.fields(RunConfig)} - {"sinks", "fork"} | {"sink"}
    assert table["probes"] == {"gradients": {"every": 10}, "rank": {"every": 7}}
    assert "min_learning_rate" not in tomli.loads(dump_run(load('[[run]]\nname = "a"').runs[0]))["train"]


def test_where_a_fork_began_is_in_it(load: Callable[..., Experiment], plugins: Plugins) -> None:
    fork = Fork(run="x/a", step=7, checkpoint="step-000007", state_hash="abc")
    run = attrs.evolve(load('[[run]]\nname = "a"').runs[0], fork=fork)
    assert build_run(tomli.loads(dump_run(run)), plugins) == run
    assert difference(attrs.evolve(run, fork=None), run)[0] == 'fork.run: not set -> "x/a"'


def _numbers(field: Any) -> st.SearchStrategy[Any]:
    if field is not None and field.type in (int, "int"):
        return st.integers(1, 2**63 - 1)
    return st.floats(min_value=5e-324, allow_nan=False, allow_infinity=False)


def _rules(alert: str) -> st.SearchStrategy[Any]:
    fraction = st.floats(0, 1, exclude_max=True)
    number = {"nan": st.integers(1, 2**63 - 1), "nan_patience": st.integers(1, 2**63 - 1)}
    number |= dict.fromkeys(("loss_spike", "divergence", "non_finite"), _numbers(None))
    plain, key = number.get(alert, fraction), AlertConfig.default(alert).plain
    rest = {"patience": st.integers(1, 2**63 - 1), "action": st.sampled_from(["log", "checkpoint", "stop"])}
    return st.one_of(st.booleans(), plain, st.fixed_dictionaries({}, optional={**rest, key: plain}))


@given(data=st.data())
def test_every_number_comes_back_bit_for_bit(plugins: Plugins, data: st.DataObject) -> None:
    table: dict[str, Any] = {"experiment": "e", "name": "n"}
    fields = [field for field in attrs.fields(TrainConfig) if field.name != "optimizer"]
    table["train"] = {field.name: data.draw(_numbers(field)) for field in fields}
    table["alerts"] = {alert: data.draw(_rules(alert)) for alert in ALERTS}
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


def alerts_of(load: Callable[..., Experiment], defaults: str = "", run: str = "", *overrides: str) -> AlertConfig:
    text = f'[defaults.alerts]\n{defaults}\n[[run]]\nname = "a"\n[run.alerts]\n{run}\n'
    return load(text, *overrides).runs[0].alerts


def test_forms_of_an_alert(load: Callable[..., Experiment]) -> None:
    assert alerts_of(load) == AlertConfig()
    said = alerts_of(
        load,
        """
nan = 2
nan_patience = 3
loss_spike = false
divergence = { patience = 7, action = "stop" }
bit_stall = true
overflow = 0
underflow = { threshold = 0.25 }
""",
    )
    assert said == AlertConfig(
        nan=NanRule(patience=2, action="checkpoint"),
        nan_patience=NanRule(patience=3, action="stop"),
        loss_spike=None,
        divergence=DivergenceRule(patience=7, action="stop"),
        overflow=RateRule(threshold=0.0),
        underflow=RateRule(threshold=0.25),
    )


@pytest.mark.parametrize(
    ("defaults", "run", "override", "expected"),
    [
        ("overflow = 0.5", "overflow.patience = 3", (), RateRule(threshold=0.5, patience=3)),
        ("overflow = { threshold = 0.5, patience = 3 }", "overflow = 0.25", (), RateRule(threshold=0.25, patience=3)),
        ("overflow = { patience = 3 }", 'overflow = { action = "stop" }', (),
         RateRule(threshold=0.01, patience=3, action="stop")),
        ("overflow = { patience = 3 }", "overflow = false", (), None),
        ("overflow = { patience = 3 }", "overflow = true", (), RateRule(threshold=0.01, patience=3)),
        ("overflow = 0.5", "overflow = true", (), RateRule(threshold=0.5)),
        ("overflow = false", "overflow = true", (), RateRule(threshold=0.01)),
        ("overflow = false", "overflow = 0.5", (), RateRule(threshold=0.5)),
        ("overflow = false", "overflow.patience = 2", (), RateRule(threshold=0.01, patience=2)),
        ("overflow = { patience = 3 }", "", ("alerts.overflow=0.5",), RateRule(threshold=0.5, patience=3)),
        ("overflow = 0.5", "", ('alerts.overflow.action="stop"',), RateRule(threshold=0.5, action="stop")),
        ("overflow = 0.5", "overflow = 0.25", ("alerts.overflow=false",), None),
    ],
)  # fmt: skip
def test_an_alert_in_layers(
    load: Callable[..., Experiment], defaults: str, run: str, override: tuple[str, ...], expected: RateRule | None
) -> None:
    assert alerts_of(load, defaults, run, *override).overflow == expected


def test_the_place_of_a_number_that_another_layer_gave(load: Callable[..., Experiment], tmp_path: Path) -> None:
    with pytest.raises(AltgradError) as caught:
        alerts_of(load, "overflow = 7", "overflow.patience = 0")
    assert [line.replace(str(tmp_path) + "/", "") for line in str(caught.value).splitlines()] == [
        "experiments.toml:2:1: defaults.alerts.overflow: expected a fraction from 0 to below 1 (0.5 is 50 %), got 7.0; false "
        "switches the alert off",
        'experiments.toml:6:10: run["a"].alerts.overflow.patience: must be >= 1, got 0',
    ]


def test_alerts_round_trip_and_their_difference(
    load: Callable[..., Experiment], plugins: Plugins, tmp_path: Path
) -> None:
    text = """
[[run]]
name = "a"
[[run]]
name = "b"
[run.alerts]
nan_patience = 3
loss_spike = { threshold = 8, window = 50, min_losses = 30 }
divergence = false
overflow = { threshold = 0.01, patience = 3, action = "checkpoint" }
"""
    a, b = load(text).runs
    (tmp_path / "run.toml").write_text(dump_run(b), encoding="utf-8")
    back = load_run(tmp_path / "run.toml", plugins=plugins)
    assert back == b
    assert back.alerts.loss_spike == SpikeRule(threshold=8.0, window=50, min_losses=30)
    assert back.alerts.divergence is None
    assert difference(attrs.evolve(a, name="b"), b) == [
        "alerts.nan_patience.patience: 10 -> 3",
        "alerts.loss_spike.threshold: 10.0 -> 8.0",
        "alerts.loss_spike.window: 100 -> 50",
        "alerts.loss_spike.min_losses: 20 -> 30",
        "alerts.divergence.threshold: 0.5 -> not set",
        "alerts.divergence.patience: 50 -> not set",
        'alerts.divergence.action: "checkpoint" -> not set',
        "alerts.divergence.window: 25 -> not set",
        "alerts.overflow.patience: 1 -> 3",
        'alerts.overflow.action: "log" -> "checkpoint"',
        "alerts.divergence: not set -> false",
    ]


def test_the_numbers_of_an_older_run_toml(plugins: Plugins) -> None:
    table = {"experiment": "e", "name": "n", "alerts": {"nan_patience": 10, "bit_stall": 0.5, "overflow": 0.01}}
    assert build_run(table, plugins).alerts == AlertConfig()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("steps = 300", "steps = 0", "12:1: train.steps: must be >= 1, got 0"),
        ("steps = 300", "steps = 300.0", "12:1: train.steps: expected an integer, got 300.0"),
        ('name = "a"', 'title = "a"', "2:1: title: Unknown key 'title'. Known: alerts, baseline, checkpoint, data, "
         "experiment, fork, launcher, model, name, probes, recipe, seed, sink, train.\n"
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
