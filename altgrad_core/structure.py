"""Strict structuring: parsed TOML -> attrs classes, with every error at once and the key path of each.

Nothing is coerced: ``"12"``, ``12.7`` and ``true`` are not integers (cattrs by itself would make 12, 12 and 1 of them).
The one widening is an integer where a number is expected. A number is finite: TOML's ``inf`` and ``nan`` are refused.
cattrs finds the hook of a type; the hooks here are strict, and collect problems instead of stopping at the first.
"""

from __future__ import annotations

import collections.abc
import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import attrs
import cattrs

from altgrad_core.errors import AltgradError, nearest, unknown
from altgrad_core.plugins import Choice, Plugins
from altgrad_core.spelling import KeyPath, key_text, shown

T = TypeVar("T")


@attrs.frozen
class Problem:
    """One thing that is wrong."""

    path: KeyPath
    """Keys and array indexes that lead to it."""
    message: str
    """What was expected, what came."""


class StructureError(AltgradError):
    """Everything that is wrong with a value; the text has one line a problem, each with its key path."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{key_text(p.path)}: {p.message}" if p.path else p.message for p in self.problems))


@attrs.frozen
class Collector:
    """Gathers problems, so that one mistake does not hide the next."""

    problems: list[Problem] = attrs.field(factory=list)

    def add(self, path: KeyPath, message: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(path, message))

    @contextmanager
    def at(self, *prefix: str | int) -> Iterator[None]:
        """Catch the ``AltgradError`` of the block and note its problems under ``prefix``."""
        try:
            yield
        except StructureError as error:
            self.problems.extend(Problem((*prefix, *p.path), p.message) for p in error.problems)
        except AltgradError as error:
            self.add(prefix, str(error))

    def check(self) -> None:
        """Raise a ``StructureError`` if there is any problem."""
        if self.problems:
            raise StructureError(self.problems)


def structure(value: Any, cls: type[T]) -> T:
    """Return ``value`` (as parsed from TOML) as an instance of ``cls``, an attrs class or any type hint.

    A value that is an instance of the attrs class already is taken as it is. Raises ``StructureError`` with every
    unknown key, missing key, wrong type and failed validator.
    """
    try:
        return _CONVERTER.structure(value, cls)
    except Exception as error:
        problems = list(_flatten(error, ()))
        raise StructureError(problems) from error


def unstructure(value: Any) -> Any:
    """Return an attrs instance as tables, arrays and scalars that TOML can hold; fields that are None are left out."""
    return _without_none(_CONVERTER.unstructure(value))


def choose(plugins: Plugins, kind: str, value: Any, default: str | None = None) -> Choice:
    """Return the plugin that ``value`` names: ``"delayed"``, or ``{ kind = "delayed", history = 16 }``.

    ``kind`` is one of ``altgrad_core.plugins.KINDS``; a table without the key ``kind`` means ``default``.
    Raises ``StructureError`` when the plugin is unknown or its options are wrong.
    """
    if isinstance(value, Choice):
        return value
    if not isinstance(value, str | Mapping):
        raise StructureError([Problem((), f"expected the name of a {kind} or a table with 'kind', got {shown(value)}")])
    options = {} if isinstance(value, str) else {key: item for key, item in value.items() if key != "kind"}
    name = value if isinstance(value, str) else value.get("kind", default)
    where: KeyPath = ("kind",) if isinstance(value, Mapping) else ()
    collector = Collector()
    if name is None:
        collector.add(where, f"missing; expected one of {_listed(plugins.names(kind))}")
    elif not isinstance(name, str):
        collector.add(where, f"expected the name of a {kind}, got {shown(name)}")
    else:
        with collector.at(*where):
            extension = plugins.get(kind, name)
    collector.check()
    return Choice(extension.name, structure(options, extension.options))


class _Mismatch(ValueError):
    """A value of the wrong type; its text is the message."""


def _expected(what: str, value: Any, advice: str = "") -> _Mismatch:
    return _Mismatch(f"expected {what}, got {shown(value)}{advice}")


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(shown(name) for name in names) or "none"


def _flatten(error: BaseException, path: KeyPath) -> Iterator[Problem]:
    if isinstance(error, StructureError):
        for problem in error.problems:
            yield Problem(path + problem.path, problem.message)
    elif isinstance(error, cattrs.IterableValidationError):
        noted, bare = error.group_exceptions()
        for inner, iterable_note in noted:
            yield from _flatten(inner, (*path, iterable_note.index))
        for inner in bare:
            yield from _flatten(inner, path)
    elif isinstance(error, cattrs.ClassValidationError):
        fields, others = error.group_exceptions()
        for inner, field_note in fields:
            yield from _flatten(inner, (*path, field_note.name))
        for inner in others:
            yield from _flatten(inner, path)
    elif isinstance(error, AltgradError | ValueError | TypeError):
        yield Problem(path, str(error))
    else:
        raise error


def _integer(value: Any, _: Any) -> int:
    if type(value) is not int:
        raise _expected("an integer", value)
    if not -(2**63) <= value < 2**63:
        raise _Mismatch("expected an integer of 64 bits, got one beyond")
    return value


def _number(value: Any, _: Any) -> float:
    if type(value) not in (int, float):
        raise _expected("a number", value)
    try:
        number = float(value)
    except OverflowError:
        raise _Mismatch("expected a number that fits a double, got an integer beyond") from None
    if not math.isfinite(number):  # no limit is infinite, and a run's files (JSON) have no number for it
        raise _expected("a finite number", value)
    return number


def _boolean(value: Any, _: Any) -> bool:
    if type(value) is not bool:
        raise _expected("true or false", value)
    return value


def _text(value: Any, _: Any) -> str:
    if type(value) is not str:
        raise _expected("a text in quotes", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Mismatch("expected text that UTF-8 can hold, got bytes of another encoding") from None
    return value


def _literal(value: Any, hint: Any) -> Any:
    members = get_args(hint)
    for member in members:
        if type(member) is type(value) and member == value:
            return member
    near = nearest(value, [m for m in members if isinstance(m, str)]) if isinstance(value, str) else ""
    raise _expected(f"one of {_listed(members)}", value, f".{near}" if near else "")


def _sequence(value: Any, hint: Any) -> Any:
    origin, arguments = _origin(hint), get_args(hint)
    if not isinstance(value, list | tuple):
        raise _expected("an array", value)
    fixed = origin is tuple and not (len(arguments) == 2 and arguments[1] is ...)
    if fixed and arguments and len(value) != len(arguments):
        raise _expected(f"an array of {len(arguments)}", value)
    element = [arguments[0] if arguments else Any] * len(value) if not fixed or not arguments else list(arguments)
    collector, items = Collector(), []
    for index, (item, kind) in enumerate(zip(value, element, strict=True)):
        with collector.at(index):
            items.append(structure(item, kind))
    collector.check()
    makers: dict[Any, Callable[[list[Any]], Any]] = {tuple: tuple, set: set, frozenset: frozenset}
    return makers.get(origin, list)(items)


def _mapping(value: Any, hint: Any) -> dict[str, Any]:
    arguments = get_args(hint)
    if not isinstance(value, Mapping):
        raise _expected("a table", value)
    collector, items = Collector(), {}
    for key, item in value.items():
        with collector.at(key):
            items[key] = structure(item, arguments[1] if arguments else Any)
    collector.check()
    return items


def _union(value: Any, hint: Any) -> Any:
    members = [member for member in get_args(hint) if member is not types.NoneType]
    if value is None and len(members) < len(get_args(hint)):
        return None
    if len(members) == 1:
        return structure(value, members[0])
    failures = []
    for member in members:
        try:
            return structure(value, member)
        except StructureError as error:
            if attrs.has(member) and isinstance(value, Mapping):
                raise
            failures.append(error.problems[0].message.removeprefix("expected ").partition(", got ")[0])
    raise _expected(" or ".join(failures), value)


def _attrs_class(cls: type[Any]) -> Callable[[Any, Any], Any]:
    attrs.resolve_types(cls)
    fields = {field.alias: field for field in attrs.fields(cls) if field.init}

    def structure_class(value: Any, _: Any) -> Any:
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise _expected("a table", value)
        collector, values = Collector(), {}
        # Validators may look at other fields; this instance has those that are fine.
        partial = object.__new__(cls)
        for key in value:
            if key not in fields:
                collector.add((key,), unknown("key", str(key), fields))
        for key, field in fields.items():
            if key in value:
                with collector.at(key):
                    values[key] = structure(value[key], Any if field.type is None else field.type)
                    object.__setattr__(partial, field.name, values[key])
                    # A run's file names every key: one that says what is so anyway is nobody's doing.
                    if "deprecated" in field.metadata and values[key] != field.default:
                        field.metadata["deprecated"].warn()
            elif field.default is attrs.NOTHING:
                collector.add((key,), "missing; it has no default")
            elif isinstance(field.default, attrs.Factory):  # type: ignore[arg-type]
                factory: Any = field.default
                made = factory.factory(partial) if factory.takes_self else factory.factory()
                object.__setattr__(partial, field.name, made)
            else:
                object.__setattr__(partial, field.name, field.default)
        for key, field in fields.items():
            value_there = getattr(partial, field.name, attrs.NOTHING)
            if value_there is not attrs.NOTHING and field.validator is not None:
                try:
                    field.validator(partial, field, value_there)
                except (ValueError, TypeError, AltgradError) as error:
                    collector.add((key,), _rule(error, field.name, value_there))
                except AttributeError:
                    if not collector.problems:  # not the absence of a field that is wrong itself
                        raise
        collector.check()
        return cls(**values)

    return structure_class


def _rule(error: Exception, name: str, value: Any) -> str:
    """Return a validator's message; those of attrs (``'steps' must be >= 1: 0``) as ``must be >= 1, got 0``."""
    text = str(error.args[0]) if error.args else type(error).__name__
    if text.startswith(f"'{name}' "):
        text = text.removeprefix(f"'{name}' ").removesuffix(f": {value}").removesuffix(f" (got {value!r})")
        return f"{text}, got {shown(value)}"
    return text.removeprefix(f"{name} ")


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [_without_none(item) for item in items]
    return value


_SEQUENCES = (list, tuple, set, frozenset, collections.abc.Sequence)
_MAPPINGS = (dict, collections.abc.Mapping)


def _origin(hint: Any) -> Any:
    return get_origin(hint) or hint


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=True, forbid_extra_keys=True)
    for kind, hook in ((int, _integer), (float, _number), (bool, _boolean), (str, _text)):
        converter.register_structure_hook(kind, hook)
    converter.register_structure_hook_func(lambda hint: _origin(hint) in _SEQUENCES, _sequence)
    converter.register_structure_hook_func(lambda hint: _origin(hint) in _MAPPINGS, _mapping)
    converter.register_structure_hook_func(lambda hint: _origin(hint) in (Union, types.UnionType), _union)
    converter.register_structure_hook_func(lambda hint: _origin(hint) is Literal, _literal)
    converter.register_structure_hook_factory(lambda hint: isinstance(hint, type) and attrs.has(hint), _attrs_class)
    return converter


_CONVERTER = _converter()
