"""``altgrad new``: a plugin package that works as it is, or an experiment file. Writes from templates; needs no network."""

from __future__ import annotations

import datetime
import re
import shlex
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from altgrad_core.errors import AltgradError, unknown

app = typer.Typer(help="Write a plugin package, or an experiment file, that works as it is.", no_args_is_help=True)

SPDX = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause", "none": ""}
KINDS = {
    "format": "a number format",
    "scaling": "a scaling policy",
    "sink": "a metric sink",
    "checkpoint": "a checkpoint backend",
    "probe": "a probe",
    "dataset": "a dataset",
}
_CHECKED = ("format", "scaling", "sink", "checkpoint")
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def _package(kind: str, name: str, license: str, author: str | None, folder: Path) -> None:
    _check_name(kind, name)
    if license not in SPDX:
        raise AltgradError(unknown("license", license, SPDX))
    package, module = f"altgrad-{kind}-{name.replace('_', '-')}", f"altgrad_{kind}_{name}"
    words = _words(kind=kind, name=name, package=package, module=module, author=author, spdx=SPDX[license])
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{module}.py": f"{kind}/module.py",
        f"test_{name}.py": f"{kind}/test.py",
        "experiment.toml": f"{kind}/experiment.toml",
    }
    if SPDX[license]:
        files["LICENSE"] = f"licenses/{license}"
    target = folder / package
    if target.exists():
        raise AltgradError(f"{target} is there already; nothing was written. Remove it, or choose another name.")
    texts = {file: _render(template, words) for file, template in files.items()}
    target.mkdir(parents=True)
    for file, text in texts.items():
        (target / file).write_text(text, encoding="utf-8")
    checks = [("altgrad", "plugins", "check", f"{kind}/{name}")] if kind in _CHECKED else []
    shows = ("altgrad", "formats" if kind == "format" else "plugins", name)
    typer.echo(f"Wrote {target}: {', '.join(files)}")
    _say_next(("pip", "install", "-e", target), shows, ("altgrad", "run", target / "experiment.toml"), *checks)


def _verb(kind: str, what: str) -> Callable[..., None]:
    def verb(
        name: Annotated[str, typer.Argument(help="Its name in experiments.toml: lower case, such as my_idea.")],
        license: Annotated[str, typer.Option(help="apache-2.0, mit, bsd-3-clause or none.")] = "apache-2.0",
        author: Annotated[str | None, typer.Option(help="Who holds the copyright.", show_default="the authors")] = None,
        folder: Annotated[Path, typer.Option("--in", help="Folder to write the package into.")] = Path("."),
    ) -> None:
        _package(kind, name, license, author, folder)

    verb.__doc__ = f"Write a package with {what}: module, conformance test, experiment, README, licence."
    return verb


def experiment(
    name: Annotated[str, typer.Argument(help="Its name, and that of its folder under runs/.")],
    recipe: Annotated[str, typer.Option(help="What is compared with BF16: a recipe or a format.")] = "e4m3fn",
    folder: Annotated[Path, typer.Option("--in", help="Folder to write the file into.")] = Path("."),
) -> None:
    """Write NAME.toml, an experiment file with every line explained."""
    from altgrad_core.plugins import installed

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise AltgradError(f"An experiment's name is letters, digits, '-', '_' and '.', got '{name}'.")
    if recipe == "bf16":
        raise AltgradError("The file's baseline is 'bf16'; --recipe is what is compared with it, such as e4m3fn.")
    if installed().find("recipe", recipe) is None:
        from altgrad_core.numerics.registry import get_format

        get_format(recipe)  # or it says what there is
    target = folder / f"{name}.toml"
    if target.exists():
        raise AltgradError(f"{target} is there already; nothing was written. Remove it, or choose another name.")
    text = _render("experiment/experiment.toml", {"name": name, "recipe": recipe, "file": target.name})
    folder.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    typer.echo(f"Wrote {target}")
    _say_next(("altgrad", "check", target), ("altgrad", "run", target))


def _check_name(kind: str, name: str) -> None:
    """Raise ``AltgradError`` for a name that no package can have, or that is taken."""
    from altgrad_core.numerics.names import parse_format
    from altgrad_core.plugins import installed

    if not _NAME.fullmatch(name):
        raise AltgradError(
            f"A {kind}'s name here is lower-case letters and digits, parts joined by '_', and begins with a letter, since a "
            f"Python module is named after it; got '{name}'."
        )
    taken = installed().find(kind, name)
    if taken is not None:
        raise AltgradError(f"The {kind} '{name}' is already registered by '{taken.plugin}'. Choose another name.")
    if any(row.name == name for row in installed().rows):
        raise AltgradError(f"A plugin called '{name}' is installed already. Choose another name.")
    if kind == "format" and installed().find("recipe", name) is not None:
        raise AltgradError(f"'{name}' is the name of a recipe, which comes before a format's. Choose another name.")
    if kind == "format" and parse_format(name) is not None:
        raise AltgradError(
            f"'{name}' already means a format, by the rule of names e<E>m<M>. Choose a name that is none of those."
        )


def _words(*, kind: str, name: str, package: str, module: str, author: str | None, spdx: str) -> dict[str, Any]:
    from altgrad_core.hookspecs import HOOKSPEC_VERSION

    return {
        "kind": kind,
        "name": name,
        "package": package,
        "module": module,
        "title": "".join(part.capitalize() for part in name.split("_")),
        "constant": name.upper(),
        "author": author or f"the authors of {package}",
        "year": datetime.datetime.now(datetime.UTC).year,
        "spdx": spdx,
        "hookspec": HOOKSPEC_VERSION,
    }


def _render(template: str, words: dict[str, Any]) -> str:
    import jinja2

    text = (resources.files("altgrad_core") / "templates" / f"{template}.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(text).render(words)


def _say_next(*commands: tuple[str | Path, ...]) -> None:
    typer.echo("Next:")
    for command in commands:
        typer.echo(f"  {shlex.join(map(str, command))}")


for _kind, _what in KINDS.items():
    app.command(name=_kind)(_verb(_kind, _what))
app.command()(experiment)
