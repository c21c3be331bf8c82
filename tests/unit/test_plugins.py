"""Plugins: what is found, and what becomes of those that do not work."""

from __future__ import annotations

import importlib.metadata
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from altgrad_core.errors import AltgradError
from altgrad_core.hookspecs import hookimpl
from altgrad_core.plugins import DEFAULT_PLUGINS, DISABLE_VARIABLE, Plugins, load_plugins


@attrs.frozen
class Distribution:
    name: str = "altgrad-toy"
    version: str = "1.2"


@attrs.frozen
class Entry:
    """Stands for ``importlib.metadata.EntryPoint``."""

    name: str
    load: Callable[[], Any]
    value: str = ""
    dist: Distribution | None = Distribution()


def _entry(name: str, **hooks: Callable[..., None]) -> Entry:
    module = types.ModuleType(name)
    for hook, function in hooks.items():
        setattr(module, f"altgrad_register_{hook}", hookimpl(function))
    return Entry(name, lambda: module)


def _load(*entries: Entry, disabled: tuple[str, ...] = ()) -> Plugins:
    return load_plugins(modules=[], entry_points=entries, disabled=disabled)  # type: ignore[arg-type]


def _sink(name: str = "good") -> Entry:
    return _entry(name, sinks=lambda register: register(name, print))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Return a function that makes an importable plugin package of a text and returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(text: str) -> str:
        folder = tmp_path / "altgrad_made_here"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "plugin.py").write_text(text)
        return folder.name

    yield make
    for name in [name for name in sys.modules if name.startswith("altgrad_made_here")]:
        del sys.modules[name]


def test_the_built_ins_work() -> None:
    plugins = load_plugins(entry_points=[], disabled=[])
    assert [row.name for row in plugins.rows] == list(DEFAULT_PLUGINS)
    lacking = {extension.plugin for extension in plugins.extensions.values() if extension.missing}
    assert [row.name for row in plugins.rows if row.status != "ok"] == [n for n in DEFAULT_PLUGINS if n in lacking]
    assert {row.status for row in plugins.rows} <= {"ok", "missing"}
    assert {row.source for row in plugins.rows} == {"built-in"}
    for kind, name in [("format", "e5m2"), ("recipe", "hybrid"), ("model", "gpt"), ("scaling", "current")]:
        assert plugins.get(kind, name).name == name


def test_a_third_party_comes_through_the_same_door() -> None:
    plugins = _load(_sink("wandb"))
    (row,) = plugins.rows
    assert (row.name, row.source, row.version, row.status) == ("wandb", "altgrad-toy", "1.2", "ok")
    assert row.offers == {"sink": ["wandb"]}
    assert plugins.names("sink") == ["wandb"]
    assert plugins.get("sink", "wandb").value is print
    assert plugins.get("sink", "wandb").plugin == "wandb"


@pytest.mark.parametrize(
    ("text", "status", "reason"),
    [
        ("import altgrad_package_that_nobody_has", "missing",
         "needs the package 'altgrad_package_that_nobody_has', which is not installed"),
        ("import altgrad_package_that_nobody_has.part", "missing",
         "needs the package 'altgrad_package_that_nobody_has', which is not installed"),
        # a fault of the plugin, not of the installation
        ("from altgrad_made_here.nothing import x", "broken",
         "ModuleNotFoundError: No module named 'altgrad_made_here.nothing'"),
        ("from altgrad_core.errors import nothing", "broken", "ImportError: cannot import name 'nothing'"),
        ("1 / 0", "broken", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "broken", "SystemExit: 3"),
        ("def f(:", "broken", "SyntaxError: invalid syntax"),
    ],
)  # fmt: skip
def test_import_fails(package: Callable[[str], str], text: str, status: str, reason: str) -> None:
    plugins = load_plugins(modules=[package(text)], entry_points=[_sink()], disabled=[])  # type: ignore[list-item]
    broken, good = plugins.rows
    assert (broken.status, good.status) == (status, "ok")
    assert broken.reason.startswith(reason)
    assert plugins.names("sink") == ["good"]


def test_a_package_that_is_absent() -> None:
    (row,) = load_plugins(modules=["altgrad_absent"], entry_points=[], disabled=[]).rows
    assert (row.status, row.reason) == ("missing", "needs the package 'altgrad_absent', which is not installed")


def test_what_needs_an_absent_package_is_offered_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the package's name in the working directory is no package."""
    (tmp_path / "altgrad_nobody").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))

    def register_sinks(register: Any) -> None:
        register("there", print, needs="attrs")
        register("absent", print, Model, needs="altgrad_nobody")

    plugins = _load(_entry("toy", sinks=register_sinks))
    (row,) = plugins.rows
    missing = "the sink 'absent' needs the package 'altgrad_nobody', which is not installed: pip install altgrad_nobody"
    assert (row.status, row.reason) == ("missing", missing)
    assert row.offers == {"sink": ["there", "absent"]}
    assert plugins.get("sink", "there").value is print
    assert plugins.get("sink", "absent").missing == missing
    assert plugins.get("sink", "absent").options is Model
    with pytest.raises(AltgradError, match="The sink 'absent' needs the package"):
        plugins.get("sink", "absent").value(Model(), tmp_path)
    assert plugins.hint() == "", "it did load"


@attrs.frozen
class Model:
    block_size: int = 8


@attrs.frozen
class Unresolvable:
    x: NoSuchType = 0  # type: ignore[name-defined] # noqa: F821


@attrs.frozen
class NoBlockSize:
    width: int = 1


def _raises(register: Any) -> None:
    register("half", print)
    raise RuntimeError("half way")


