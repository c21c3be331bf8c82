"""``--set``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from altgrad_core.experiments.schema import Experiment, RunConfig

TEXT = """
[defaults]
recipe = "e5m2"
model = { kind = "tiny", width = 3 }
[[run]]
name = "a"
train = { steps = 5 }
[[run]]
name = "b"
[[run]]
name = "c-{scaling}"
matrix = { "recipe.scaling" = ["none", "delayed"] }
"""
KEYS = "alerts, baseline, checkpoint, data, launcher, model, probes, recipe, seed, train"


@pytest.mark.parametrize(
    ("overrides", "value", "expected"),
    [
        (["train.steps=7"], lambda run: run.train.steps, [7, 7, 7, 7]),
        (["train.steps = 7"], lambda run: run.train.steps, [7, 7, 7, 7]),
        (["b:train.steps=7"], lambda run: run.train.steps, [5, 7, 300, 300]),
        (["c-none:seed=1", "seed=2"], lambda run: run.seed, [2, 2, 2, 2]),
        (["seed=2", "c-none:seed=1"], lambda run: run.seed, [2, 2, 1, 2]),
        (['data.path="x=y"'], lambda run: run.data.options.path, ["x=y"] * 4),
        (["train.learning_rate=1e-5"], lambda run: run.train.learning_rate, [1e-5] * 4),
        (['recipe="hybrid"'], lambda run: run.recipe.name, ["hybrid"] * 4),
        (['recipe.scaling="none"'], lambda run: run.recipe.casts()["input"].scaling.kind, ["none"] * 4),
        (['b:recipe.input="e3m4"'], lambda run: run.recipe.casts()["input"].format, ["e5m2", "e3m4", "e5m2", "e5m2"]),
        (["model.width=1"], lambda run: (run.model.kind, run.model.options.width), [("tiny", 1)] * 4),
        (['model="gpt"'], lambda run: (run.model.kind, run.model.options.width), [("gpt", 8)] * 4),
        (["probes.shadow=false"], lambda run: [p.kind for p in run.probes], [["gradients"]] * 4),
        (["probes.shadow.every=2"], lambda run: run.probes[1].options.every, [2] * 4),
        (["a:baseline=true"], lambda run: run.baseline, [True, False, False, False]),
        (["train={steps=1, batch_size=2}"], lambda run: (run.train.steps, run.train.batch_size), [(1, 2)] * 4),
        (['train.optimizer="sgd"'], lambda run: run.train.optimizer.kind, ["sgd"] * 4),
    ],
)
def test_values(
    load: Callable[..., Experiment], overrides: list[str], value: Callable[[RunConfig], Any], expected: list[Any]
) -> None:
    assert [value(run) for run in load(TEXT, *overrides).runs] == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.stps=4", "train.stps: Unknown key 'stps'. Did you mean 'steps'? Known: accumulate, batch_size, "
         "eval_batches, eval_every, grad_clip, learning_rate, log_every, min_learning_rate, optimizer, steps, "
         "warmup_steps, weight_decay."),
        ("tran.steps=4", f"Unknown key 'tran'. Did you mean 'train'? Known: {KEYS}."),
        ("b.train.steps=4", f"Unknown key 'b'. Known: {KEYS}. To set train.steps in the run 'b' alone: "
         "--set 'b:train.steps=4'."),
        ("name='x'", f"Unknown key 'name'. Known: {KEYS}."),
        ("train.steps='4'", 'train.steps: expected an integer, got "4"'),
        ("train.steps=0", "train.steps: must be >= 1, got 0"),
        ("bb:train.steps=4", "Unknown run 'bb'. Did you mean 'b'? Known: a, b, c-delayed, c-none."),
        ("recipe=e5m2", 'recipe: "e5m2" is not a TOML value; text needs quotes: --set \'recipe="e5m2"\''),
        ("b:data.path=my data", 'data.path: "my data" is not a TOML value; text needs quotes: '
         "--set 'b:data.path=\"my data\"'"),
        ("train.steps=", 'train.steps: "" is not a TOML value; text needs quotes: --set \'train.steps=""\''),
        ("train.steps=1\nx = 2", "train.steps: expected one TOML value, got several lines"),
        ("train.steps", "expected KEY=VALUE or RUN:KEY=VALUE, such as train.steps=50"),
        ("=3", "expected KEY=VALUE or RUN:KEY=VALUE, such as train.steps=50"),
        ("train..steps=3", "expected KEY=VALUE or RUN:KEY=VALUE, such as train.steps=50"),
        ("seed=" + "9" * 5000, f'seed: "{"9" * 56}... is not a TOML value; text needs quotes: --set \'seed="{"9" * 56}...\''),
        ("b:baseline=1", "baseline: expected true or false, got 1"),
        ("probes.shade.every=1", "probes.shade: Unknown probe 'shade'. Did you mean 'shadow'? "
         "Known: gradients, rank, shadow."),
    ],
)  # fmt: skip
def test_errors(errors: Callable[..., list[str]], override: str, expected: str) -> None:
    assert "\n".join(errors(TEXT, override)) == f"--set {override}: {expected}"


def test_an_override_mends_a_value(load: Callable[..., Experiment]) -> None:
    assert load('[defaults.train]\nsteps = "x"\n[[run]]\nname = "a"', "train.steps=3").runs[0].train.steps == 3
