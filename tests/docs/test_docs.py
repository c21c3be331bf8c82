"""What README and pages say holds, where it takes more than looking at a block: plugins, metrics, alerts, keys."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import tomli
import torch
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def test_the_configuration_page_is_that_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("make_configuration", ROOT / "docs" / "make_configuration.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == module.page(), "run: python docs/make_configuration.py"


def test_the_plugin_of_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Laid down as the page says, seen through its entry point, and used in a training."""
    page = ROOT / "docs" / "plugins.md"
    project, code = tomli.loads(blocks(page, "toml")[0]), blocks(page, "python")[0]
    package = tmp_path / "altgrad_format_myfp8"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "plugin.py").write_text(code)
    info = tmp_path / "altgrad_format_myfp8-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: altgrad-format-myfp8\nVersion: 0.1.0\n")
    ((name, value),) = project["project"]["entry-points"]["altgrad"].items()
    (info / "entry_points.txt").write_text(f"[altgrad]\n{name} = {value}\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "ALTGRAD_CACHE": str(tmp_path / "cache")}

    def altgrad(*arguments: str) -> str:
        command = [sys.executable, "-m", "altgrad_core.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "format myfp8" in altgrad("plugins", "myfp8")
    assert "bias           9" in altgrad("formats", "myfp8")
    (line,) = [line for line in blocks(page, "sh")[1].splitlines() if line.startswith("altgrad run")]
    arguments = shlex.split(line)[1:]
    (tmp_path / "mine.toml").write_text(blocks(page, "toml")[1])
    altgrad(*arguments, "--only", "myfp8", "--set", "train.steps=5", "--set", "train.eval_batches=1")
    import altgrad_core

    run = altgrad_core.load_run(tmp_path / "runs" / "mine" / "myfp8")
    assert run.config["recipe"]["weight"]["format"] == "myfp8"
    assert run.metrics("weight_norm/token_embedding.weight")[0] == [1, 5]


def test_the_readme_experiment_loads(tmp_path: Path) -> None:
    from altgrad_core.experiments.config import load_experiment

    (text,) = blocks(ROOT / "README.md", "toml")
    (tmp_path / "experiments.toml").write_text(text)
    names = [run.name for run in load_experiment(tmp_path / "experiments.toml").runs]
    assert len(names) == 8
    assert {"bf16", "e3m4-delayed", "careful"} <= set(names)


def test_the_readme_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks run as they stand, one after the other, on a short version of the default experiment."""
    import altgrad_core as altgrad

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALTGRAD_CACHE", str(tmp_path / "cache"))
    text = (ROOT / "experiments.toml").read_text()
    for long, short in (
        ("steps = 300", "steps = 2"),
        ("eval_batches = 10", "eval_batches = 1"),
        ("n_layer = 4", "n_layer = 1"),
    ):
        assert long in text
        text = text.replace(long, short)
    Path("experiments.toml").write_text(text)
    code = "\n".join(blocks(ROOT / "README.md", "python"))
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert torch.equal(names["q"], altgrad.quantize(names["x"], "e4m3fn", scale=0.5))
    assert not torch.equal(names["noisy"], names["blocks"])
    assert [run.status for run in names["results"]] == ["done"] * 3
    assert names["steps"] == [1]


def test_every_command_in_the_readme_exists() -> None:
    from altgrad_core.cli.main import app

    said = set(re.findall(r"^\| `altgrad ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    registered = {command.name or command.callback.__name__ for command in app.registered_commands}
    registered |= {group.name for group in app.registered_groups}
    assert said == registered
    for command in sorted(registered):
        done = CliRunner().invoke(app, [command, "--help"])
        assert done.exit_code == 0
        assert "Usage" in done.output


def test_every_metric_of_a_run_is_defined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import altgrad_core as altgrad

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALTGRAD_CACHE", str(tmp_path / "cache"))
    overrides = [
        "train.steps=2",
        "probes.gradients.window=1",
        "model.n_layer=1",
        "train.eval_batches=1",
        'launcher="inline"',
    ]
    (run,) = altgrad.run(ROOT / "experiments.toml", overrides=overrides, only=["e5m2"], runs=tmp_path / "runs")
    measured = {n if n.split("/")[0] in ("train", "val") else n.split("/")[0] for n in run.metric_names()}
    page, histograms = (ROOT / "docs" / "metrics.md").read_text().split("## Probe `histograms`")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    defined = {name.split("/<")[0] for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert measured == defined
    (cast, *_) = run.histograms[1].values()
    rows = [line.split("|")[1] for line in histograms.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`([^`]+)`", row)} == set(attrs.asdict(cast)) - {"range"}


def test_the_alert_table_is_that_of_the_code() -> None:
    from altgrad_core.training.config import ALERTS, AlertConfig

    page = (ROOT / "docs" / "alerts.md").read_text()
    rows = {}
    for line in page.splitlines():
        if line.startswith("| `") and line.count("|") == 7:
            name, _, threshold, patience, action, _ = (cell.strip() for cell in line.strip("|").split("|"))
            rows[name.strip("`")] = (threshold.split()[0], patience.split()[0], action.strip("`"))
    assert list(rows) == list(ALERTS)
    for alert in ALERTS:
        rule = AlertConfig.default(alert)
        threshold = f"{rule.threshold:g}" if hasattr(rule, "threshold") else "-"
        assert rows[alert] == (threshold, str(rule.patience), rule.action), alert
