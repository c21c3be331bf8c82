"""The public surface: a change of it is seen, and told in the changelog; and how something public goes."""

from __future__ import annotations

import importlib.util
import types
import warnings
from pathlib import Path

import attrs
import pytest

import altgrad_core
from altgrad_core import hookspecs
from altgrad_core.deprecation import AltgradDeprecationWarning, Deprecation
from altgrad_core.plugins import load_plugins
from altgrad_core.structure import structure

ROOT = Path(__file__).parents[2]
OLD = Deprecation(what="old", since="0.2", gone="0.4", instead="use new")
SAID = "old is deprecated since 0.2 and gone in 0.4: use new"


@pytest.fixture(scope="module")
def make_surface() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("make_surface", ROOT / "docs" / "make_surface.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_surface_is_that_of_the_file(make_surface: types.ModuleType) -> None:
    now, then = make_surface.surface().splitlines(), make_surface.FILE.read_text().splitlines()
    gone, new = [line for line in then if line not in now], [line for line in now if line not in then]
    assert now == then, (
        f"The public surface has changed; gone: {gone}; new: {new}. If that is meant: say in the unreleased section of "
        "CHANGELOG.md what changes for users (what goes is deprecated first, docs/plugins.md), then run: "
        "python docs/make_surface.py --in-changelog"
    )


def test_the_changelog_knows_the_surface(make_surface: types.ModuleType) -> None:
    said = make_surface.MARK.findall(make_surface.unreleased(make_surface.CHANGELOG.read_text()))
    assert said == [make_surface.short_hash(make_surface.FILE.read_text())], (
        "docs/public-surface.txt is not the one that the changelog speaks of: say in the unreleased section of CHANGELOG.md "
        "what changed, then run: python docs/make_surface.py --in-changelog"
    )


def test_the_surface_has_what_it_says(make_surface: types.ModuleType) -> None:
    """One line of each part, so that none of them has become empty."""
    lines = make_surface.surface().splitlines()
    for line in (
        "FloatFormat(Format)",
        "    test_idempotent",
        "altgrad_register_probes(register: Register) -> None",
        "altgrad new experiment --in --recipe NAME",
        "train: steps 300",
        "checkpoint: step, kind",
        "train/loss",
    ):
        assert any(found.startswith(line) for found in lines), line


def test_a_deprecated_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(altgrad_core.DEPRECATED, "Format", (OLD, "altgrad_core.numerics.formats"))
    with pytest.warns(AltgradDeprecationWarning, match=SAID) as caught:
        assert altgrad_core.Format.__name__ == "Format"
    assert caught[0].filename == __file__, "it points at who uses it"


def test_a_deprecated_key() -> None:
    @attrs.frozen(kw_only=True)
    class Options:
        steps: int = attrs.field(default=3, metadata={"deprecated": OLD})

    with pytest.warns(AltgradDeprecationWarning, match=SAID):
        assert structure({"steps": 4}, Options).steps == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        structure({"steps": 3}, Options)
        structure({}, Options)


@attrs.frozen
class Entry:
    """Stands for ``importlib.metadata.EntryPoint``."""

    name: str
    module: types.ModuleType
    value: str = ""
    dist: None = None

    def load(self) -> types.ModuleType:
        return self.module


def _row(**names: object) -> object:
    module = types.ModuleType("toy")
    module.altgrad_register_sinks = hookspecs.hookimpl(lambda register: register("toy", print))
    vars(module).update(names)
    plugins = load_plugins(modules=[], entry_points=[Entry("toy", module)], disabled=[])
    return plugins.rows[0]


def test_a_deprecated_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hookspecs.DEPRECATED, "altgrad_register_sinks", OLD)
    row = _row()
    assert (row.status, row.note) == ("ok", SAID)


@pytest.mark.parametrize(
    ("version", "note"),
    [
        (None, ""),
        (hookspecs.HOOKSPEC_VERSION, ""),
        (99, "written for hook specification 99, this AltGrad has 1: upgrade altgrad"),
        (0, "written for hook specification 0, the oldest that works is 1: upgrade the plugin"),
    ],
)
def test_the_hook_specification_of_a_plugin(version: int | None, note: str) -> None:
    row = _row() if version is None else _row(ALTGRAD_HOOKSPEC=version)
    assert (row.status, row.note, row.hookspec) == ("ok", note, version)


def test_what_is_no_version_and_no_clauses() -> None:
    assert "ALTGRAD_HOOKSPEC is a number such as 1, got '1'" in _row(ALTGRAD_HOOKSPEC="1").reason
    assert "ALTGRAD_CANNOT is {'kind/name': {'clause': 'reason'}}" in _row(ALTGRAD_CANNOT=["x"]).reason
