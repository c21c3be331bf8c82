"""Where the keys of a TOML text stand, so that an error of meaning can name line and column.

No TOML library keeps positions. This scanner reads headers, keys and the extent of values, nothing more: it is run
on texts that ``tomli`` has accepted. Should it lose its way all the same, it stops; keys beyond are then reported at
the place of the nearest key it knows.
"""

from __future__ import annotations

import bisect
import contextlib
import re
from typing import Any

import tomli

from altgrad_core.spelling import KeyPath

_SPACE = re.compile(r"[ \t]*")
_FILLER = re.compile(r"(?:[ \t\n]+|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_LONG_BASIC = re.compile(r'"""(?:[^"\\]|\\[\s\S]|"{1,2}(?!"))*"{3,5}')
_LONG_LITERAL = re.compile(r"'''(?:[^']|'{1,2}(?!'))*'{3,5}")
_BASIC = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_LITERAL = re.compile(r"'[^'\n]*'")
_SCALAR = re.compile(r"[^,\]}\n#]+")


class _Lost(Exception):
    """The text is not what the scanner expects."""


class Positions:
    """The key positions of a TOML text."""

    def __init__(self, text: str) -> None:
        self._text = text.replace("\r\n", "\n")
        self._newlines = [match.start() for match in re.finditer("\n", self._text)]
        self._offsets: dict[KeyPath, int] = {(): 0}
        self._elements: dict[KeyPath, int] = {}
        self._at = 0
        with contextlib.suppress(_Lost):
            self._document()

    def find(self, path: KeyPath) -> tuple[int, int]:
        """Return line and column (from 1) of the key at ``path``, or of the nearest key above that is in the text."""
        while path not in self._offsets:
            path = path[:-1]
        offset = self._offsets[path]
        line = bisect.bisect_left(self._newlines, offset)
        start = self._newlines[line - 1] + 1 if line else 0
        return line + 1, offset - start + 1

    def __contains__(self, path: KeyPath) -> bool:
        return path in self._offsets

    def _document(self) -> None:
        table: KeyPath = ()
        while self._skip(_FILLER) < len(self._text):
            if self._take("[["):
                table = self._header(array=True)
            elif self._take("["):
                table = self._header(array=False)
            else:
                self._pair(table)

    def _header(self, *, array: bool) -> KeyPath:
        keys = self._keys()
        path: KeyPath = ()
        for number, (key, offset) in enumerate(keys):
            path = (*path, key)
            self._offsets.setdefault(path, offset)
            if array and number == len(keys) - 1:
                self._elements[path] = self._elements.get(path, -1) + 1
            if path in self._elements:
                path = (*path, self._elements[path])
                self._offsets.setdefault(path, offset)
        self._offsets[path] = keys[-1][1]  # a table's own header beats a mention of it in another one
        self._expect("]]" if array else "]")
        return path

    def _pair(self, table: KeyPath) -> None:
        path = table
        for key, offset in self._keys():
            path = (*path, key)
            self._offsets.setdefault(path, offset)
        self._expect("=")
        self._skip(_SPACE)
        self._value(path)

    def _keys(self) -> list[tuple[str, int]]:
        keys = []
        while True:
            self._skip(_SPACE)
            start = self._at
            if self._match(_BARE):
                keys.append((self._text[start : self._at], start))
            elif self._match(_BASIC) or self._match(_LITERAL):
                keys.append((str(tomli.loads(f"k = {self._text[start : self._at]}")["k"]), start))
            else:
                raise _Lost
            self._skip(_SPACE)
            if not self._take("."):
                return keys

    def _value(self, path: KeyPath) -> None:
        if self._take("["):
            index = 0
            while self._skip(_FILLER) < len(self._text) and not self._take("]"):
                self._offsets.setdefault((*path, index), self._at)
                self._value((*path, index))
                self._skip(_FILLER)
                self._take(",")
                index += 1
        elif self._take("{"):
            while self._skip(_FILLER) < len(self._text) and not self._take("}"):
                self._pair(path)
                self._skip(_FILLER)
                self._take(",")
        elif not any(self._match(p) for p in (_LONG_BASIC, _LONG_LITERAL, _BASIC, _LITERAL, _SCALAR)):
            raise _Lost

    def _skip(self, pattern: re.Pattern[str]) -> int:
        self._match(pattern)
        return self._at

    def _match(self, pattern: re.Pattern[str]) -> bool:
        match = pattern.match(self._text, self._at)
        if match is not None:
            self._at = match.end()
        return match is not None

    def _take(self, token: str) -> bool:
        if self._text.startswith(token, self._at):
            self._at += len(token)
            return True
        return False

    def _expect(self, token: str) -> None:
        self._skip(_SPACE)
        if not self._take(token):
            raise _Lost


def parse_key(text: str) -> tuple[str, ...] | None:
    """Return the parts of a dotted key such as ``train.steps`` or ``a."b.c"``, None when it is not one."""
    try:
        table: Any = tomli.loads(f"{text} = 0") if "\n" not in text else {}
    except tomli.TOMLDecodeError:
        return None
    parts: list[str] = []
    while isinstance(table, dict):
        if len(table) != 1:
            return None
        part, table = next(iter(table.items()))
        parts.append(part)
    return tuple(parts) if table == 0 else None
