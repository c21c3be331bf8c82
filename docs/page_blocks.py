"""The code blocks of the pages: what each is, and how a page is followed from top to bottom in an empty folder.

A comment right before a block says what it is, where its language does not:

    <!-- not run: REASON -->       nothing is done with it
    <!-- run by: FILE::TEST -->    that test does it
    <!-- file: NAME -->            the content of a file, which the commands after it find
    <!-- output -->                what the last command before it printed
    <!-- output until: TEXT -->    of that, what comes before the first line that begins with TEXT

``python docs/page_blocks.py [PAGE ...]`` follows the pages that have outputs and writes what is printed today into them (some
minutes for all).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import tomli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
COLUMNS = "90"
"""The width of a page's blocks on the site, in characters."""
RUN = ("altgrad", "python")
"""The commands that are run when a page is followed. ``pip install -e FOLDER`` is done without pip, which would want a network."""
_FENCE = re.compile(
    r"^(?P<fence>`{3,}|:{3,})(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=fence)[ \t]*$", re.MULTILINE | re.DOTALL
)
_COMMENT = re.compile(r"<!--\s*((?:(?!-->).)*?)\s*-->\n*\Z", re.DOTALL)


@attrs.frozen
class Block:
    """A fenced block of a page."""

    page: Path
    """Where it is."""
    line: int
    """Line of its fence, from 1."""
    language: str
    """What stands behind the fence: ``python``, ``toml``, ``sh``, or nothing."""
    marker: str
    """The comment right before it, empty when there is none."""
    text: str
    """What is between the fences."""

    def said(self, key: str) -> str | None:
        """Return what the marker says behind ``key:``, empty where it is ``key`` alone, None where it is another."""
        found = re.fullmatch(rf"{key}(?::\s*(.*))?", self.marker, re.DOTALL)
        return None if found is None else found[1] or ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def written_pages() -> list[Path]:
    """Return the pages that people write: README, changelog and all of ``docs`` but what is made when the site is built."""
    made = (DOCS / "reference", DOCS / "_build")
    found = [page for page in DOCS.glob("**/*.md") if not any(page.is_relative_to(folder) for folder in made)]
    return sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *found])


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page in order, without the directives of index pages."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        comment = _COMMENT.search(text[: match.start()])
        language = match["language"].strip()
        if not language.startswith("{"):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(page, line, language, comment[1] if comment else "", match["text"]))
    return found


def commands(text: str) -> list[str]:
    """Return the commands of a shell block, one a line, without comments, continued lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def follow(page: Path, folder: Path) -> Iterator[tuple[Block, str]]:
    """Do what a page says in ``folder``; yield each block of output with what was printed instead.

    Files are laid down, and the commands of ``RUN`` run, in the order of the page. Raises ``RuntimeError`` with what was
    printed when a command fails.
    """
    printed = ""
    paths = [folder]
    for block in blocks(page):
        name, end = block.said("file"), block.said("output until")
        if name is not None:
            lay_down(folder / name, block.text)
        elif block.language == "sh" and not block.marker:
            for command in commands(block.text):
                words = shlex.split(command, comments=True)
                if words[:3] == ["pip", "install", "-e"]:
                    install(folder / words[3])
                    paths.append(folder / words[3])
                elif words[0] in RUN:
                    printed = run(command, folder, paths)
        elif block.said("output") is not None:
            yield block, printed
        elif end is not None:
            yield block, re.split(rf"^{re.escape(end)}", printed, maxsplit=1, flags=re.MULTILINE)[0].rstrip() + "\n"


def lay_down(path: Path, text: str) -> None:
    """Write a file, and the empty ``__init__.py`` beside one that lies in a plugin's package."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    if path.name == "plugin.py":
        (path.parent / "__init__.py").touch()


def install(project: Path) -> None:
    """Make a plugin's project look installed to a Python that has its folder on the path."""
    said = tomli.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = project / f"{said['name'].replace('-', '_')}-{said['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {said['name']}\nVersion: {said['version']}\n")
    points = "".join(f"{name} = {value}\n" for name, value in said["entry-points"]["altgrad"].items())
    (info / "entry_points.txt").write_text(f"[altgrad]\n{points}")


def run(command: str, folder: Path, paths: Sequence[Path] = ()) -> str:
    """Run a command line in a folder and return what it printed, without spaces at the ends of lines."""
    environment = {**os.environ, "COLUMNS": COLUMNS, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.strip("\n").splitlines())


def has_outputs(page: Path) -> bool:
    """Tell whether a page shows what its commands print."""
    return any(block.marker.startswith("output") for block in blocks(page))


def main(names: Sequence[str]) -> None:
    """Write what is printed today into the pages of these names, or into all that show it."""
    for page in written_pages():
        if not has_outputs(page) or (names and page.stem not in names):
            continue
        print(page.relative_to(ROOT))
        with tempfile.TemporaryDirectory() as folder:
            outputs = list(follow(page, Path(folder)))
        lines = page.read_text(encoding="utf-8").splitlines(keepends=True)
        for block, printed in reversed(outputs):
            lines[block.line : block.line + block.text.count("\n")] = [printed]
        page.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
