"""A small set of plugins, made here, and ways to load a text."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest

from altgrad_core.errors import AltgradError
from altgrad_core.experiments.config import load_experiment
from altgrad_core.experiments.schema import Experiment
from altgrad_core.hookspecs import hookimpl
from altgrad_core.plugins import Plugins, load_plugins


@attrs.frozen(kw_only=True)
class Model:
    width: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    block_size: int = 16
    dropout: float = attrs.field(default=0.0, validator=[attrs.validators.ge(0), attrs.validators.lt(1)])


@attrs.frozen(kw_only=True)
class Data:
    path: str | None = None
    splits: tuple[float, ...] = (0.9, 0.1)
    shuffle: bool = True


@attrs.frozen(kw_only=True)
class Needy:
    path: str


@attrs.frozen(kw_only=True)
class Adam:
    beta1: float = 0.9
    amsgrad: bool = False


@attrs.frozen(kw_only=True)
class Delayed:
    history: int = attrs.field(default=16, validator=attrs.validators.ge(1))
    algorithm: Literal["max", "most_recent"] = "max"


@attrs.frozen(kw_only=True)
class MX:
    mode: Literal["floor", "rceil"] = "rceil"


@attrs.frozen(kw_only=True)
class Every:
    every: int = attrs.field(default=10, validator=attrs.validators.ge(1))


@attrs.frozen(kw_only=True)
class Tracker:
    project: str = "altgrad"
    tags: tuple[str, ...] = ()


def _build(*_: Any) -> None:
    raise AssertionError("configuration builds nothing")


def _module(name: str, **hooks: Callable[..., None]) -> str:
    module = types.ModuleType(f"{name}.plugin")
    for hook, function in hooks.items():
        setattr(module, f"altgrad_register_{hook}", hookimpl(function))
    sys.modules[name] = types.ModuleType(name)
    sys.modules[f"{name}.plugin"] = module
    return name


def _models(register: Any) -> None:
    register("gpt", _build, Model)
    register("tiny", _build, Model)


def _datasets(register: Any) -> None:
    register("stdlib", _build, Data)
    register("needy", _build, Needy)


def _optimizers(register: Any) -> None:
    register("adamw", _build, Adam)
    register("sgd", _build)


def _scaling(register: Any) -> None:
    register("current", _build)
    register("none", _build)
    register("delayed", _build, Delayed)
    register("mx", _build, MX)
    register("nvfp4", _build)


def _probes(register: Any) -> None:
    register("gradients", _build, Every)
    register("shadow", _build, Every)


def _foreign_probes(register: Any) -> None:
    register("rank", _build, Every)


def _recipes(register: Any) -> None:
    register("bf16", {"compute": "bf16"})
    register("fp32", {"compute": "fp32"})
    register("hybrid", {"input": "e4m3fn", "weight": "e4m3fn", "grad_output": "e5m2"})
    register("careful", {"base": "hybrid", "overrides": [{"match": "lm_head", "recipe": {"input": "e5m2"}}]})
    register("circle", {"base": "circle"})
    register("wrong", {"input": "e5m2", "wieght": "e5m2"})


def _sinks(register: Any) -> None:
    register("tracker", _build, Tracker)
    register("csv", _build)


def _checkpoints(register: Any) -> None:
    register("local", _build)


def _launchers(register: Any) -> None:
    register("process", _build)
    register("inline", _build)


@attrs.frozen
class Entry:
    """Stands for an entry point of a third party."""

    name: str
    load: Callable[[], Any]
    value: str = ""
    dist: Any = None


@pytest.fixture(scope="session")
def plugins() -> Plugins:
    built_in = _module(
        "altgrad_testing_builtins",
        models=_models, datasets=_datasets, optimizers=_optimizers, scaling=_scaling, probes=_probes,
        recipes=_recipes, sinks=_sinks, checkpoints=_checkpoints, launchers=_launchers,
    )  # fmt: skip
    foreign = _module("altgrad_testing_foreign", probes=_foreign_probes)
    loaded = load_plugins(
        modules=[built_in], entry_points=[Entry("foreign", lambda: sys.modules[f"{foreign}.plugin"])], disabled=[]
    )
    assert [row.status for row in loaded.rows] == ["ok", "ok"], loaded.rows
    return loaded


@pytest.fixture
def load(tmp_path: Path, plugins: Plugins) -> Callable[..., Experiment]:
    """Return a function that loads a text; ``[experiment]`` is added when the text has none."""

    def load(text: str, *overrides: str) -> Experiment:
        if "[experiment]" not in text:
            text += '\n[experiment]\nname = "test"\n'
        path = tmp_path / "experiments.toml"
        path.write_text(text, encoding="utf-8", newline="")
        return load_experiment(path, overrides=overrides, plugins=plugins)

    return load


@pytest.fixture
def errors(load: Callable[..., Experiment], tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that loads a text that is wrong and returns the lines of the error."""

    def errors(text: str, *overrides: str) -> list[str]:
        with pytest.raises(AltgradError) as caught:
            load(text, *overrides)
        return str(caught.value).replace(str(tmp_path) + "/", "").splitlines()

    return errors
