"""``run.toml``: a run's complete configuration as a table, and back, exactly."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import tomli_w

from altgrad_core.errors import unknown
from altgrad_core.experiments.matrix import check_folder_name
from altgrad_core.experiments.schema import RunConfig
from altgrad_core.plugins import Choice, Plugins
from altgrad_core.recipes.recipe import Recipe
from altgrad_core.recipes.resolve import recipe_table, resolve_recipe
from altgrad_core.spelling import shown
from altgrad_core.structure import Collector, Problem, StructureError, choose, structure, unstructure
from altgrad_core.training.config import ALERTS, AlertConfig, Rule

DEFAULTS = {"model": "gpt", "data": "stdlib", "launcher": "process", "optimizer": "adamw", "backend": "local"}
PLUGIN_KINDS = {
    "model": "model",
    "data": "dataset",
    "launcher": "launcher",
    "optimizer": "optimizer",
    "backend": "checkpoint",
}

# Keys that may change between two calls: they decide nothing of what is trained.
_FREE = re.compile(r"(baseline|launcher|sink|checkpoint\.(every|keep|keep_every))\b")


def build_run(table: Mapping[str, Any], plugins: Plugins) -> RunConfig:
    """Return the checked configuration of a run from its keys, with the defaults of those that are missing.

    ``probes`` are those that the table names and does not switch off. Raises ``StructureError`` with every problem.
    """
    collector = Collector()
    known = {field.name for field in attrs.fields(RunConfig)} - {"sinks"} | {"sink"}
    for key in table:
        if key not in known:
            collector.add((key,), unknown("key", key, known))
    values = {key: value for key, value in table.items() if key in known and key != "sink"}
    for key in ("experiment", "name"):
        if isinstance(table.get(key), str):
            with collector.at(key):
                check_folder_name(table[key])
    for key in ("model", "data", "launcher"):
        values[key] = _choice(collector, plugins, key, table.get(key, DEFAULTS[key]), (key,))
    for key, inner in (("train", "optimizer"), ("checkpoint", "backend")):
        part = table.get(key, {})
        if isinstance(part, Mapping):
            chosen = _choice(collector, plugins, inner, part.get(inner, DEFAULTS[inner]), (key, inner))
            values[key] = {**part, inner: chosen}
    values["recipe"] = Recipe(name="")
    with collector.at("recipe"):
        values["recipe"] = resolve_recipe(table.get("recipe", "bf16"), plugins=plugins)
    values["probes"] = ()
    with collector.at("probes"):
        values["probes"] = _probes(table.get("probes", {}), plugins)
    values["alerts"] = AlertConfig()
    with collector.at("alerts"):
        values["alerts"] = _alerts(table.get("alerts", {}))
    values["sinks"] = ()
    with collector.at("sink"):
        values["sinks"] = build_sinks(table.get("sink", []), plugins)
    config = None
    with collector.at():
        config = structure(values, RunConfig)
    collector.check()
    assert config is not None
    return config


def build_sinks(value: Any, plugins: Plugins) -> tuple[Choice, ...]:
    """Return the sinks of the ``[[sink]]`` tables; two that are the same would write to one place."""
    collector = Collector()
    sinks: list[Choice] = []
    for index, item in enumerate(structure(value, tuple[Any, ...])):
        with collector.at(index):
            sink = choose(plugins, "sink", item)
            if sink in sinks:
                raise StructureError([Problem((), f"is sink[{sinks.index(sink)}] once more. Take one of them out")])
            sinks.append(sink)
    collector.check()
    return tuple(sinks)


def sink_names(sinks: Sequence[Choice]) -> list[str]:
    """Return the names that a run's sinks have in its files: the kind, and ``kind-2``, ``kind-3`` for further ones of it."""
    names: list[str] = []
    for sink in sinks:
        further = (f"{sink.kind}-{number}" for number in itertools.count(2))
        names.append(next(name for name in itertools.chain([sink.kind], further) if name not in names))
    return names


def default_probes(plugins: Plugins) -> list[str]:
    """Return the probes that are on when a file does not mention them: those of the built-in plugins."""
    built_in = {row.name for row in plugins.rows if row.source == "built-in"}
    return [name for name in plugins.names("probe") if plugins.get("probe", name).plugin in built_in]


