"""``experiments.toml`` -> ``Experiment``, and ``run.toml`` -> ``RunConfig``; every error with file, line and column.

A run is built in layers: ``[defaults]``, its ``[[run]]``, its cell of a matrix, then ``--set`` from the command line.
All mistakes of a file are reported at once, in file order; those of ``--set`` come last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import tomli

from altgrad_core.errors import AltgradError, unknown
from altgrad_core.experiments.layers import Layers, Origin
from altgrad_core.experiments.matrix import Cell, check_folder_name, expand
from altgrad_core.experiments.positions import Positions, parse_key
from altgrad_core.experiments.runfile import build_run, build_sinks, default_probes, difference, dump_run
from altgrad_core.experiments.schema import Experiment, RunConfig
from altgrad_core.plugins import Choice, Plugins, installed
from altgrad_core.spelling import KeyPath, key_text, shown
from altgrad_core.structure import Collector, StructureError
from altgrad_core.training.config import TrainConfig

__all__ = ["difference", "dump_run", "load_experiment", "load_run", "override_run"]

DEFAULT_KEYS = ("seed", "model", "data", "recipe", "train", "checkpoint", "probes", "alerts", "launcher")
RUN_KEYS = ("name", "baseline", "matrix", *DEFAULT_KEYS)
SET_KEYS = ("baseline", *DEFAULT_KEYS)
FILE_KEYS = ("experiment", "defaults", "run", "sink")

_MINIMAL = """[experiment]
name = "first"

[[run]]
name = "bf16"
baseline = true

[[run]]
name = "e5m2"
recipe = "e5m2"
"""


def load_experiment(path: str | Path, *, overrides: Sequence[str] = (), plugins: Plugins | None = None) -> Experiment:
    """Return the checked experiment of a file.

    ``overrides`` are the arguments of ``--set``, applied in order: ``train.steps=50`` for every run,
    ``RUN:train.steps=50`` for one. ``plugins`` defaults to those installed. Raises one ``AltgradError`` that lists
    every mistake as ``FILE:LINE:COLUMN: KEY: what was expected, what came``.
    """
    path = Path(path)
    document, positions = _read(path, f"Give the path of an experiment file, or make one; the shortest:\n\n{_MINIMAL}")
    report = _Report(str(path), document, positions)
    loader = _Loader(document, report, installed() if plugins is None else plugins)
    name = loader.experiment()
    runs = loader.runs(name, [parsed for text in overrides if (parsed := _parse_override(text, report))])
    report.check()
    return Experiment(name=name, runs=tuple(runs), path=str(path))


def load_run(path: str | Path, *, plugins: Plugins | None = None) -> RunConfig:
    """Return the configuration that a ``run.toml`` holds; raises ``AltgradError`` as ``load_experiment`` does."""
    return override_run(path, (), plugins=plugins)


def override_run(path: str | Path, overrides: Sequence[str], *, plugins: Plugins | None = None) -> RunConfig:
    """Return the configuration that a ``run.toml`` holds, changed by the arguments of ``--set`` (``train.steps=50``).

    Raises one ``AltgradError`` that lists every mistake.
    """
    path = Path(path)
    document, positions = _read(path, "It is written by 'altgrad run'.")
    report = _Report(str(path), document, positions)
    layers = Layers()
    for key, value in document.items():
        layers.lay((key,), value, Origin((key,)))
    for override in [parsed for text in overrides if (parsed := _parse_override(text, report))]:
        if override.run is not None:
            report.setting(override.text, "there is one run only; leave the name before the colon out")
        layers.lay(override.path, override.value, Origin(override.path, setting=override.text))
    config = None
    try:
        config = build_run(layers.values, installed() if plugins is None else plugins)
    except StructureError as error:
        for problem in error.problems:
            report.add(layers.origin(problem.path), problem.message)
    report.check()
    assert config is not None
    return config


def _read(path: Path, advice: str) -> tuple[dict[str, Any], Positions]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise AltgradError(f"There is no file {path}. {advice}") from None
    except OSError as error:
        raise AltgradError(f"Could not read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise AltgradError(f"{path}: expected UTF-8 text, got other bytes at offset {error.start}.") from error
    try:
        return tomli.loads(text), Positions(text)
    except tomli.TOMLDecodeError as error:
        raise AltgradError(f"{path}:{error.lineno}:{error.colno}: {error.msg}") from error
    except RecursionError:
        raise AltgradError(f"{path}:1:1: tables or arrays are nested too deeply") from None
    except ValueError as error:  # Python's limit on the digits of an integer
        raise AltgradError(f"{path}:1:1: {error}") from error


@attrs.frozen
class _Report:
    """All mistakes of a file, each once, in file order."""

    file: str
    document: Mapping[str, Any]
    positions: Positions
    _lines: dict[str, tuple[int, int]] = attrs.field(factory=dict)

    def add(self, origin: Origin, message: str) -> None:
        if origin.setting is not None:
            self._lines.setdefault(f"--set {origin.setting}: {key_text(origin.path)}: {message}", (2**31, 0))
            return
        line, column = self.positions.find(origin.path)
        key = self._key(origin.path)
        self._lines.setdefault(f"{self.file}:{line}:{column}: {key}{': ' if key else ''}{message}", (line, column))

    def setting(self, text: str, message: str) -> None:
        self._lines.setdefault(f"--set {text}: {message}", (2**31, 0))

    def check(self) -> None:
        if self._lines:
            raise AltgradError("\n".join(sorted(self._lines, key=lambda line: self._lines[line])))

    def _key(self, path: KeyPath) -> str:
        """Return the key path with a run's name for its number."""
        if len(path) > 1 and path[0] == "run" and isinstance(path[1], int):
            name = self.document["run"][path[1]].get("name")
            if isinstance(name, str):
                rest = key_text(path[2:])
                return f"run[{shown(name)}]" + (f".{rest}" if rest else "")
        return key_text(path)


