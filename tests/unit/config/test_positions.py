"""Every key of a TOML text has its place, however it is written."""

from __future__ import annotations

from typing import Any

import pytest
import tomli
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from altgrad_core.experiments.positions import Positions, parse_key

TEXT = (
    '''# a = comment
top = "# not a comment = 1"
"quoted.key" = 1
'literal' = 'it"s = [ ]'
dotted.inner . deep = 2
[table]
multi = [
  1,  # one ] }
  { x = 1, y = [2, 3] },
]
long = """
[not.a.header]
k = "v" """ # end
raw = \'\'\'
[[neither]]
'''
    "'''"
    + """
date = 1979-05-27 07:32:00
inline = { a = "}", b.c = { d = [] } }
[[run]]
name = "x"
[run.train]
steps = 1
[[run]]
name = "y"
run-2 = 5
[[run.sub]]
z = 1
[[run.sub]]
z = 2
[table.child]
  last = true"""
)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (("top",), (2, 1)),
        (("quoted.key",), (3, 1)),
        (("literal",), (4, 1)),
        (("dotted",), (5, 1)),
        (("dotted", "inner"), (5, 8)),
        (("dotted", "inner", "deep"), (5, 16)),
        (("table",), (6, 2)),
        (("table", "multi"), (7, 1)),
        (("table", "multi", 0), (8, 3)),
        (("table", "multi", 1, "x"), (9, 5)),
        (("table", "multi", 1, "y", 1), (9, 20)),
        (("table", "long"), (11, 1)),
        (("table", "raw"), (14, 1)),
        (("table", "date"), (17, 1)),
        (("table", "inline", "b", "c", "d"), (18, 29)),
        (("run", 0), (19, 3)),
        (("run", 0, "name"), (20, 1)),
        (("run", 0, "train", "steps"), (22, 1)),
        (("run", 1, "name"), (24, 1)),
        (("run", 1, "run-2"), (25, 1)),
        (("run", 1, "sub", 0, "z"), (27, 1)),
        (("run", 1, "sub", 1, "z"), (29, 1)),
        (("table", "child"), (30, 8)),
        (("table", "child", "last"), (31, 3)),
    ],
)
def test_places(path: tuple[str | int, ...], place: tuple[int, int]) -> None:
    assert Positions(TEXT).find(path) == place
    assert Positions(TEXT.replace("\n", "\r\n")).find(path) == place


def test_what_is_missing_stands_at_its_table() -> None:
    positions = Positions(TEXT)
    assert positions.find(("run", 1, "train", "steps")) == (23, 3)
    assert positions.find(("nothing",)) == (1, 1)


def test_a_table_that_is_mentioned_first_stands_at_its_own_header() -> None:
    assert Positions("[a.b]\nx = 1\n[a]\ny = 1\n").find(("a", "z")) == (3, 2)


def test_text_that_is_no_toml_stops_the_scanner_quietly() -> None:
    assert Positions("a = 1\nb = = 2\n").find(("a",)) == (1, 1)


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [inner for key, item in items for inner in _paths(item, (*path, key))]


_scalars = st.one_of(
    st.booleans(), st.integers(-100, 100), st.floats(allow_nan=False), st.text(max_size=8), st.dates(),
    st.sampled_from(["#", "=", "]", "}", '"""', "'''", "\n[x]\n", "\\", '"', "a\r\nb"]),
)  # fmt: skip
_keys = st.one_of(st.sampled_from(["a", "b.c", "", "#", "=", '"', "'", "]", "ü"]), st.text(max_size=4))
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3),
    max_leaves=10,
)


@given(document=st.dictionaries(_keys, _values, max_size=5), multiline=st.booleans())
def test_every_path_of_any_document_has_a_place(document: dict[str, Any], multiline: bool) -> None:
    text = tomli_w.dumps(document, multiline_strings=multiline)
    positions = Positions(text)
    lines = text.split("\n")
    for path in _paths(tomli.loads(text)):
        assert path in positions, (path, text)
        line, column = positions.find(path)
        assert 1 <= line <= len(lines)
        assert 1 <= column <= len(lines[line - 1]) + 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("train.steps", ("train", "steps")),
        ('a."b.c"', ("a", "b.c")),
        ("'x' . y", ("x", "y")),
        ("", None),
        ("a..b", None),
        ("a b", None),
        ("a = 1\nb", None),
        ("# a", None),
    ],
)
def test_parse_key(text: str, parts: tuple[str, ...] | None) -> None:
    assert parse_key(text) == parts
