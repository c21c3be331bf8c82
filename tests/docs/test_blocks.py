"""Every code block of every page is run, loaded or checked, or says why not; a page whose commands print is followed."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import make_reference
import page_blocks as pages
import pytest
import tomli
import typer
from page_blocks import Block
from typer.testing import CliRunner

from altgrad_core.errors import AltgradError

ROOT = pages.ROOT
ALL = [block for page in pages.written_pages() for block in pages.blocks(page)]
# What is not ours, and is only named: none of it is run.
FOREIGN = {"git", "cd", "source", "sed", "wandb", "tensorboard", "aim"}


def done_here(block: Block) -> bool:
    """Whether this file does what there is to do with a block: its marker does not say that something else does."""
    return block.said("not run") is None and block.said("run by") is None


def test_a_block_is_of_a_kind_that_is_checked() -> None:
    kinds = ("not run", "run by", "file", "output", "output until")
    for block in ALL:
        assert block.language in ("", "sh", "toml", "python"), f"{block}: no test knows the language '{block.language}'"
        assert any(block.said(kind) is not None for kind in kinds) or not block.marker or "Made by" in block.marker, (
            f"{block}: '{block.marker}' is none of {', '.join(kinds)}"
        )
        for kind in ("not run", "run by"):
            assert block.said(kind) != "", f"{block}: '{kind}' says no reason"
        if not block.language and done_here(block) and not block.marker.startswith("output"):
            assert block.text.startswith("$ altgrad "), f"{block}: text that no test makes; say '<!-- not run: WHY -->'"


@pytest.mark.parametrize("block", [b for b in ALL if b.said("run by") is not None], ids=str)
def test_what_runs_a_block_is_there(block: Block) -> None:
    file, _, name = str(block.said("run by")).partition("::")
    assert f"def {name}(" in (ROOT / file).read_text(), f"{block}: {file} has no {name}"


# What PyTorch's compiler does on its way is its own business.
@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not:DeprecationWarning")
@pytest.mark.parametrize("page", sorted({b.page for b in ALL if b.language == "python"}), ids=lambda page: page.stem)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the top of the page to its end, as one program; a block that is a file compiles."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in pages.blocks(page):
        if block.language == "python" and done_here(block):
            code = compile(block.text, str(block), "exec")
            if block.said("file") is None:
                exec(code, names)


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "toml" and done_here(b)], ids=str)
def test_toml_loads(block: Block, tmp_path: Path) -> None:
    """As an experiment; what has no run is a part of one. Only plugins that the page itself writes may be missing."""
    from altgrad_core.experiments.config import load_experiment

    if block.said("file") and str(block.said("file")).endswith("pyproject.toml"):
        assert tomli.loads(block.text)["project"]["entry-points"]["altgrad"]
        return
    has = set(tomli.loads(block.text))
    start = ("" if "experiment" in has else 'experiment = { name = "x" }\n') + (
        "" if "run" in has else 'run = [{ name = "r" }]\n'
    )
    path = tmp_path / "e.toml"
    path.write_text(start + block.text)
    own = re.findall(r'register\("(\w+)"', "".join(b.text for b in pages.blocks(block.page)))
    error = ""
    try:
        load_experiment(path)
    except AltgradError as raised:
        error = str(raised)
    unknown = re.findall(r"unknown (?:[\w -]+) '(\w+)'", error, re.IGNORECASE)
    assert bool(unknown) == bool(error), f"{block}: {error}"
    assert set(unknown) <= set(own), f"{block}: {error}"


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "sh"], ids=str)
def test_commands_exist(block: Block, tmp_path: Path) -> None:
    """Each command of ours has that verb and these options, and --set sets what there is; others are of a known tool."""
    for line in pages.commands(block.text):
        for part in re.split(r" && | \| ", line):
            check_command(shlex.split(part.replace("<this repository>", "URL"), comments=True), str(block))


def check_command(words: list[str], where: str) -> None:
    while re.match(r"[A-Z_]+=", words[0]):  # a variable for this command alone
        words = words[1:]
    tool, *rest = words
    if tool == "altgrad":
        for written in itertools.product(*(word.split("|") for word in rest)):  # one|other stands for both
            check_altgrad(list(written), where)
    elif tool == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets), f"{where}: {words}"
    elif tool == "python":
        known = rest[0] in ("-m", "-c") or (ROOT / rest[0]).is_file() or rest[0] in files_of_pages()
        assert known, f"{where}: there is no {rest[0]}"
    elif tool == "pip":
        extras = {
            extra.strip() for name in rest for extra in "".join(re.findall(r"\[(.*)\]", name)).split(",") if extra
        }
        known = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert extras <= set(known), f"{where}: {words}"
    else:
        assert tool in FOREIGN, f"{where}: no test knows the tool '{tool}'"


def check_altgrad(words: list[str], where: str) -> None:
    from altgrad_core.cli.main import app
    from altgrad_core.experiments.config import load_experiment

    if words and words[0].startswith("--"):
        said = [written for written, _, _ in make_reference.parameters(app.registered_callback.callback)]
        assert set(words) <= {"--help", *said}, f"{where}: {words}"
        return
    if ">" in words:
        words = words[: words.index(">")]
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        verb, *words = words or [""]
        assert verb in command.commands, f"{where}: there is no altgrad {verb}"
        command = command.commands[verb]
    context = command.make_context(command.name, list(words))  # raises what the command line would say
    file, overrides = context.params.get("file"), list(context.params.get("set_") or ())
    if file is not None and overrides and (ROOT / file).is_file():
        load_experiment(ROOT / file, overrides=overrides)


def files_of_pages() -> set[str]:
    return {str(block.said("file")) for block in ALL if block.said("file")}


TRANSCRIPTS = [b for b in ALL if not b.language and done_here(b) and b.text.startswith("$ ")]


@pytest.mark.parametrize("block", TRANSCRIPTS, ids=str)
def test_a_transcript_is_what_the_command_prints(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    from altgrad_core.cli.main import app

    monkeypatch.setenv("COLUMNS", "100")
    command, _, output = block.text.removeprefix("$ altgrad ").partition("\n")
    done = CliRunner().invoke(app, shlex.split(command))
    assert (done.exit_code, done.output) == (0, output)


FOLLOWED = [page for page in pages.written_pages() if pages.has_outputs(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", FOLLOWED, ids=lambda page: page.stem)
def test_a_page_that_is_followed_prints_what_it_shows(page: Path, tmp_path: Path) -> None:
    """In an empty folder, from top to end. Numbers differ between machines: what begins the lines is compared."""
    for block, printed in pages.follow(page, tmp_path):
        assert beginnings(printed) == beginnings(block.text), f"{block}: run python docs/page_blocks.py {page.stem}"


def beginnings(text: str) -> list[str]:
    """Return the first words of the lines down to the legend of a table."""
    lines = text.partition("\n* ")[0].splitlines()
    return [re.sub(r"\d+", "N", line.split()[0]) for line in lines if line.strip()]
