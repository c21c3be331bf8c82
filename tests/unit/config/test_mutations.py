# ruff: noqa: E501 - expected texts stay on one line
"""Whatever is done to a good file, it loads, or an AltgradError names the place. Never another exception."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import tomli
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from altgrad_core.errors import AltgradError
from altgrad_core.experiments.config import dump_run
from altgrad_core.experiments.runfile import build_run
from altgrad_core.experiments.schema import Experiment
from altgrad_core.plugins import Plugins
from altgrad_core.spelling import shown

GOOD = """
[experiment]
name = "test"
[defaults]
seed = 3
recipe = "e5m2"
model = { kind = "gpt", width = 4 }
[defaults.data]
kind = "stdlib"
path = "x # y = z"
splits = [0.5,
  0.5]
[defaults.train]
steps = 10
learning_rate = 1e-3
optimizer = { kind = "adamw", beta1 = 0.9 }
[defaults.checkpoint]
backend = "local"
[defaults.probes]
shadow = { every = 2 }
rank = true
[defaults.alerts]
overflow = 0.5
nan = { patience = 2, action = "log" }
loss_spike = false
[[run]]
name = "a"
baseline = true
recipe.scaling = { kind = "delayed", history = 2 }
[[run]]
name = "{recipe}-{scaling}"
matrix = { recipe = ["e3m4", "hybrid"], "recipe.scaling" = ["none", "current"] }
[run.train]
warmup_steps = 2
[[run]]
name = "long"
[run.recipe]
input = { format = "e4m3fn", saturation = "none" }
gradient = "e5m2"
overrides = [{ match = "x*", recipe = "bf16" }]
[[sink]]
kind = "tracker"
tags = ["x"]
"""
_PLACE = re.compile(r"\S*experiments\.toml:\d+:\d+: |--set ")

_settings = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
_odd: Any = st.one_of(
    st.sampled_from(
        [0, -1, 5, 2**70, True, False, 0.5, float("nan"), float("inf"), "", "e5m2", "none", "{recipe}", "gpt", "../x", [], {}, [1],
         ["a", 1], {"kind": "x"}, {"kind": []}, {"base": "e5m2"}, {"format": 3}, [{}], {"every": 0}, "fp32", "circle"]
    ),
    st.text(max_size=5),
    st.integers(),
    st.dictionaries(st.sampled_from(["kind", "base", "name", "x", "recipe", "match"]), st.text(max_size=3), max_size=2),
).map(copy.deepcopy)  # fmt: skip


def _outcome(load: Callable[..., Experiment], plugins: Plugins, text: str, *overrides: str) -> None:
    try:
        experiment = load(text, *overrides)
    except AltgradError as error:
        if not _PLACE.match(str(error)):
            raise
        return
    for run in experiment.runs:  # what loads can be written and comes back
        assert repr(build_run(tomli.loads(dump_run(run)), plugins)) == repr(run)


def test_the_good_one(load: Callable[..., Experiment], plugins: Plugins) -> None:
    assert len(load(GOOD).runs) == 6
    _outcome(load, plugins, GOOD)


@_settings
@given(data=st.data())
def test_text_is_changed(load: Callable[..., Experiment], plugins: Plugins, data: st.DataObject) -> None:
    text = GOOD
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        length = data.draw(st.sampled_from([0, 0, 1, 1, 2, 10]))
        new = data.draw(st.one_of(st.sampled_from(["", '"', "[", "]", "{", "}", "=", "\n", "#", ".", "1", "'", "\\"]),
                                  st.text(st.characters(exclude_categories=["Cs"]), max_size=3)))  # fmt: skip
        text = text[:at] + new + text[at + length :]
    _outcome(load, plugins, text)


@_settings
@given(data=st.data())
def test_values_are_changed(load: Callable[..., Experiment], plugins: Plugins, data: st.DataObject) -> None:
    document = copy.deepcopy(tomli.loads(GOOD))
    for _ in range(data.draw(st.integers(1, 3))):
        spot: Any = document
        while True:
            keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            deeper = isinstance(spot[key], dict | list) and data.draw(st.integers(0, 3))
            if deeper:
                spot = spot[key]
                continue
            action = data.draw(st.sampled_from(["replace", "delete", "rename", "add"]))
            if action == "replace":
                spot[key] = data.draw(_odd)
            elif action == "delete":
                del spot[key]
            elif isinstance(spot, list):
                spot.append(data.draw(_odd))
            elif action == "rename":
                spot[data.draw(st.text(max_size=3)) + str(key)[1:]] = spot.pop(key)
            else:
                name = data.draw(
                    st.sampled_from(["kind", "recipe", "train", "matrix", "scaling", "overrides", "x y", ""])
                )
                spot[name] = data.draw(_odd)
            break
    _outcome(load, plugins, tomli_w.dumps(document))


@_settings
@given(
    key=st.sampled_from(["train.steps", "recipe", "recipe.scaling", "recipe.input.format", "probes.shadow", "model", "data.splits",
                         "train.optimizer.kind", "alerts.overflow", "alerts.nan.action", "alerts.loss_spike", "baseline", "a:seed", "recipe.overrides", "", "x", "train"]),
    value=st.one_of(_odd.map(lambda value: shown(value, limit=None)), st.text(max_size=5)),
)  # fmt: skip
def test_overrides_are_anything(load: Callable[..., Experiment], plugins: Plugins, key: str, value: str) -> None:
    _outcome(load, plugins, GOOD, f"{key}={value}")
