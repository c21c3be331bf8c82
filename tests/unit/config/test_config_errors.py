# ruff: noqa: E501 - expected texts stay on one line
"""The texts of configuration errors: place, key, what was expected, what came, the nearest name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from altgrad_core.errors import AltgradError
from altgrad_core.experiments.config import load_experiment, load_run
from altgrad_core.plugins import Plugins

Errors = Callable[..., list[str]]
RUN = '\n[[run]]\nname = "a"\n'
KEYS = "alerts, checkpoint, data, launcher, model, probes, recipe, seed, train"
TRAIN = (
    "accumulate, batch_size, eval_batches, eval_every, grad_clip, learning_rate, log_every, min_learning_rate, "
    "optimizer, steps, warmup_steps, weight_decay"
)
FOLDER = "expected a name that can be a folder (letters, digits, '.', '_', '+', '-'; no '.' or '-' in front)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[defaults]\nseed = true", "2:1: defaults.seed: expected an integer, got true"),
        ("[defaults]\nseed = -1", "2:1: defaults.seed: must be >= 0, got -1"),
        ("[defaults.train]\nsteps = 12.7", "2:1: defaults.train.steps: expected an integer, got 12.7"),
        ('[defaults.train]\nsteps = "12"', '2:1: defaults.train.steps: expected an integer, got "12"'),
        ("[defaults.train]\nsteps = 0", "2:1: defaults.train.steps: must be >= 1, got 0"),
        ("[defaults.train]\nsteps = [1]", "2:1: defaults.train.steps: expected an integer, got [1]"),
        ("[defaults.train]\nsteps = 99999999999999999999",
         "2:1: defaults.train.steps: expected an integer of 64 bits, got one beyond"),
        ("[defaults.train]\nlearning_rate = true", "2:1: defaults.train.learning_rate: expected a number, got true"),
        ("[defaults.train]\nmin_learning_rate = -1.0",
         "2:1: defaults.train.min_learning_rate: must be >= 0, got -1.0"),
        ("[defaults.train]\nstep = 5", f"2:1: defaults.train.step: Unknown key 'step'. Did you mean 'steps'? Known: {TRAIN}."),
        ("[defaults]\ntrain = 5", "2:1: defaults.train: expected a table, got 5"),
        ("[defaults]\nsed = 5", f"2:1: defaults.sed: Unknown key 'sed'. Did you mean 'seed'? Known: {KEYS}."),
        ("defaults = 5", "1:1: defaults: expected a table, got 5"),
        ("[default]", "1:2: default: Unknown key 'default'. Did you mean 'defaults'? Known: defaults, experiment, run, sink."),
        ('[defaults.model]\nkind = "gtp"', "2:1: defaults.model.kind: Unknown model 'gtp'. Did you mean 'gpt'? Known: gpt, tiny."),
        ("[defaults]\nmodel = 5", "2:1: defaults.model: expected the name of a model or a table with 'kind', got 5"),
        ("[defaults.model]\nkind = 5", "2:1: defaults.model.kind: expected the name of a model, got 5"),
        ("[defaults.model]\nwidt = 5",
         "2:1: defaults.model.widt: Unknown key 'widt'. Did you mean 'width'? Known: block_size, dropout, width."),
        ("[defaults.model]\ndropout = 1", "2:1: defaults.model.dropout: must be < 1, got 1.0"),
        ('[defaults.data]\nshuffle = "yes"', '2:1: defaults.data.shuffle: expected true or false, got "yes"'),
        ("[defaults.data]\npath = 5", "2:1: defaults.data.path: expected a text in quotes, got 5"),
        ("[defaults.data]\nsplits = [0.5, true]", "2:16: defaults.data.splits[1]: expected a number, got true"),
        ('[defaults.data]\nsplits = "0.5"', '2:1: defaults.data.splits: expected an array, got "0.5"'),
        ('[defaults.data]\nkind = "needy"', "1:11: defaults.data.path: missing; it has no default"),
        ('[defaults]\ndata = "needy"', "2:1: defaults.data.path: missing; it has no default"),
        ('[defaults.train]\noptimizer = "adam"',
         "2:1: defaults.train.optimizer: Unknown optimizer 'adam'. Did you mean 'adamw'? Known: adamw, sgd."),
        ('[defaults.train.optimizer]\nkind = "sgd"\nbeta1 = 0.9', "3:1: defaults.train.optimizer.beta1: Unknown key 'beta1'. Known: none."),
        ('[defaults]\ncheckpoint = { backend = { kind = "s3" } }',
         "2:28: defaults.checkpoint.backend.kind: Unknown checkpoint 's3'. Known: local."),
        ('[defaults]\nlauncher = "slurm"', "2:1: defaults.launcher: Unknown launcher 'slurm'. Known: inline, process."),
        ("[defaults.probes]\nshadow = { every = 0 }", "2:12: defaults.probes.shadow.every: must be >= 1, got 0"),
        ("[defaults.probes]\nshadow = 5", "2:1: defaults.probes.shadow: expected a table, got 5"),
        ("[defaults.probes]\nshadows = true",
         "2:1: defaults.probes.shadows: Unknown probe 'shadows'. Did you mean 'shadow'? Known: gradients, rank, shadow."),
        ("[defaults]\nprobes = true", "2:1: defaults.probes: expected a table, got true"),
        ("[defaults.alerts]\noverflow = -0.5",
         "2:1: defaults.alerts.overflow: expected a fraction from 0 to below 1 (0.5 is 50 %), got -0.5; false switches the alert off"),
        ("[defaults.alerts]\nunderflow = { threshold = 5 }",
         "2:15: defaults.alerts.underflow.threshold: expected a fraction from 0 to below 1 (0.5 is 50 %), got 5.0; false switches the alert off"),
        ("[defaults.alerts]\nbit_stall = nan",
         "2:1: defaults.alerts.bit_stall: expected a finite number, got nan"),
        ("[defaults.alerts]\nloss_spike = inf", "2:1: defaults.alerts.loss_spike: expected a finite number, got inf"),
        ("[defaults.alerts]\ndivergence = { threshold = inf }",
         "2:16: defaults.alerts.divergence.threshold: expected a finite number, got inf"),
        ("[defaults.alerts]\nnon_finite = inf", "2:1: defaults.alerts.non_finite: expected a finite number, got inf"),
        ("[defaults.train]\nlearning_rate = inf", "2:1: defaults.train.learning_rate: expected a finite number, got inf"),
        ("[defaults.train]\nlearning_rate = nan", "2:1: defaults.train.learning_rate: expected a finite number, got nan"),
        ("[defaults.train]\nweight_decay = -inf", "2:1: defaults.train.weight_decay: expected a finite number, got -inf"),
        ("[defaults.train]\ngrad_clip = 1e999", "2:1: defaults.train.grad_clip: expected a finite number, got inf"),
        ("[defaults.alerts]\nnan_patience = 2.5", "2:1: defaults.alerts.nan_patience: expected an integer, got 2.5"),
        ("[defaults.alerts]\nnan = 0", "2:1: defaults.alerts.nan: must be >= 1, got 0"),
        ("[defaults.alerts]\nnan_patience = { threshold = 3 }",
         "2:18: defaults.alerts.nan_patience.threshold: Unknown key 'threshold'. Known: action, patience."),
        ('[defaults.alerts]\nloss_spike = "off"',
         '2:1: defaults.alerts.loss_spike: expected a number (its threshold), a table, true or false, got "off"'),
        ("[defaults.alerts]\nloss_spike = [8]",
         "2:1: defaults.alerts.loss_spike: expected a number (its threshold), a table, true or false, got [8]"),
        ('[defaults.alerts]\nnan = "stop"',
         '2:1: defaults.alerts.nan: expected a number (its patience), a table, true or false, got "stop"'),
        ('[defaults.alerts]\ndivergence = { action = "halt" }',
         '2:16: defaults.alerts.divergence.action: expected one of "log", "checkpoint", "stop", got "halt"'),
        ('[defaults.alerts.overflow]\naction = "stopp"',
         '2:1: defaults.alerts.overflow.action: expected one of "log", "checkpoint", "stop", got "stopp". Did you mean \'stop\'?'),
        ("[defaults.alerts]\nloss_spike = { window = 10 }",
         "2:1: defaults.alerts.loss_spike.min_losses: expected at most the window of 10, got 20; give both"),
        ("[defaults.alerts]\nloss_spike = { window = 100000 }",
         "2:16: defaults.alerts.loss_spike.window: must be <= 10000, got 100000"),
        ("[defaults.alerts]\noverflows = 0.5",
         "2:1: defaults.alerts.overflows: Unknown key 'overflows'. Did you mean 'overflow'? Known: bit_stall, dead_neurons, "
         "divergence, loss_spike, nan, nan_patience, non_finite, overflow, underflow."),
        ("[defaults]\nalerts = 0.5", "2:1: defaults.alerts: expected a table, got 0.5"),
        ('[[sink]]\nkind = "wandb"', "2:1: sink[0].kind: Unknown sink 'wandb'. Known: csv, tracker."),
        ('[[sink]]\nproject = "x"', '1:3: sink[0].kind: missing; expected one of "csv", "tracker"'),
        ('[[sink]]\nkind = "csv"\n[[sink]]\nkind = "csv"', "3:3: sink[1]: is sink[0] once more. Take one of them out"),
        ('[[sink]]\nkind = "csv"\n[[sink]]\nkind = "tracker"\ntags = [1]', "5:9: sink[1].tags[0]: expected a text in quotes, got 1"),
        ("sink = 3", "1:1: sink: expected an array, got 3"),
        ('[experiment]\nname = "a/b"', f'2:1: experiment.name: {FOLDER}, got "a/b"'),
        ("[experiment]\nname = 5", "2:1: experiment.name: expected a text in quotes, got 5"),
        ('[experiment]\nname = "x"\ntitle = ""', "3:1: experiment.title: Unknown key 'title'. Known: name."),
        ("[experiment]", '1:2: experiment.name: missing; expected a name for the experiment, such as name = "first"'),
    ],
)  # fmt: skip
def test_golden(errors: Errors, text: str, expected: str) -> None:
    assert errors(text + RUN) == [f"experiments.toml:{expected}"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1:1: run: expected one or more [[run]] tables"),
        ("[run]\nname = 'a'", "1:2: run: expected one or more [[run]] tables"),
        ("run = [1]", "1:1: run: expected one or more [[run]] tables"),
        ("[[run]]\nseed = 1", '1:3: run[0].name: expected the run\'s name, such as name = "e5m2"; missing'),
        ("[[run]]\nname = 1", '2:1: run[0].name: expected the run\'s name, such as name = "e5m2"; got 1'),
        ("[[run]]\nname = '../a'", f'2:1: run["../a"].name: {FOLDER}, got "../a"'),
        ("[[run]]\nname = '.a'", f'2:1: run[".a"].name: {FOLDER}, got ".a"'),
        ("[[run]]\nname = 'a'\nrecipes = 'x'",
         "3:1: run[\"a\"].recipes: Unknown key 'recipes'. Did you mean 'recipe'? "
         "Known: alerts, baseline, checkpoint, data, launcher, matrix, model, name, probes, recipe, seed, train."),
        ("[[run]]\nname = 'a'\n[[run]]\nname = 'A'", "4:1: run[\"A\"].name: another run is called 'A' already"),
        ("[[run]]\nname = 'a'\nbaseline = true\n[[run]]\nname = 'b'\nbaseline = true",
         "6:1: run[\"b\"].baseline: 'b' is a second baseline beside 'a'; expected one at most"),
        ("[[run]]\nname = 'a'\nbaseline = 1", '3:1: run["a"].baseline: expected true or false, got 1'),
        ("[[run]]\nname = 'a'\n[run.train]\nsteps = 'x'", '4:1: run["a"].train.steps: expected an integer, got "x"'),
        ("[[run]]\nname = 'a'\ntrain.steps = 'x'", '3:7: run["a"].train.steps: expected an integer, got "x"'),
        ("[[run]]\nname = 'a{x}'", '2:1: run["a{x}"].name: a placeholder needs a matrix: matrix = { recipe = [...] }'),
    ],
)  # fmt: skip
def test_golden_runs(errors: Errors, text: str, expected: str) -> None:
    assert errors(text) == [f"experiments.toml:{expected}"]


def test_all_at_once_in_file_order_each_once(errors: Errors) -> None:
    text = """[defaults]
