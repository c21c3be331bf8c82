"""The parts of the sink ``aim`` that need no repository: names, options, and what is said where there is no Aim."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import altgrad_aim.plugin
import pytest
from altgrad_aim.names import from_aim, to_aim
from altgrad_aim.repository import ui_runs
from altgrad_aim.sink import storable
from hypothesis import given
from hypothesis import strategies as st

from altgrad_core.errors import AltgradError
from altgrad_core.experiments.runfile import build_sinks
from altgrad_core.plugins import load_plugins
from altgrad_core.structure import StructureError


@pytest.mark.parametrize(
    ("metric", "name", "context"),
    [
        ("train/loss", "loss", {"subset": "train"}),
        ("val/loss", "loss", {"subset": "val"}),
        ("overflow_rate/blocks.0.mlp.up.input", "overflow_rate", {"layer": "blocks.0.mlp.up.input"}),
        ("overflow_rate", "overflow_rate", {}),
        ("simulated/train/loss", "simulated/loss", {"subset": "train"}),
        ("simulated/grad_snr/a.b", "simulated/grad_snr", {"layer": "a.b"}),
        ("simulated/grad_snr", "simulated/grad_snr", {}),
        ("a/b/c", "a", {"layer": "b/c"}),
        ("train/a/b", "a/b", {"subset": "train"}),
        ("/a", "/a", {}),
        ("a/", "a/", {}),
    ],
)
def test_a_name_is_split_into_name_and_context(metric: str, name: str, context: dict[str, str]) -> None:
    assert to_aim(metric) == (name, context)
    assert from_aim(name, context) == metric


@given(st.lists(st.sampled_from(["train", "val", "simulated", "a", "é", "/"]), max_size=6), st.booleans())
def test_no_two_metrics_get_one_name(parts: list[str], with_slashes: bool) -> None:
    metric = ("/" if with_slashes else "").join(parts)
    assert from_aim(*to_aim(metric)) == metric


def test_texts_are_stored_as_utf_8() -> None:
    assert storable({"a": ["\ud800 ü", 1, None, {"\udfff": 2.5}]}) == {"a": ["\\ud800 ü", 1, None, {"\\udfff": 2.5}]}


@pytest.mark.parametrize("repo", ["http://localhost:53800", "aim://", "ssh://host/folder"])
def test_a_repository_that_is_none(repo: str) -> None:
    with pytest.raises(StructureError, match=r"expected a folder or the address of a tracking server, aim://host:port"):
        build_sinks([{"kind": "aim", "repo": repo}], load_plugins(entry_points=[]))


def test_a_python_without_aim(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The sink can be named in files, says why it does not work, and is no reason to call the plugin broken."""
    monkeypatch.setattr(altgrad_aim.plugin, "sys", SimpleNamespace(version_info=(3, 13, 1)))
    monkeypatch.setitem(sys.modules, "aim", None)
    monkeypatch.setattr(altgrad_aim.plugin, "platform", SimpleNamespace(python_version=lambda: "3.13.1"))
    plugins = load_plugins(entry_points=[], disabled=[])
    (row,) = [row for row in plugins.rows if row.name == "altgrad_aim"]
    assert (row.status, row.offers) == ("missing", {"sink": ["aim"]})
    assert row.reason.startswith(
        "the sink 'aim' needs Python 3.11 or 3.12, as there is no Aim for Python 3.13.1: train with"
    )
    (sink,) = build_sinks([{"kind": "aim"}], plugins)
    with pytest.raises(AltgradError, match=r"The sink 'aim' needs Python 3\.11 or 3\.12"):
        plugins.get("sink", "aim").value(sink.options, tmp_path)
    assert not plugins.not_loaded()


def test_an_aim_that_is_there_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Python it was built for."""
    pytest.importorskip("aim")
    monkeypatch.setattr(altgrad_aim.plugin, "sys", SimpleNamespace(version_info=(3, 13, 1)))
    assert load_plugins(entry_points=[], disabled=[]).get("sink", "aim").missing == ""


def test_the_ui_of_a_repository_is_seen(tmp_path: Path) -> None:
    """``aim up`` leaves the repository in the environment of the process that serves."""
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    assert not ui_runs(str(tmp_path / "here"))
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    environment = {**os.environ, "__AIM_UI_MOUNT_REPO_PATH__": str(tmp_path / "link")}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"\n"
        assert ui_runs(str(tmp_path / "here"))
        assert not ui_runs(str(tmp_path / "elsewhere"))
        process.stdin.close()
    assert not ui_runs(str(tmp_path / "here"))
