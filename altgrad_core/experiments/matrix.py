"""``matrix``: one ``[[run]]`` that stands for the product of several choices; and the names of runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

import attrs

from altgrad_core.errors import AltgradError, unknown
from altgrad_core.experiments.positions import parse_key
from altgrad_core.spelling import KeyPath, key_text, shown
from altgrad_core.structure import Collector

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_FOLDER_NAME = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9._+-]{0,199}")


@attrs.frozen
class Setting:
    """One key and its value in a cell."""

    path: KeyPath
    """The key in the run: ``("recipe", "scaling")``."""
    value: Any
    """Its value in this cell."""
    written: KeyPath
    """The key path within the matrix, for errors."""


@attrs.frozen
class Cell:
    """One run of a matrix."""

    name: str
    """The run's name, placeholders filled in."""
    settings: tuple[Setting, ...]
    """What the cell sets, shorter keys first, so that ``recipe.scaling`` changes the ``recipe`` chosen beside it."""


def check_folder_name(name: str) -> None:
    """Raise ``AltgradError`` unless ``name`` can be a folder: letters, digits, ``. _ + -``, no leading dot or dash."""
    if not _FOLDER_NAME.fullmatch(name):
        raise AltgradError(
            f"expected a name that can be a folder (letters, digits, '.', '_', '+', '-'; no '.' or '-' in front), "
            f"got {shown(name)}"
        )


def expand(name: str, matrix: Mapping[str, Any]) -> list[Cell]:
    """Return the cells of ``matrix``, the last key varying fastest; ``name`` is a template.

    A placeholder of the template is the last part of a matrix key, ``{scaling}``, or the whole, ``{recipe.scaling}``.
    Raises ``StructureError``; its paths begin with ``name`` or ``matrix``.
    """
    collector = Collector()
    axes: dict[KeyPath, tuple[KeyPath, list[Any]]] = {}
    for path, written, values in _axes(matrix, (), ()):
        if path in axes:
            collector.add(("matrix", *written), f"the key {key_text(path)} is in the matrix twice")
        elif path[0] in ("name", "matrix", "baseline"):
            collector.add(("matrix", *written), f"'{path[0]}' cannot be in a matrix")
        elif not isinstance(values, list) or not values:
            collector.add(("matrix", *written), f"expected an array of one or more values, got {shown(values)}")
        else:
            axes[path] = (("matrix", *written), values)
    if not matrix:
        collector.add(("matrix",), "expected one or more keys with arrays of values, got an empty table")
    collector.check()
    fillers = _fillers(list(axes))
    for placeholder in dict.fromkeys(_PLACEHOLDER.findall(name)):
        if placeholder not in fillers:
            collector.add(("name",), unknown("placeholder", placeholder, fillers))
        else:
            written, values = axes[fillers[placeholder]]
            for value in values:
                if _short(value) is None:
                    collector.add(written, f"{shown(value)} cannot stand in a name; leave {{{placeholder}}} out of it")
    collector.check()
    cells = []
    for chosen in itertools.product(*(values for _, values in axes.values())):
        settings = [
            Setting(path, value, written) for (path, (written, _)), value in zip(axes.items(), chosen, strict=True)
        ]
        by_path = {setting.path: _short(setting.value) for setting in settings}
        filled = _PLACEHOLDER.sub(lambda match, by=by_path: str(by[fillers[match[1]]]), name)  # type: ignore[misc]
        cells.append(Cell(filled, tuple(sorted(settings, key=lambda setting: len(setting.path)))))
    return cells


def _axes(table: Mapping[str, Any], above: KeyPath, written: KeyPath) -> list[tuple[KeyPath, KeyPath, Any]]:
    """Return (key in the run, key as written, values) of each entry; unquoted dotted keys arrive as nested tables."""
    found: list[tuple[KeyPath, KeyPath, Any]] = []
    for key, value in table.items():
        path = (*above, *(parse_key(key) or (key,)))
        if isinstance(value, Mapping) and value:
            found += _axes(value, path, (*written, key))
        else:
            found.append((path, (*written, key), value))
    return found


def _fillers(paths: list[KeyPath]) -> dict[str, KeyPath]:
    """Return placeholder -> key; a last part that two keys share stands for neither."""
    fillers: dict[str, KeyPath] = {}
    for path in paths:
        if sum(other[-1] == path[-1] for other in paths) == 1:
            fillers[str(path[-1])] = path
    return fillers | {".".join(map(str, path)): path for path in paths}


def _short(value: Any) -> str | None:
    """Return what stands for a value in a name, None when nothing does."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("name", "kind", "base", "format") if key in value), None)
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int | float) else None