def run_table(config: RunConfig) -> dict[str, Any]:
    """Return the complete configuration as TOML tables; fields that are None are left out."""
    table: dict[str, Any] = {
        "experiment": config.experiment,
        "name": config.name,
        "baseline": config.baseline,
        "seed": config.seed,
        "model": _choice_table(config.model),
        "data": _choice_table(config.data),
        "recipe": recipe_table(config.recipe),
    }
    for key, part in (("train", config.train), ("checkpoint", config.checkpoint)):
        fields = {field.name: getattr(part, field.name) for field in attrs.fields(type(part))}
        table[key] = unstructure(
            {name: _choice_table(value) if isinstance(value, Choice) else value for name, value in fields.items()}
        )
    rules = {alert: getattr(config.alerts, alert) for alert in ALERTS}
    table["alerts"] = {alert: False if rule is None else unstructure(rule) for alert, rule in rules.items()}
    table["probes"] = {probe.kind: unstructure(probe.options) for probe in config.probes}
    table["launcher"] = _choice_table(config.launcher)
    if config.sinks:
        table["sink"] = [_choice_table(sink) for sink in config.sinks]
    if config.fork is not None:
        table["fork"] = unstructure(config.fork)
    return table


def dump_run(config: RunConfig) -> str:
    """Return the text of ``run.toml``; ``load_run`` reads it back to an equal ``RunConfig``."""
    return tomli_w.dumps(run_table(config))


def difference(old: RunConfig, new: RunConfig) -> list[str]:
    """Return one line for each key that differs: ``train.steps: 300 -> 500``; a key that one lacks is ``not set``."""
    return _changes(run_table(old), run_table(new))


def decisive_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the lines of ``difference`` for two ``run_table``s, but for the keys that may change between two calls."""
    return [line for line in _changes(then, now) if not _FREE.match(line)]


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    before, after = _flat(then, ""), _flat(now, "")
    keys = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
    return [f"{key}: {before.get(key, 'not set')} -> {after.get(key, 'not set')}" for key in keys]


def _choice(collector: Collector, plugins: Plugins, key: str, value: Any, path: tuple[str, ...]) -> Choice:
    chosen = Choice("")
    with collector.at(*path):
        chosen = choose(plugins, PLUGIN_KINDS[key], value, DEFAULTS[key])
    return chosen


def _probes(value: Any, plugins: Plugins) -> tuple[Choice, ...]:
    collector, probes = Collector(), []
    for name, options in structure(value, dict[str, Any]).items():
        with collector.at(name):
            extension = plugins.get("probe", name)
            if options is not False:
                probes.append(Choice(name, structure({} if options is True else options, extension.options)))
    collector.check()
    return tuple(sorted(probes, key=lambda probe: probe.kind))


def _alerts(value: Any) -> AlertConfig:
    collector = Collector()
    rules: dict[str, Any] = {}
    for alert, said in structure(value, dict[str, Any]).items():
        if alert not in ALERTS:
            collector.add((alert,), unknown("key", alert, ALERTS))
            continue
        with collector.at(alert):
            rules[alert] = _rule(said, AlertConfig.default(alert))
    collector.check()
    return AlertConfig(**rules)


def _rule(said: Any, default: Rule) -> Rule | None:
    """Return the rule that ``0.5``, ``{ threshold = 0.5, patience = 3 }`` or ``true`` means; None for ``false``."""
    if isinstance(said, bool):
        return default if said else None
    if isinstance(said, Mapping):
        return structure({**unstructure(default), **said}, type(default))
    if not isinstance(said, int | float):
        what = f"a number (its {default.plain}), a table, true or false"
        raise StructureError([Problem((), f"expected {what}, got {shown(said)}")])
    try:
        return structure({**unstructure(default), default.plain: said}, type(default))
    except StructureError as error:  # the key that the number stands for is not in the file
        raise StructureError([Problem((), problem.message) for problem in error.problems]) from error


def _choice_table(choice: Choice) -> dict[str, Any]:
    return {"kind": choice.kind, **unstructure(choice.options)}


def _flat(value: Any, path: str) -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        items = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        items = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    else:
        return {path: shown(value)}
    return {key: text for name, item in items for key, text in _flat(item, name).items()}