seed = 1.5
[defaults.train]
steps = 0
stepss = 3
batch_size = "x"
[[run]]
name = "a"
recipe = "nope"
[[run]]
name = "b"
train = { steps = 5, warmup_steps = -1 }
[[sink]]
kind = "nope"
"""
    lines = errors(text, "train.batch=3")
    assert [line.partition(": ")[0] for line in lines] == [
        "experiments.toml:2:1", "experiments.toml:4:1", "experiments.toml:5:1", "experiments.toml:6:1",
        "experiments.toml:9:1", "experiments.toml:12:22", "experiments.toml:14:1", "--set train.batch=3",
    ]  # fmt: skip


def test_a_sink_is_no_setting(errors: Errors) -> None:
    (line,) = errors(RUN, 'sink=[{ kind = "csv" }]')
    assert line.endswith("cannot be set here; add a table [[sink]] to the file, for all of its runs.")


def test_a_field_that_is_wrong_does_not_hide_the_rule_of_another(errors: Errors) -> None:
    lines = errors("[defaults.model]\nwidth = 0\nblock_size = 'x'" + RUN)
    assert lines == [
        "experiments.toml:2:1: defaults.model.width: must be >= 1, got 0",
        'experiments.toml:3:1: defaults.model.block_size: expected an integer, got "x"',
    ]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[defaults\n", "1:10"),
        ("a = \n", "1:5"),
        ("[defaults]\nx = 1\nx = 2\n", "3:6"),
        ("x = " + "9" * 5000, "1:1"),
        ("x = " + "[" * 5000, "1:1"),
    ],
)
def test_syntax(errors: Errors, text: str, place: str) -> None:
    assert errors(text)[0].startswith(f"experiments.toml:{place}: ")


def test_no_file(tmp_path: Path, plugins: Plugins) -> None:
    with pytest.raises(AltgradError) as caught:
        load_experiment(tmp_path / "no.toml", plugins=plugins)
    text = str(caught.value)
    assert text.startswith(
        f"There is no file {tmp_path / 'no.toml'}. Give the path of an experiment file, or make one;"
    )
    (tmp_path / "no.toml").write_text(text.partition("\n\n")[2])  # the advice works
    assert [run.name for run in load_experiment(tmp_path / "no.toml", plugins=plugins).runs] == ["bf16", "e5m2"]


def test_a_folder_and_other_bytes(tmp_path: Path, plugins: Plugins) -> None:
    with pytest.raises(AltgradError, match=r"Could not read .*: Is a directory"):
        load_experiment(tmp_path, plugins=plugins)
    (tmp_path / "x.toml").write_bytes(b"a = 1\xff")
    with pytest.raises(AltgradError, match="expected UTF-8 text, got other bytes at offset 5"):
        load_experiment(tmp_path / "x.toml", plugins=plugins)
    with pytest.raises(AltgradError, match=r"no\.toml\. It is written by 'altgrad run'"):
        load_run(tmp_path / "no.toml", plugins=plugins)
