"""A report, parsed: is it well-formed, what does it load, which figures and files does it hold."""

from __future__ import annotations

import csv
import io
from html.parser import HTMLParser
from urllib.parse import unquote

VOID = {"meta", "link", "br", "hr", "img", "input", "col"}


class Page(HTMLParser):
    """Checks nesting and ids while it parses; keeps links, figures, text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.files: dict[str, str] = {}
        self.figures: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        its = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if its.get("id"):
            self.ids.append(its["id"] or "")
        if tag == "figure":
            self.figures.append(its["id"] or "")
        for name in ("href", "src", "action", "data"):
            if name in its:
                self.loads.append(its[name] or "")
        if its.get("download"):
            self.files[its["download"] or ""] = unquote((its["href"] or "").partition(",")[2])
        assert tag not in ("script", "link", "iframe", "object", "embed")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))
