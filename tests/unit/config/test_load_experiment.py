"""What a good experiment file means: defaults, layers, shorthands, probes, sinks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs

from altgrad_core.experiments.config import load_experiment
from altgrad_core.experiments.schema import Experiment
from altgrad_core.plugins import Choice

Load = Callable[..., Experiment]
ROOT = Path(__file__).parents[3]


def test_the_shortest_file(load: Load) -> None:
    experiment = load('[[run]]\nname = "a"')
    (run,) = experiment.runs
    assert (experiment.name, run.experiment, run.name, run.baseline, run.seed) == ("test", "test", "a", False, 42)
    assert experiment.baseline is None
    assert (run.model.kind, run.data.kind, run.recipe.name) == ("gpt", "stdlib", "bf16")
    assert (run.train.optimizer.kind, run.checkpoint.backend.kind, run.launcher.kind) == ("adamw", "local", "process")
    assert run.model.options.width == 8
    assert run.sinks == ()


def test_the_shipped_files_are_right() -> None:
    experiment = load_experiment(ROOT / "experiments.toml")
    assert [run.name for run in experiment.runs] == ["bf16", "e5m2", "hybrid"]
    assert experiment.baseline is experiment.runs[0]
    for example in (ROOT / "examples").glob("*.toml"):
        assert load_experiment(example).runs


def test_a_run_changes_any_default(load: Load) -> None:
    a, b, c = load("""
[defaults]
seed = 1
model = { width = 4, block_size = 32 }
recipe = "e5m2"
[defaults.train]
steps = 10
optimizer = { kind = "adamw", beta1 = 0.5 }
[[run]]
name = "a"
[[run]]
name = "b"
seed = 2
model.width = 6
train = { batch_size = 3, optimizer = "sgd" }
recipe.scaling = "delayed"
baseline = true
[[run]]
name = "c"
model = { kind = "tiny" }
recipe = "hybrid"
[run.train.optimizer]
amsgrad = true
""").runs
    assert (a.seed, a.model.options.width, a.train.steps, a.recipe.name) == (1, 4, 10, "e5m2")
    assert (b.seed, b.model.options.width, b.model.options.block_size) == (2, 6, 32)
    assert (b.train.steps, b.train.batch_size, b.train.optimizer) == (10, 3, Choice("sgd", b.train.optimizer.options))
    assert (b.baseline, b.recipe.name) == (True, "e5m2, scaling delayed")
    # another kind starts from its own defaults, the same kind keeps what is set
    assert (c.model.kind, c.model.options.width) == ("tiny", 8)
    assert (c.train.optimizer.options.beta1, c.train.optimizer.options.amsgrad) == (0.5, True)
    assert c.recipe.name == "hybrid"


def test_a_table_changes_options_of_what_a_string_chose(load: Load) -> None:
    (run,) = load("""
[defaults]
model = "tiny"
recipe = { input = "e4m3fn", weight = "e4m3fn" }
[defaults.train]
optimizer = "adamw"
[[run]]
name = "a"
model.width = 2
recipe.input.saturation = "none"
train.optimizer.beta1 = 1
""").runs
    assert (run.model.kind, run.model.options.width) == ("tiny", 2)
    assert run.train.optimizer.options.beta1 == 1.0
    assert type(run.train.optimizer.options.beta1) is float
    assert run.recipe.input is not None
    assert run.recipe.weight is not None
    assert (run.recipe.input.format, run.recipe.input.saturation) == ("e4m3fn", "none")
    assert run.recipe.weight.saturation == "finite"


def test_built_in_probes_are_on_and_others_when_named(load: Load) -> None:
    def every(text: str) -> dict[str, int]:
        (run,) = load(text + '\n[[run]]\nname = "a"\n' + "probes.gradients = true").runs
        return {probe.kind: probe.options.every for probe in run.probes}

    assert every("") == {"gradients": 10, "shadow": 10}
    assert every("[defaults.probes]\nshadow = false") == {"gradients": 10}
    assert every("[defaults.probes]\nshadow = { every = 2 }\nrank = true") == {"gradients": 10, "rank": 10, "shadow": 2}
    # true over a table keeps its options
    assert every("[defaults.probes]\ngradients = { every = 3 }") == {"gradients": 3, "shadow": 10}
    assert every("[defaults.probes]\ngradients = false") == {"gradients": 10, "shadow": 10}


def test_sinks_are_those_of_every_run(load: Load) -> None:
    runs = load("""
[[run]]
name = "a"
[[run]]
name = "b"
[[sink]]
kind = "tracker"
tags = ["x", "y"]
[[sink]]
kind = "csv"
""").runs
    for run in runs:
        assert [sink.kind for sink in run.sinks] == ["tracker", "csv"]
        assert run.sinks[0].options.tags == ("x", "y")


def test_every_key_of_the_schema_can_be_written(load: Load) -> None:
    """Whatever a schema class has is accepted under its name."""
    (run,) = load('[[run]]\nname = "a"').runs
    for key in ("train", "checkpoint", "alerts"):
        part = getattr(run, key)
        for field in attrs.fields(type(part)):
            value = getattr(part, field.name)
            if isinstance(value, int | float):
                (changed,) = load(f'[defaults.{key}]\n{field.name} = {value + 1}\n[[run]]\nname = "a"').runs
                assert getattr(getattr(changed, key), field.name) == value + 1
    (changed,) = load('[defaults.train]\nmin_learning_rate = 0\n[[run]]\nname = "a"').runs
    assert changed.train.final_learning_rate == 0


def test_crlf_and_byte_order_mark(load: Load) -> None:
    assert load('\ufeff[[run]]\r\nname = "a"\r\n').runs[0].name == "a"