def _unknown(key: str | int, known: Sequence[str]) -> str:
    """Return the sentence for an unknown key, which may be one of ``[train]``, or a sink, in the wrong place."""
    if key in ("sink", "sinks"):
        return (
            "sinks are no part of a run and cannot be set here; add a table [[sink]] to the file, for all of its runs."
        )
    if "train" in known and key in attrs.fields_dict(TrainConfig):
        return f"Unknown key '{key}'. It belongs under train: train.{key}."
    return unknown("key", str(key), known)


@attrs.frozen
class _Override:
    text: str
    run: str | None
    path: KeyPath
    value: Any


def _parse_override(text: str, report: _Report) -> _Override | None:
    left, equals, right = text.partition("=")
    run, colon, key = left.rpartition(":")
    path = parse_key(key.strip())
    if not equals or path is None:
        report.setting(text, "expected KEY=VALUE or RUN:KEY=VALUE, such as train.steps=50")
        return None
    if path[0] not in SET_KEYS:
        rest = key.strip().partition(".")[2]
        of_run = f" To set {rest} in the run '{path[0]}' alone: --set '{path[0]}:{rest}={right}'."
        report.setting(text, _unknown(path[0], SET_KEYS) + (of_run if path[1:2] and path[1] in SET_KEYS else ""))
        return None
    try:
        table = tomli.loads(f"value = {right.strip()}")
    except (ValueError, RecursionError):  # ValueError: also Python's limit on the digits of an integer
        value, quoted = shown(right.strip()), shown(right.strip().strip("\"'"))
        report.setting(text, f"{key.strip()}: {value} is not a TOML value; text needs quotes: --set '{left}={quoted}'")
        return None
    if list(table) != ["value"]:
        report.setting(text, f"{key.strip()}: expected one TOML value, got several lines")
        return None
    return _Override(text, run.strip() if colon else None, path, table["value"])


