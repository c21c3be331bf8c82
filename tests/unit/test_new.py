"""``altgrad new``: what it writes loads and is complete, what it refuses it explains; and the packages under examples/."""

from __future__ import annotations

import importlib
import importlib.metadata
import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli
from typer.testing import CliRunner

from altgrad_core.cli.main import app
from altgrad_core.cli.new import KINDS, SPDX
from altgrad_core.errors import AltgradError
from altgrad_core.experiments.config import load_experiment
from altgrad_core.hookspecs import HOOKSPEC_VERSION
from altgrad_core.numerics.cast import quantize
from altgrad_core.plugins import PluginRow, Plugins, installed, load_plugins
from altgrad_core.testing import CheckpointConformance, FormatConformance, ScalingConformance
from altgrad_core.testing.plugincheck import check_extension

ROOT = Path(__file__).parents[2]


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    before = set(sys.modules)
    yield monkeypatch
    for name in set(sys.modules) - before:
        if name.startswith(tuple(f"altgrad_{kind}_" for kind in KINDS)):
            del sys.modules[name]


def new(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, ["new", *map(str, arguments)])
    if isinstance(done.exception, AltgradError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def load(package: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[PluginRow, Plugins]:
    """Load a package by the entry point that its pyproject.toml says."""
    project = tomli.loads((package / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["altgrad"].items()
    monkeypatch.syspath_prepend(str(package))
    entry = importlib.metadata.EntryPoint(name=name, value=value, group="altgrad")
    plugins = load_plugins(modules=[], entry_points=[entry], disabled=[])
    return plugins.rows[0], plugins


@pytest.mark.parametrize("kind", KINDS)
def test_a_package(kind: str, tmp_path: Path, importable: pytest.MonkeyPatch) -> None:
    importable.setattr(socket, "socket", None)  # offline
    said = new(kind, "my_own", "--in", tmp_path)
    package = tmp_path / f"altgrad-{kind}-my-own"
    files = {path.name for path in package.iterdir()}
    module = f"altgrad_{kind}_my_own.py"
    assert files == {"pyproject.toml", "README.md", "LICENSE", "experiment.toml", "test_my_own.py", module}
    project = tomli.loads((package / "pyproject.toml").read_text())["project"]
    assert (project["name"], project["license"], project["dependencies"]) == (package.name, "Apache-2.0", ["altgrad"])
    row, plugins = load(package, importable)
    assert (row.status, row.reason, row.note, row.hookspec) == ("ok", "", "", HOOKSPEC_VERSION)
    assert row.offers == {kind: ["my_own"]}
    assert plugins.get(kind, "my_own").name == "my_own"
    assert "my_own" in (package / "experiment.toml").read_text()
    assert f"pip install -e {package}" in said
    assert f"altgrad run {package}/experiment.toml" in said
    for path in package.iterdir():
        assert "{{" not in path.read_text()
        assert "{%" not in path.read_text()


@pytest.mark.parametrize("license", SPDX)
def test_licences(license: str, tmp_path: Path) -> None:
    new("sink", "x", "--in", tmp_path, "--license", license, "--author", "Ada L.")
    package = tmp_path / "altgrad-sink-x"
    project = tomli.loads((package / "pyproject.toml").read_text())["project"]
    assert project.get("license", "") == SPDX[license]
    assert (package / "LICENSE").exists() == (license != "none")
    if license in ("mit", "bsd-3-clause"):
        assert "Ada L." in (package / "LICENSE").read_text()
    if license == "apache-2.0":
        assert (package / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["format", "My"], "lower-case letters and digits.*got 'My'"),
        (["format", "8bit"], "begins with a letter"),
        (["format", "../x"], "got '../x'"),
        (["format", "e5m2"], "'e5m2' is already registered by 'altgrad_format_ocp'"),
        (["format", "e6m9"], "already means a format"),
        (["format", "hybrid"], "'hybrid' is the name of a recipe"),
        (["scaling", "current"], "already registered by 'altgrad_scaling'"),
        (["probe", "altgrad_gpt"], "A plugin called 'altgrad_gpt' is installed already"),
        (["sink", "x", "--license", "gpl"], "Unknown license 'gpl'"),
        (["sink", "there"], "is there already; nothing was written"),
        (["experiment", "a/b"], "got 'a/b'"),
        (["experiment", "there"], "is there already; nothing was written"),
        (["experiment", "x", "--recipe", "bf16"], "The file's baseline is 'bf16'"),
        (["experiment", "x", "--recipe", "e5m3n"], "Unknown format 'e5m3n'"),
    ],
)
def test_what_is_refused(arguments: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "altgrad-sink-there").mkdir()
    (tmp_path / "there.toml").write_text("mine")
    with pytest.raises(AltgradError, match=said):
        new(*arguments, "--in", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["altgrad-sink-there", "there.toml"]
    assert (tmp_path / "there.toml").read_text() == "mine"


def test_the_commands_can_be_pasted(tmp_path: Path) -> None:
    said = new("probe", "x", "--in", tmp_path / "my plugins")
    commands = [shlex.split(line) for line in said.partition("Next:\n")[2].splitlines()]
    assert commands[0] == ["pip", "install", "-e", str(tmp_path / "my plugins" / "altgrad-probe-x")]


@pytest.mark.parametrize("recipe", ["e4m3fn", "hybrid"])
def test_an_experiment(recipe: str, tmp_path: Path) -> None:
    new("experiment", "first", "--recipe", recipe, "--in", tmp_path / "deep")
    experiment = load_experiment(tmp_path / "deep" / "first.toml")
    assert [run.name for run in experiment.runs] == ["bf16", recipe]
    assert experiment.baseline.name == "bf16"
    said = (tmp_path / "deep" / "first.toml").read_text().replace("# ", "").replace("#", "")
    assert "altgrad run first.toml" in said


@pytest.mark.parametrize("package", sorted(ROOT.glob("examples/altgrad-*")), ids=lambda path: path.name)
def test_the_examples(package: Path, importable: pytest.MonkeyPatch) -> None:
    row, plugins = load(package, importable)
    if package.name == "altgrad-format-broken":
        assert row.status == "broken"
        assert "2^bits of them, up to 16 bits; got 5" in row.reason
        return
    assert (row.status, row.note) == ("ok", "")
    (((kind, name), extension),) = plugins.extensions.items()
    assert name in (package / "experiment.toml").read_text()
    if kind == "format":
        import torch

        assert quantize(torch.ones(3), extension.value).tolist() == [min(1.0, extension.value.max_finite)] * 3


def check(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["plugins", "check", *arguments])
    if isinstance(done.exception, AltgradError):
        return done.exception.exit_status, str(done.exception)
    return done.exit_code, done.output


def test_plugins_check() -> None:
    status, said = check("scaling/mx")
    assert (status, "scaling/mx: 14 passed" in said) == (0, True), said
    status, said = check("scaling/mx", "--set", 'mode = "floor"')
    assert (status, "13 passed, 1 failed" in said) == (1, True), said
    status, said = check("scaling/mx", "--set", 'mode = "floor"', "--cannot", "fits=it may clamp")
    assert (status, "13 passed, 1 skipped" in said) == (0, True), said


def test_plugins_check_does_all_of_it_or_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k axis")
    assert "scaling/none: 11 passed, 3 skipped" in check("scaling/none")[1]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ScalingConformance, "test_same_again", interrupt)
    with pytest.raises(KeyboardInterrupt):
        check_extension(installed().get("scaling", "none"), {}, {})


@pytest.mark.parametrize(
    ("suite", "named"),
    [
        (FormatConformance, {"format": "myfp8"}),
        (ScalingConformance, {"kind": "myfp8"}),
        (CheckpointConformance, {"kind": "myfp8"}),
    ],
)
def test_a_suite_of_what_is_not_installed_says_so_once(suite: type, named: dict[str, str]) -> None:
    with pytest.raises(AltgradError, match=r"TestMyfp8: Unknown .* 'myfp8'.* install it first: pip install -e \."):
        type("TestMyfp8", (suite,), named)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Which one"),
        (["e5m2"], "altgrad plugins check format/e5m2"),
        (["altgrad_scalin"], "Unknown plugin 'altgrad_scalin'. Did you mean 'altgrad_scaling'"),
        (["formats/e5m2"], "Unknown kind of plugin 'formats'. Did you mean 'format'"),
        (["altgrad_gpt"], "Nothing of 'altgrad_gpt' was checked"),
        (["scaling/static"], "Nothing of 'scaling/static' was checked"),
        (["scaling/mx", "--set", "mode"], "Expected --set KEY=VALUE"),
        (["scaling/mx", "--cannot", "fits"], "Expected --cannot CLAUSE=REASON"),
        (["scaling/mx", "--cannot", "fit=x"], "Unknown clause 'fit'. Did you mean 'fits'"),
    ],
)
def test_plugins_check_explains(arguments: list[str], said: str) -> None:
    status, text = check(*arguments)
    assert status == 2
    assert said in text


def test_plugins_check_without_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytest", None)
    for name in [name for name in sys.modules if name.startswith("altgrad_core.testing.plugincheck")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("altgrad_core.testing.plugincheck", raising=False)
    assert check("format/e5m2") == (2, "The conformance suites need the package 'pytest', which is not installed: "
                                       "pip install 'altgrad[test]'")  # fmt: skip
