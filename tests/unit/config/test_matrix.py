"""Matrices: product in file order, names, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from altgrad_core.experiments.schema import Experiment

FOLDER = "expected a name that can be a folder (letters, digits, '.', '_', '+', '-'; no '.' or '-' in front)"


def test_product_in_file_order(load: Callable[..., Experiment]) -> None:
    runs = load("""
[[run]]
name = "first"
[[run]]
name = "{recipe}-{scaling}"
matrix = { recipe = ["e4m3fn", "e3m4"], "recipe.scaling" = ["current", "delayed"] }
[[run]]
name = "last"
""").runs
    assert [run.name for run in runs] == [
        "first", "e4m3fn-current", "e4m3fn-delayed", "e3m4-current", "e3m4-delayed", "last",
    ]  # fmt: skip
    assert [cast.scaling.kind for cast in runs[4].recipe.casts().values()] == ["delayed"] * 3
    assert {cast.format for cast in runs[4].recipe.casts().values()} == {"e3m4"}


def test_the_order_of_keys_does_not_matter_for_what_they_change(load: Callable[..., Experiment]) -> None:
    runs = load("""
[[run]]
name = "{recipe}-{scaling}"
matrix = { "recipe.scaling" = ["current", "none"], recipe = ["e5m2"] }
""").runs
    assert [run.name for run in runs] == ["e5m2-current", "e5m2-none"]
    assert {cast.scaling.kind for cast in runs[1].recipe.casts().values()} == {"none"}


def test_values_of_all_kinds_and_full_keys(load: Callable[..., Experiment]) -> None:
    runs = load("""
[[run]]
name = "lr{train.learning_rate}-s{seed}-{shuffle}-{scaling}"
recipe = "e5m2"
[run.matrix]
train.learning_rate = [1e-3, 1]
seed = [7]
data.shuffle = [false]
recipe.scaling = [{ kind = "delayed", history = 2 }]
""").runs
    assert [run.name for run in runs] == ["lr0.001-s7-false-delayed", "lr1-s7-false-delayed"]
    assert [run.train.learning_rate for run in runs] == [0.001, 1.0]
    assert runs[0].recipe.casts()["input"].scaling.options.history == 2
    assert runs[0].data.options.shuffle is False


@pytest.mark.parametrize(
    ("matrix", "name", "expected"),
    [
        ("{}", "a", '3:1: run["a"].matrix: expected one or more keys with arrays of values, got an empty table'),
        ("5", "a", '3:1: run["a"].matrix: expected a table, got 5'),
        ("{ seed = 5 }", "{seed}", '3:12: run["{seed}"].matrix.seed: expected an array of one or more values, got 5'),
        ("{ seed = [] }", "{seed}", '3:12: run["{seed}"].matrix.seed: expected an array of one or more values, got []'),
        ("{ baseline = [true] }", "a", "3:12: run[\"a\"].matrix.baseline: 'baseline' cannot be in a matrix"),
        ("{ sed = [1] }", "{sed}",
         "3:12: run[\"{sed}\"].matrix.sed: Unknown key 'sed'. Did you mean 'seed'? Known: alerts, baseline, checkpoint, "
         "data, launcher, model, probes, recipe, seed, train."),
        ('{ "train.steps" = [1, "x"] }', "{steps}",
         '3:12: run["{steps}"].matrix."train.steps": expected an integer, got "x"'),
        ('{ seed = [1], "train.steps" = [2] }', "{sed}",
         "2:1: run[\"{sed}\"].name: Unknown placeholder 'sed'. Did you mean 'seed'? Known: seed, steps, train.steps."),
        ('{ "model.width" = [1], "data.width" = [2] }', "{width}",
         "2:1: run[\"{width}\"].name: Unknown placeholder 'width'. Did you mean 'data.width'? "
         "Known: data.width, model.width."),
        ("{ seed = [1, 2] }", "a",
         "2:1: run[\"a\"].name: several cells of the matrix are called 'a'; put a placeholder for each key in the name"),
        ("{ probes = [{ shadow = false }] }", "{probes}",
         '3:12: run["{probes}"].matrix.probes: { shadow = false } cannot stand in a name; leave {probes} out of it'),
        ('{ "data.path" = ["a/b"] }', "{path}", f'2:1: run["{{path}}"].name: {FOLDER}, got "a/b"'),
        ('{ "train.steps" = [1], train = { steps = [2] } }', "{steps}",
         '3:43: run["{steps}"].matrix.train.steps: the key train.steps is in the matrix twice'),
        ('{ "recipe.scaling" = ["curent"] }', "{scaling}",
         '3:12: run["{scaling}"].matrix."recipe.scaling": Unknown scaling \'curent\'. Did you mean \'current\'? '
         "Known: current, delayed, mx, none, nvfp4."),
    ],
)  # fmt: skip
def test_errors(errors: Callable[..., list[str]], matrix: str, name: str, expected: str) -> None:
    recipe = 'recipe = "e5m2"\n' if "scaling" in matrix else ""
    lines = errors(f'[[run]]\nname = "{name}"\nmatrix = {matrix}\n{recipe}')
    assert lines == [f"experiments.toml:{expected}"]


def test_a_cell_named_like_another_run(errors: Callable[..., list[str]]) -> None:
    lines = errors('[[run]]\nname = "s1"\n[[run]]\nname = "s{seed}"\nmatrix = { seed = [1, 2] }')
    assert lines == ["experiments.toml:4:1: run[\"s{seed}\"].name: another run is called 's1' already"]


def test_only_one_cell_can_be_the_baseline(errors: Callable[..., list[str]]) -> None:
    lines = errors('[[run]]\nname = "s{seed}"\nmatrix = { seed = [1, 2] }\nbaseline = true')
    assert lines == [
        "experiments.toml:4:1: run[\"s{seed}\"].baseline: 's2' is a second baseline beside 's1'; expected one at most"
    ]
