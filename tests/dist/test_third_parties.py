"""Plugins of third parties: installed by pip into a new environment, held to the suites, used in a training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from environments import Environment

from altgrad_core.cli.new import KINDS

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/*/pyproject.toml"))
WORKING = [path for path in EXAMPLES if path.name != "altgrad-format-broken"]
SHORT = ["--set", "train.steps=4", "--set", "train.eval_batches=1", "--set", "model.n_layer=1", "--set", "model.n_embd=32"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(make_environment: Callable[[], Environment], wheel: Path) -> Environment:
    """All example packages are installed, the broken one too."""
    made = make_environment()
    made.run("pip", "install", wheel)
    for example in EXAMPLES:
        made.run("pip", "install", shutil.copytree(example, made.folder / example.name))
    return made


@pytest.mark.parametrize("example", WORKING, ids=lambda path: path.name)
def test_an_example_keeps_its_suite_and_trains(environment: Environment, example: Path) -> None:
    folder = environment.folder / example.name
    said = environment.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder)
    assert " passed" in said
    assert "failed" not in said
    assert "conformance" in said
    environment.run("altgrad", "run", "experiment.toml", *SHORT, cwd=folder)
    assert len(list(folder.glob("runs/*/report.html"))) == 1
    for events in folder.glob("runs/*/*/events.jsonl"):
        status = [e for e in map(json.loads, events.read_text().splitlines()) if e["event"] == "status"]
        assert status[-1]["status"] == "done", events
    if "sink" in example.name:
        assert list(folder.glob("runs/*/*/metrics.sqlite"))


def test_the_broken_one_is_named_and_the_rest_works(environment: Environment) -> None:
    said = " ".join(environment.run("altgrad", "plugins", "broken").split())
    assert "altgrad-format-broken: broken (AltgradError: The table of format 'broken' has a value for each code" in said
    assert "log8" in environment.run("altgrad", "formats", "log8")
    said = " ".join(environment.run("altgrad", "formats", "broken", status=2).split())
    assert "Plugins that did not load: broken (broken: AltgradError: The table of format 'broken'" in said


def test_plugins_check_needs_no_test_file(environment: Environment) -> None:
    assert "format/gradient8: 17 passed" in environment.run("altgrad", "plugins", "check", "gradient8")
    assert "scaling/rms: 12 passed, 2 skipped" in environment.run("altgrad", "plugins", "check", "rms")
    assert "offers nothing" in environment.run("altgrad", "plugins", "check", "broken", status=2)


@pytest.mark.parametrize("kind", KINDS)
def test_what_altgrad_new_writes_works_at_once(environment: Environment, kind: str) -> None:
    said = environment.run("altgrad", "new", kind, f"my_{kind}")
    commands = [line.split() for line in said.partition("Next:\n")[2].splitlines()]
    assert [command[:2] for command in commands[:3]][::2] == [["pip", "install"], ["altgrad", "run"]]
    for command in commands:
        environment.run(*command, *(SHORT if command[:2] == ["altgrad", "run"] else []))
    package = environment.folder / f"altgrad-{kind}-my-{kind}"
    assert " passed" in environment.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=package)
    (run,) = (environment.folder / "runs").glob(f"try-my_{kind}/report.html")
    assert run.stat().st_size > 10_000
