"""Strict structuring of single types."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest

from altgrad_core.spelling import key_text, shown
from altgrad_core.structure import StructureError, structure, unstructure


class Colour(enum.Enum):
    RED = "red"


def _even(instance: Inner, attribute: Any, value: int) -> None:
    if value % 2:
        raise ValueError(f"x must be even, got {value}")


def _below_x(instance: Inner, attribute: Any, value: int) -> None:
    if value >= instance.x:
        raise ValueError(f"must be below x ({instance.x}), got {value}")


@attrs.frozen(kw_only=True)
class Inner:
    x: int = attrs.field(default=4, validator=_even)
    y: int = attrs.field(default=0, validator=_below_x)


@attrs.frozen(kw_only=True)
class Outer:
    inner: Inner = attrs.field(factory=Inner)
    maybe: float | None = None
    either: int | str = 0
    pair: tuple[int, str] = (0, "")
    table: dict[str, int] = attrs.field(factory=dict)
    where: Path = Path("here")
    colour: Colour = Colour.RED
    names: list[str] = attrs.Factory(list)
    either_table: str | Inner = "x"


@attrs.frozen
class Checked:
    low: int
    high: int

    def __attrs_post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high})")


@pytest.mark.parametrize("hint", [int, float, bool, str])
@pytest.mark.parametrize("value", [1, 1.5, True, "1"])
def test_nothing_is_coerced_but_an_integer_to_a_number(hint: type, value: Any) -> None:
    if type(value) is hint or (type(value), hint) == (int, float):
        assert structure(value, hint) == value
        assert type(structure(value, hint)) is hint
    else:
        with pytest.raises(StructureError, match=r"^expected "):
            structure(value, hint)


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        ({"inner": {"x": 3}}, Outer, "inner.x: must be even, got 3"),
        ({"inner": {"y": 4}}, Outer, "inner.y: must be below x (4), got 4"),
        ({"inner": {"x": "4", "y": 9}}, Outer, 'inner.x: expected an integer, got "4"'),
        ({"maybe": "x"}, Outer, 'maybe: expected a number, got "x"'),
        ({"either": 1.5}, Outer, "either: expected an integer or a text in quotes, got 1.5"),
        ({"either_table": {"x": 1}}, Outer, "either_table.x: must be even, got 1"),
        ({"pair": [1]}, Outer, "pair: expected an array of 2, got [1]"),
        ({"pair": ["a", 1]}, Outer, 'pair[0]: expected an integer, got "a"\npair[1]: expected a text in quotes, got 1'),
        ({"table": {"a b": 1.5}}, Outer, 'table."a b": expected an integer, got 1.5'),
        ({"table": []}, Outer, "table: expected a table, got []"),
        ({"colour": "blue"}, Outer, "colour: 'blue' is not a valid Colour"),
        ({"names": "abc"}, Outer, 'names: expected an array, got "abc"'),
        ({"low": 2, "high": 1}, Checked, "low (2) is above high (1)"),
        ({}, Checked, "low: missing; it has no default\nhigh: missing; it has no default"),
        ("fas", Literal["fast", "slow", 1], 'expected one of "fast", "slow", 1, got "fas". Did you mean \'fast\'?'),
        (True, Literal["fast", 1], 'expected one of "fast", 1, got true'),
        (10**400, float, "expected a number that fits a double, got an integer beyond"),
        ("\udc80", str, "expected text that UTF-8 can hold, got bytes of another encoding"),
    ],
)  # fmt: skip
def test_messages(value: Any, hint: Any, message: str) -> None:
    with pytest.raises(StructureError) as caught:
        structure(value, hint)
    assert str(caught.value) == message


def test_round_trip() -> None:
    value = Outer(inner=Inner(x=8), either="s", pair=(1, "b"), table={"k": 1}, where=Path("a/b"), names=["n"])
    table = unstructure(value)
    assert "maybe" not in table
    assert structure(table, Outer) == value
    assert structure(value, Outer) is value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"), ("a\nb", '"a\\nb"'), ([1, {"a": [2]}], "[1, { a = [2] }]"), ({}, "{}"), (float("inf"), "inf"),
        ("x" * 100, '"' + "x" * 56 + "..."), (None, "None"),
    ],
)  # fmt: skip
def test_shown(value: Any, text: str) -> None:
    assert shown(value) == text


def test_key_text() -> None:
    assert key_text(("run", 0, "recipe.scaling", "a-b")) == 'run[0]."recipe.scaling".a-b'
