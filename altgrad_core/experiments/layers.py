"""Lay tables over tables (defaults, run, matrix cell, ``--set``), remembering where each value came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from altgrad_core.recipes.resolve import CASTS
from altgrad_core.recipes.resolve_cast import CAST_KEYS
from altgrad_core.spelling import KeyPath
from altgrad_core.training.config import ALERTS, AlertConfig


@attrs.frozen
class Origin:
    """Where a value was written."""

    path: KeyPath
    """Key path in the file, or the key of ``setting``."""
    setting: str | None = None
    """The whole ``--set`` argument; None: the file."""
    whole: bool = False
    """Whether everything below has this place too: the values of a matrix stand under one key."""

    def sub(self, keys: KeyPath) -> Origin:
        """Return the place of what is ``keys`` further down."""
        return self if self.whole else attrs.evolve(self, path=self.path + keys)


def shorthand(path: KeyPath) -> str | None:
    """Return the key that a plain value at ``path`` stands for: ``optimizer = "adamw"`` is its ``kind``."""
    match path:
        case ("model" | "data" | "launcher",) | ("train", "optimizer") | ("checkpoint", "backend"):
            return "kind"
        case ("recipe",):
            return "base"
        case ("recipe", str(operand)) if operand in CASTS:
            return "format"
        case ("recipe", "scaling") | ("recipe", _, "scaling") | ("recipe", "optimizer_state", _, "scaling"):
            return "kind"
        case ("recipe", "optimizer_state", str(state)) if state not in CAST_KEYS:
            return "format"
        case ("alerts", str(alert)) if alert in ALERTS:
            return AlertConfig.default(alert).plain
    return None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


@attrs.frozen
class Layers:
    """One run's keys, layer upon layer."""

    values: dict[str, Any] = attrs.field(factory=dict)
    """The keys as they stand now."""
    _origins: dict[KeyPath, Origin] = attrs.field(factory=dict)

    def lay(self, path: KeyPath, value: Any, origin: Origin) -> None:
        """Put ``value`` at ``path`` over what is there: tables are merged, everything else is replaced.

        A table that chooses another ``kind`` (or names the ``base`` of a recipe) replaces the earlier one, whose
        options belong to something else; a table without it changes options of what the earlier string or table chose.
        An alert's number changes that number in an earlier table.
        """
        table = self.values
        for depth in range(1, len(path)):
            table = self._open(table, path[:depth])
            parent = origin if origin.whole else attrs.evolve(origin, path=path[:depth])
            self._origins.setdefault(path[:depth], parent)
        self._put(table, path, value, origin)

    def origin(self, path: KeyPath) -> Origin:
        """Return where the value at ``path``, or the table that lacks it, was written."""
        for depth in range(len(path), 0, -1):
            if path[:depth] in self._origins:
                return self._origins[path[:depth]].sub(path[depth:])
        return Origin(path)

    def _open(self, parent: dict[str, Any], path: KeyPath) -> dict[str, Any]:
        """Return the table at ``path``, made when there is none; a string or number becomes the key it stands for."""
        key, word = str(path[-1]), shorthand(path)
        current = parent.get(key)
        if isinstance(current, dict):
            return current
        opened: dict[str, Any] = {}
        if word is not None and (isinstance(current, str) or _is_number(current)):
            opened[word] = current
            self._origins[*path, word] = self._origins[path]
        parent[key] = opened
        return opened

    def _put(self, parent: dict[str, Any], path: KeyPath, value: Any, origin: Origin) -> None:
        key, word = str(path[-1]), shorthand(path)
        current = parent.get(key)
        if path[0] in ("probes", "alerts") and len(path) == 2:
            if value is True and (isinstance(current, dict) or _is_number(current)):
                return  # it is on already, with options
            if word is not None and _is_number(value) and isinstance(current, dict):
                self._put(current, (*path, word), value, origin)  # an alert's number changes nothing else of it
                return
        if not isinstance(value, Mapping):
            self._forget(path)
            parent[key] = value
            self._origins[path] = origin
            return
        if word in ("kind", "base") and word in value:
            chosen = current.get(word) if isinstance(current, dict) else current
            if word == "base" or chosen != value[word]:
                parent.pop(key, None)
                self._forget(path)
        table = self._open(parent, path)
        self._origins[path] = origin
        for name, item in value.items():
            self._put(table, (*path, name), item, origin.sub((name,)))

    def _forget(self, path: KeyPath) -> None:
        for known in [known for known in self._origins if known[: len(path)] == path]:
            del self._origins[known]