@pytest.mark.parametrize(
    ("hook", "function", "reason"),
    [
        ("snks", lambda register: None, "unknown hook 'altgrad_register_snks'"),
        ("sinks", lambda registr: None, "hook 'altgrad_register_sinks'"),
        ("sinks", lambda register: register("Upper", print), "TypeError: register() of a sink takes a lower-case name"),
        ("sinks", lambda register: register(3, print), "got 3"),
        ("sinks", lambda register: register("x", 5), "TypeError: register('x', build): build must be callable, got 5"),
        ("sinks", lambda register: register("x", print, dict), "must be an attrs class, got <class 'dict'>"),
        ("sinks", lambda register: register("x", print, Unresolvable), "NameError: name 'NoSuchType' is not defined"),
        ("sinks", lambda register: [register("x", print), register("x", print)],
         "ValueError: the sink 'x' is registered twice"),
        ("sinks", _raises, "RuntimeError: half way"),
        ("models", lambda register: register("x", print), "must have a field 'block_size'"),
        ("models", lambda register: register("x", print, NoBlockSize), "must have a field 'block_size'"),
        ("recipes", lambda register: register("x", "e5m2"), "TypeError: register('x', table): table must be a mapping"),
        ("formats", lambda register: register("e5m2"), "TypeError: register(format) takes an altgrad"),
    ],
)  # fmt: skip
def test_registration_is_invalid(hook: str, function: Callable[..., Any], reason: str) -> None:
    """All of a plugin counts, or nothing; the next one works."""
    bad = _entry("bad", **{hook: function})
    plugins = _load(bad, _sink())
    row = plugins.rows[0]
    assert row.status == "broken"
    assert reason in row.reason
    assert row.offers == {}
    assert list(plugins.extensions) == [("sink", "good")]


def test_two_plugins_with_one_name_are_both_named() -> None:
    first = _entry("first", sinks=lambda register: register("same", print))
    second = _entry("second", sinks=lambda register: [register("other", print), register("same", repr)])
    plugins = _load(first, second)
    assert plugins.rows[1].status == "broken"
    assert plugins.rows[1].reason == "the sink 'same' is already registered by 'first'; rename one of them"
    assert list(plugins.extensions) == [("sink", "same")]
    assert plugins.get("sink", "same").value is print
    # kinds have names of their own
    assert _load(first, _entry("p", probes=lambda register: register("same", print))).rows[1].status == "ok"


def test_two_entry_points_with_one_name() -> None:
    plugins = _load(_sink("same"), _sink("same"))
    assert [row.status for row in plugins.rows] == ["ok", "broken"]
    assert plugins.rows[1].reason == "another plugin is already called 'same'"


def test_a_disabled_plugin_is_not_imported(package: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    name = package("raise AssertionError('imported')")

    def load() -> Any:
        raise AssertionError("loaded")

    entry = Entry("entry", load)
    monkeypatch.setenv(DISABLE_VARIABLE, f" {name}, entry,,unheard ")
    plugins = load_plugins(modules=[name], entry_points=[entry])  # type: ignore[list-item]
    assert [(row.name, row.status) for row in plugins.rows] == [
        (name, "disabled"), ("entry", "disabled"), ("unheard", "missing"),
    ]  # fmt: skip
    assert f"{name}.plugin" not in sys.modules
    assert plugins.rows[0].reason == "named in ALTGRAD_DISABLE_PLUGINS"
    assert plugins.rows[2].reason == "named in ALTGRAD_DISABLE_PLUGINS, but there is no such plugin"


def test_what_is_unknown_names_the_nearest_and_the_plugins_that_did_not_load() -> None:
    def load() -> Any:
        raise ImportError("no CUDA")

    plugins = _load(_sink(), Entry("wandb", load))
    assert plugins.find("sink", "wandb") is None
    with pytest.raises(AltgradError) as caught:
        plugins.get("sink", "goood")
    assert str(caught.value) == (
        "Unknown sink 'goood'. Did you mean 'good'? Known: good. "
        "Plugins that did not load: wandb (broken: ImportError: no CUDA)."
    )


def _installed(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, files: dict[str, str]) -> Any:
    """Lay a package down and return an entry point to it, as pip would."""
    for path, text in files.items():
        (folder / name / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / path).write_text(text)
    monkeypatch.syspath_prepend(folder)
    return importlib.metadata.EntryPoint(name="mine", value=name, group="altgrad")


_HOOKS = """
from altgrad_core import FloatFormat, hookimpl

@hookimpl
def altgrad_register_formats(register):
    register(FloatFormat(name="myfp8", exponent_bits=4, mantissa_bits=3, specials="fn"))
"""


@pytest.mark.parametrize(
    "files",
    [{"__init__.py": _HOOKS}, {"__init__.py": "", "plugin.py": _HOOKS}],
    ids=["hooks in the package", "hooks in its module plugin"],
)
def test_an_entry_point_to_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    name = f"altgrad_mine_{len(files)}"
    (row,) = load_plugins(modules=[], entry_points=[_installed(tmp_path, monkeypatch, name, files)], disabled=[]).rows
    assert (row.status, row.offers) == ("ok", {"format": ["myfp8"]})


def test_a_plugin_that_registers_nothing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unmarked = _HOOKS.replace("@hookimpl\n", "")
    entry = _installed(tmp_path, monkeypatch, "altgrad_unmarked", {"__init__.py": unmarked})
    plugins = load_plugins(modules=[], entry_points=[entry], disabled=[])
    (row,) = plugins.rows
    assert row.status == "broken"
    assert "@hookimpl" in row.reason
    assert "@hookimpl" in plugins.hint()