@attrs.frozen
class _Loader:
    document: Mapping[str, Any]
    report: _Report
    plugins: Plugins

    def experiment(self) -> str:
        """Check the keys of the file and return the experiment's name."""
        self._known_keys((), self.document, FILE_KEYS)
        table = self._table(("experiment",), self.document.get("experiment", {}))
        self._known_keys(("experiment",), table, ("name",))
        name = table.get("name")
        if name is None:
            self._add(("experiment", "name"), 'missing; expected a name for the experiment, such as name = "first"')
        elif not isinstance(name, str):
            self._add(("experiment", "name"), f"expected a text in quotes, got {shown(name)}")
        else:
            try:
                check_folder_name(name)
            except AltgradError as error:
                self._add(("experiment", "name"), str(error))
            else:
                return name
        return "unnamed"  # only until the report is raised

    def runs(self, experiment: str, overrides: Sequence[_Override]) -> list[RunConfig]:
        """Return the runs in file order, matrices expanded."""
        defaults = self._table(("defaults",), self.document.get("defaults", {}))
        self._known_keys(("defaults",), defaults, DEFAULT_KEYS)
        sinks = self._sinks()
        tables = self.document.get("run", [])
        if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
            self._add(("run",), "expected one or more [[run]] tables")
            return []
        cells = [(index, cell) for index, table in enumerate(tables) for cell in self._cells(index, table)]
        self._distinct(cells)
        names = [cell.name for _, cell in cells]
        for override in overrides:
            if override.run is not None and override.run not in names:
                self.report.setting(override.text, unknown("run", override.run, names))
        built, baselines = [], []
        for index, cell in cells:
            layers = Layers()
            for key in DEFAULT_KEYS:
                if key in defaults:
                    layers.lay((key,), defaults[key], Origin(("defaults", key)))
            for key in SET_KEYS:
                if key in tables[index]:
                    layers.lay((key,), tables[index][key], Origin(("run", index, key)))
            for setting in cell.settings:
                layers.lay(setting.path, setting.value, Origin(("run", index, *setting.written), whole=True))
            for override in overrides:
                if override.run in (None, cell.name):
                    layers.lay(override.path, override.value, Origin(override.path, setting=override.text))
            built.append(self._build(experiment, cell, layers, sinks))
            if layers.values.get("baseline") is True:
                baselines.append((cell.name, layers.origin(("baseline",))))
        for name, origin in baselines[1:]:
            self.report.add(origin, f"'{name}' is a second baseline beside '{baselines[0][0]}'; expected one at most")
        return [run for run in built if run is not None]

    def _build(self, experiment: str, cell: Cell, layers: Layers, sinks: tuple[Choice, ...]) -> RunConfig | None:
        table = {**layers.values, "experiment": experiment, "name": cell.name}
        probes = table.get("probes", {})
        if isinstance(probes, Mapping):
            table["probes"] = {**dict.fromkeys(default_probes(self.plugins), True), **probes}
        try:
            return attrs.evolve(build_run(table, self.plugins), sinks=sinks)
        except StructureError as error:
            for problem in error.problems:
                self.report.add(layers.origin(problem.path), problem.message)
        return None

    def _sinks(self) -> tuple[Choice, ...]:
        collector = Collector()
        sinks: tuple[Choice, ...] = ()
        with collector.at("sink"):
            sinks = build_sinks(self.document.get("sink", []), self.plugins)
        for problem in collector.problems:
            self._add(problem.path, problem.message)
        return sinks

    def _cells(self, index: int, table: Mapping[str, Any]) -> list[Cell]:
        where: KeyPath = ("run", index)
        self._known_keys(where, table, RUN_KEYS)
        name = table.get("name")
        if not isinstance(name, str):
            what = "missing" if name is None else f"got {shown(name)}"
            self._add((*where, "name"), f'expected the run\'s name, such as name = "e5m2"; {what}')
            return []
        collector, cells = Collector(), [Cell(name, ())]
        if "matrix" in table:
            matrix = self._table((*where, "matrix"), table["matrix"])
            cells = []
            with collector.at():
                cells = expand(name, matrix) if isinstance(table["matrix"], Mapping) else []
        elif "{" in name:
            collector.add(("name",), "a placeholder needs a matrix: matrix = { recipe = [...] }")
            cells = []
        for cell in cells:
            with collector.at("name"):
                check_folder_name(cell.name)
            for setting in cell.settings:
                if setting.path[0] not in SET_KEYS:
                    collector.add(setting.written, _unknown(str(setting.path[0]), SET_KEYS))
        for problem in collector.problems:
            self._add((*where, *problem.path), problem.message)
        return [] if collector.problems else cells

    def _distinct(self, cells: Sequence[tuple[int, Cell]]) -> None:
        seen: dict[str, int] = {}
        for index, cell in cells:
            # Some file systems do not tell E5M2 from e5m2.
            first = seen.setdefault(cell.name.casefold(), index)
            if first == index and sum(i == index and c.name.casefold() == cell.name.casefold() for i, c in cells) > 1:
                self._add(
                    ("run", index, "name"),
                    f"several cells of the matrix are called '{cell.name}'; put a placeholder for each key in the name",
                )
            elif first != index:
                self._add(("run", index, "name"), f"another run is called '{cell.name}' already")

    def _known_keys(self, path: KeyPath, table: Mapping[str, Any], known: Sequence[str]) -> None:
        for key in table:
            if key not in known:
                self._add((*path, key), _unknown(key, known))

    def _table(self, path: KeyPath, value: Any) -> Mapping[str, Any]:
        if isinstance(value, Mapping):
            return value
        self._add(path, f"expected a table, got {shown(value)}")
        return {}

    def _add(self, path: KeyPath, message: str) -> None:
        self.report.add(Origin(path), message)
