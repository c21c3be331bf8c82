"""``altgrad check`` and ``altgrad plugins``: what they print."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from altgrad_core.cli.check import check, epochs_text, recipe_text
from altgrad_core.cli.plugins import plugins
from altgrad_core.errors import AltgradError
from altgrad_core.experiments.config import load_experiment
from altgrad_core.experiments.plan import measure, needed, tokens_per_step
from altgrad_core.plugins import installed
from altgrad_core.recipes.resolve import resolve_recipe
from altgrad_core.training.data import Workspace

TEXT = """
[experiment]
name = "small"
[defaults]
model = { n_layer = 1, n_head = 2, n_embd = 32, block_size = 16 }
data.max_bytes = 100_000
train = { steps = 3, batch_size = 4, accumulate = 2 }
[[run]]
name = "bf16"
baseline = true
[[run]]
name = "mixed"
[run.recipe]
base = "hybrid"
overrides = [{ match = "lm_head", recipe = "bf16" }, { match = "nothing", recipe = "bf16" }]
[run.train]
optimizer = { kind = "adamw", beta1 = 0.8 }
[[sink]]
kind = "csv"
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("check") / "experiments.toml"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def _invoke(*arguments: str, **environment: str) -> Result:
    app = typer.Typer()
    app.command()(check)
    app.command()(plugins)
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120", **environment}, catch_exceptions=False)


def test_sizes(file: Path, cache: Path) -> None:
    run = load_experiment(file).runs[1]
    data = installed().get("dataset", "stdlib").value(run.data.options, Workspace(cache=cache))
    size = measure(run, installed(), data)
    assert tokens_per_step(run) == 4 * 2 * 16
    real = installed().get("model", "gpt").value(run.model.options, data.vocab_size)
    assert size.parameters == sum(p.numel() for p in real.parameters())
    # FP32 weights and gradients, and two FP32 moments
    assert size.state_bytes == 16 * size.parameters
    assert size.linear_layers == 5
    assert size.cast_layers == 4
    assert size.unused_overrides == ("nothing",)
    assert (size.train_tokens, size.vocab_size) == (len(data.train), 257)


def test_the_plan(file: Path, cache: Path) -> None:
    done = _invoke("check", str(file), "--set", "mixed:train.steps=1000", ALTGRAD_CACHE=str(cache))
    assert done.exit_code == 0
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert f"{file}: experiment small, runs: 2, baseline bf16" in lines
    rows = {line.split()[0]: line for line in lines if line.startswith(("bf16 *", "mixed"))}
    assert rows["bf16"].startswith("bf16 * bf16 ")
    assert " 3 128 384 " in rows["bf16"]
    assert " 1,000 128 128,000 " in rows["mixed"]
    assert "Recipe bf16: no casts, the rest in bf16; casts 0 of 5 linear layers" in lines
    assert "Warning: mixed: the override 'nothing' matches no layer." in lines
    assert any(line.startswith("Plugins: altgrad_gpt (model gpt); altgrad_data (dataset stdlib);") for line in lines)
    assert any("altgrad_csv (sink csv)" in line for line in lines)


def test_without_data_no_torch(file: Path) -> None:
    code = (
        f"import sys; from altgrad_core.cli.check import check; from pathlib import Path; "
        f"check(Path({str(file)!r}), None, True); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "casts" in done.stdout
    assert "linear layers" not in done.stdout


def test_what_is_wrong_is_an_error(file: Path) -> None:
    with pytest.raises(
        AltgradError, match=r"--set train\.stps=3: train\.stps: Unknown key 'stps'\. Did you mean 'steps'"
    ):
        _invoke("check", str(file), "--set", "train.stps=3")


def test_data_that_is_not_there(file: Path, cache: Path) -> None:
    with pytest.raises(AltgradError) as caught:
        _invoke("check", str(file), "--set", 'data={kind="text", path="/no/such/folder"}', ALTGRAD_CACHE=str(cache))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{file} itself is right, but its data is not: ")
    assert lines[-1] == "Mend that, or see the rest of the plan with --no-data."


def test_needed(file: Path) -> None:
    names = {(extension.kind, extension.name) for extension in needed(load_experiment(file), installed())}
    assert {("format", "e4m3fn"), ("format", "e5m2"), ("scaling", "current"), ("sink", "csv")} <= names
    assert ("format", "bf16") not in names


def test_recipe_text() -> None:
    recipe = resolve_recipe({"input": "e4m3fn", "scaling": "none", "overrides": [{"match": "lm_*", "recipe": "bf16"}]})
    assert recipe_text(recipe) == "e4m3fn/-/-: input e4m3fn (none), lm_* as bf16, the rest in bf16"


@pytest.mark.parametrize(("count", "said"), [(0.004, "0.004"), (0.00012, "0.0001"), (0.01, "0.01"), (3.14159, "3.14")])
def test_a_small_part_of_an_epoch_is_not_none(count: float, said: str) -> None:
    assert epochs_text(count) == said


def test_plugins_table_and_one() -> None:
    table = _invoke("plugins").stdout
    for row in installed().rows:
        assert any(line.split()[:4] == [row.name, row.source, row.version, row.status] for line in table.splitlines())
    narrow = _invoke("plugins", COLUMNS="80").stdout.splitlines()
    assert narrow[1].split()[:3] == ["name", "status", "offers,"]
    assert any(
        line.split() == ["altgrad_format_ieee", "ok", "format", "bf16,", "fp16,", "fp32,", "tf32"] for line in narrow
    )
    assert narrow[-1] == "altgrad plugins NAME shows where one is from, and its version."
    one = _invoke("plugins", "altgrad_adamw").stdout.splitlines()
    assert one[1:3] == ["  optimizer adamw", "    beta1: float = 0.9"]
    with pytest.raises(AltgradError, match=r"Unknown plugin 'altgrad_adam'. Did you mean 'altgrad_adamw'"):
        _invoke("plugins", "altgrad_adam")


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ('{ weight_storage = "nvfp4" }', "weight_storage of 'token_embedding.weight' needs scales that are powers of two"),
        ('{ saved_activations = { format = "e5m2", scaling = "delayed" } }', "saved_activations cannot be scaled by"),
        ('{ optimizer_state = { exp_avg = "e5m2", momentum = "e5m2" } }',
         "Unknown tensor of AdamW for recipe.optimizer_state 'momentum'. Known: exp_avg, exp_avg_sq."),
    ],
)  # fmt: skip
def test_a_recipe_that_does_not_go_with_model_or_optimizer(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, said: str
) -> None:
    monkeypatch.setenv("ALTGRAD_CACHE", str(cache))
    path = tmp_path / "experiments.toml"
    path.write_text(TEXT + f'[[run]]\nname = "wrong"\nrecipe = {recipe}\n')
    with pytest.raises(AltgradError, match=re.escape("the run 'wrong' cannot train: " + said)):
        _invoke("check", str(path), ALTGRAD_CACHE=str(cache))


def test_the_example_of_low_precision_states() -> None:
    path = Path(__file__).parents[3] / "examples" / "low_precision_states.toml"
    experiment = load_experiment(path)
    assert [run.name for run in experiment.runs] == [
        "bf16", "weights-nearest_even", "weights-stochastic", "optimizer-nearest_even", "optimizer-stochastic",
        "moments-apart", "activations", "e5m2-pure",
    ]  # fmt: skip
    said = recipe_text(experiment.runs[5].recipe)
    assert 'optimizer_state.exp_avg mxfp8_e5m2 (mx mode="rceil", stochastic)' in said
    assert "optimizer_state.exp_avg_sq binary8p4uf (blockwise " in said
