"""Links lead somewhere: in the pages, to files and headings that are there; in the built site, every one of them."""

from __future__ import annotations

import html.parser
import re
import subprocess
import sys
import urllib.parse
from pathlib import Path

import page_blocks
import pytest

PAGES = page_blocks.written_pages()
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code forges and the site make them."""
    found: set[str] = set()
    for heading in re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    ):
        slug = (
            re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).strip().replace(" ", "-")
        )
        same = [slug, *(f"{slug}-{n}" for n in range(1, 20))]
        found.add(next(name for name in same if name not in found))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(without_code(page.read_text())):
        address = urllib.parse.urlsplit(target)
        if address.scheme:  # nothing is fetched
            assert address.scheme in ("http", "https"), f"{page.name}: {target}"
            assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", address.netloc), f"{page.name}: {target}"
            continue
        path = (page.parent / urllib.parse.unquote(address.path)).resolve() if address.path else page
        if path.is_relative_to(page_blocks.DOCS / "reference"):  # made when the site is built, which checks it
            continue
        assert path.exists(), f"{page.name}: {target}"
        if address.fragment:
            assert address.fragment in anchors(path), f"{page.name}: {target}; there are {sorted(anchors(path))}"


class Links(html.parser.HTMLParser):
    """The ids of a page and all that it points at."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key in ("id", "name") and value:
                self.ids.add(value)
            if value and (
                (key == "href" and tag in ("a", "link", "use")) or (key == "src" and tag in ("img", "script"))
            ):
                self.targets.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` does: a warning is an error."""
    pytest.importorskip("sphinx", reason="the site is built with the packages of altgrad[docs]")
    out = tmp_path_factory.mktemp("site") / "html"
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-b",
        "html",
        "-W",
        "--keep-going",
        "-q",
        "-E",
        str(page_blocks.DOCS),
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    found = {page: Links(page) for page in site.rglob("*.html")}
    checked = 0
    for page, links in found.items():
        for target in links.targets:
            address = urllib.parse.urlsplit(target)
            if address.scheme or address.netloc:
                assert address.scheme in ("https", "http", "data"), f"{page.name}: {target}"
                continue
            path = (page.parent / urllib.parse.unquote(address.path)).resolve() if address.path else page
            assert path.exists(), f"{page.relative_to(site)}: {target}"
            if address.fragment and path in found:
                assert urllib.parse.unquote(address.fragment) in found[path].ids, f"{page.relative_to(site)}: {target}"
            checked += 1
    assert checked > 1000


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    """Search, fonts, styles and scripts are its own, so that it can be read without a network."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img|link)[^>]*(?:src|href)="(?:https?:)?//', text), page
    assert (site / "searchindex.js").stat().st_size > 10_000
