"""Write ``docs/reference`` from the code: ``python docs/make_reference.py``. ``make docs`` does it before it builds the site.

Nothing here says what a thing does: names, signatures, defaults and sentences are those of the code and its docstrings.
The pages are not kept in git, so they cannot differ from it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any, get_type_hints

import typer

HERE = Path(__file__).parent
OUT = HERE / "reference"
NOTE = "<!-- Made by docs/make_reference.py. -->\n\n"
_PUBLIC = re.compile(r"^(?!_)|^__call__$")


def prose(text: str | None) -> str:
    """Return a docstring as Markdown: double backticks become single ones, a literal block becomes a fenced one."""
    lines: list[str] = []
    code: list[str] | None = None
    for line in (inspect.cleandoc(text or "")).splitlines():
        if code is not None and (line.startswith(" ") or not line):
            code.append(line)
            continue
        if code is not None:
            lines += _fenced(code)
            code = None
        if line == "Args:":
            lines.append("")
        elif argument := re.match(r"    (\w+): (.*)", line):
            lines.append(f"- `{argument[1]}`: {_escaped(argument[2])}")
        elif line.startswith("        "):
            lines.append("  " + _escaped(line.strip()))
        elif line.endswith("::"):
            lines.append(_escaped(line[:-1]))
            code = []
        else:
            lines.append(_escaped(line))
    return "\n".join(lines + (_fenced(code) if code else []))


def _fenced(code: list[str]) -> list[str]:
    body = textwrap.dedent("\n".join(code)).strip("\n")
    language = "toml" if re.match(r"\[", body) else "python"
    return ["", f"```{language}", body, "```", ""]


def _escaped(line: str) -> str:
    """Return a line with what Markdown would take for markup escaped, outside of code."""
    parts = re.split(r"(``.+?``|`[^`]+`)", line)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = "`" + part.strip("`") + "`"
        else:
            safe = re.sub(r"(?<!^)\*|[<\[\]]|\b_|_\b", r"\\\g<0>", part)  # a star that begins a line is a list's
            parts[i] = re.sub(r"\bdocs/([\w-]+)\.md", r"[\1.md](../\1.md)", safe)
    return "".join(parts)


def directive(kind: str, head: str, body: str, depth: int, *options: str) -> str:
    """Return a directive with its body; ``depth`` says how deep others lie in it."""
    fence = ":" * (3 + depth)
    said = "".join(f":{option}\n" for option in options)
    return f"{fence}{{{kind}}} {head}\n{said}\n{body.strip()}\n{fence}\n"


def signature(member: Any, name: str) -> str:
    """Return ``name(arguments) -> result`` as the code has it, without ``self``; annotations are bare, texts keep quotes."""
    found = inspect.signature(member)
    kept = [_short(p) for p in found.parameters.values() if p.name not in ("self", "cls")]
    text = name + str(found.replace(parameters=kept))
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)


def _short(parameter: inspect.Parameter) -> inspect.Parameter:
    plain = isinstance(parameter.default, str | int | float | tuple | type(None))
    return parameter if plain or parameter.default is parameter.empty else parameter.replace(default=_Dots())


class _Dots:
    def __repr__(self) -> str:
        return "..."


def field_docs(cls: type) -> dict[str, str]:
    """Return attribute -> the string under it, through the bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not base.__module__.startswith("altgrad"):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, after in zip(body, body[1:], strict=False):
            named = field.target if isinstance(field, ast.AnnAssign) else None
            if isinstance(named, ast.Name) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                found[named.id] = inspect.cleandoc(str(after.value.value))
    return found


def class_entry(name: str, cls: type, module: str, *, depth: int = 2) -> str:
    """Return a class with its fields, methods and properties."""
    parts = [prose(inspect.getdoc(cls))]
    docs = field_docs(cls)
    parts += [directive("py:attribute", field, prose(text), 0) for field, text in docs.items() if _PUBLIC.match(field)]
    for key in _members(cls):
        member = inspect.getattr_static(cls, key)
        if isinstance(member, property) or type(member).__name__ == "cached_property":
            getter = member.fget if isinstance(member, property) else member.func  # type: ignore[attr-defined]
            parts.append(directive("py:property", key, prose(inspect.getdoc(getter)), 0))
            continue
        options = []
        if isinstance(member, classmethod | staticmethod):
            options = ["classmethod:" if isinstance(member, classmethod) else "staticmethod:"]
            member = member.__func__
        text = prose(inspect.getdoc(member))
        parts.append(directive("py:method", signature(member, key), text, 0, *options))
    kind = "py:exception" if issubclass(cls, BaseException) else "py:class"
    head = signature(cls, name) if kind == "py:class" and _built_by_hand(cls) else name
    head = re.sub(r" -> None$", "", head)
    return directive(kind, head, "\n\n".join(parts), depth, f"module: {module}")


def _built_by_hand(cls: type) -> bool:
    """Tell whether a class's arguments are worth showing: those of a protocol or an abstract base are not."""
    return not getattr(cls, "_is_protocol", False) and not inspect.isabstract(cls)


def _members(cls: type) -> list[str]:
    """Return what a class, or a base of it in the project, defines and says something about, in the order of the source."""
    found: dict[str, None] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("altgrad"):
            for key, value in vars(base).items():
                raw = value.__func__ if isinstance(value, classmethod | staticmethod) else value
                is_code = (
                    inspect.isfunction(raw) or isinstance(raw, property) or type(raw).__name__ == "cached_property"
                )
                documented = inspect.getdoc(raw.fget if isinstance(raw, property) else raw)
                if is_code and documented and _PUBLIC.match(key):
                    found[key] = None
    return [key for key in found if not inspect.ismemberdescriptor(inspect.getattr_static(cls, key))]


def entry(name: str, thing: Any, module: str) -> str:
    """Return a function, class or value."""
    if inspect.isclass(thing):
        return class_entry(name, thing, module)
    if callable(thing) and inspect.isfunction(thing):
        return directive("py:function", signature(thing, name), prose(inspect.getdoc(thing)), 2, f"module: {module}")
    return directive("py:data", name, prose(_said_of(thing, name)), 2, f"module: {module}")


def _said_of(thing: Any, name: str) -> str:
    if name == "hookimpl":
        return "The decorator that marks a plugin's functions as implementations of [hooks](hooks.md)."
    return inspect.getdoc(thing) or ""


GROUPS = {
    "Casting": ("quantize", "encode", "decode", "Draw"),
    "Formats": ("get_format", "Format", "FloatFormat", "TableFormat", "BlockFormat"),
    "Your own model": ("convert", "revert", "ConversionSummary", "observe", "Observation", "StepCasts", "Recipe"),
    "Experiments": ("run", "load_run", "Run"),
    "Errors": ("AltgradError", "RunFailed"),
    "Plugins": ("hookimpl",),
}


def python_page() -> str:
    """Return what ``import altgrad_core as altgrad`` offers."""
    import altgrad_core

    grouped = {name for names in GROUPS.values() for name in names}
    odd = sorted(grouped ^ set(altgrad_core.__all__))
    assert not odd, f"GROUPS and altgrad_core.__all__ differ: {', '.join(odd)}"
    parts = [
        f"# Python\n\n{NOTE}`import altgrad_core as altgrad` gives these names; [From Python](../python.md) shows them at work. "
        "What lies deeper in the package has docstrings of its own (`help()`), and may move."
    ]
    for title, names in GROUPS.items():
        parts.append(f"## {title}")
        parts += [entry(name, getattr(altgrad_core, name), "altgrad_core") for name in names]
    return "\n\n".join(parts) + "\n"


def testing_page() -> str:
    """Return the suites for third parties."""
    import altgrad_core.testing as testing

    parts = [f"# Test suites\n\n{NOTE}{prose(testing.__doc__)}"]
    parts += [entry(name, getattr(testing, name), "altgrad_core.testing") for name in testing.__all__]
    return "\n\n".join(parts) + "\n"


BUILT = (
    ("altgrad_core.recipes.linear", "CastLayer"),
    ("altgrad_core.numerics.scaling", "ScalingPolicy"),
    ("altgrad_core.numerics.scaling", "Scale"),
    ("altgrad_core.training.data", "TokenData"),
    ("altgrad_core.training.data", "Workspace"),
    ("altgrad_core.training.probes", "Probe"),
    ("altgrad_core.training.probes", "StepContext"),
    ("altgrad_core.training.metrics", "Measurements"),
    ("altgrad_core.training.events", "MetricSink"),
    ("altgrad_core.training.events", "StateLost"),
    ("altgrad_core.training.checkpoint", "CheckpointBackend"),
    ("altgrad_core.experiments.launch", "Launcher"),
)


def hooks_page() -> str:
    """Return every hook with its arguments, what comes with AltGrad for it, and what a ``build`` function returns."""
    from altgrad_core import hookspecs
    from altgrad_core.plugins import KINDS, installed

    specs = [(n, f) for n, f in vars(hookspecs).items() if n.startswith("altgrad_register_")]
    protocols = [(n, c) for n, c in vars(hookspecs).items() if getattr(c, "_is_protocol", False) and n != "Protocol"]
    parts = [f"# Hooks\n\n{NOTE}{prose(hookspecs.__doc__)}", "## The hooks"]
    for name, spec in specs:
        kind = KINDS[name]
        comes = [f"`{n}`" for n in installed().names(kind) if _ours(kind, n)]
        listed = "[all formats](formats.md)" if kind == "format" else ", ".join(comes)
        said = f"{prose(inspect.getdoc(spec))}\n\nBuilt in: {listed}."
        parts.append(directive("py:function", signature(spec, name), said, 2))
    parts.append("## What they hand over")
    for name, cls in protocols:
        call = cls.__call__
        body = prose(inspect.getdoc(cls)) + "\n\n" + prose(inspect.getdoc(call))
        parts.append(directive("py:class", signature(call, name), body, 2))
    parts.append("## What is built")
    for module, name in BUILT:
        parts.append(class_entry(name, getattr(importlib.import_module(module), name), module))
    return "\n\n".join(parts) + "\n"


def _ours(kind: str, name: str) -> bool:
    from altgrad_core.plugins import installed

    return installed().get(kind, name).plugin.startswith("altgrad_")


def cli_page() -> str:
    """Return every verb with all that ``--help`` says of it."""
    from altgrad_core.cli.main import app

    root = app.registered_callback
    assert root is not None
    parts = [
        f"# Command line\n\n{NOTE}All that `altgrad VERB --help` says. Before the verb there are:\n\n"
        f"{_parameters(root.callback)}\n\nExit status: 0 done (a run that an alert stopped is a result, too), 1 a run failed, 2 the "
        "input is wrong, 128 + signal interrupted, after a checkpoint: 130 for Ctrl-C, 143 for SIGTERM."
    ]
    for words, callback in verbs(app):
        parts.append(f"## altgrad {words}\n\n{prose(inspect.getdoc(callback))}\n\n{_parameters(callback)}")
    return "\n\n".join(parts) + "\n"


def verbs(app: Any, before: str = "") -> list[tuple[str, Any]]:
    """Return (words, function) of every verb, those of groups with two words."""
    found = [(f"{before}{c.name or c.callback.__name__}", c.callback) for c in app.registered_commands]
    for group in app.registered_groups:
        found += verbs(group.typer_instance, f"{group.name} ")
    return found


def parameters(callback: Any) -> list[tuple[str, str, str]]:
    """Return (how it is written, default, meaning) of a verb's arguments and options."""
    hints = get_type_hints(callback, include_extras=True)
    found = []
    for name, parameter in inspect.signature(callback).parameters.items():
        kind, info = hints[name].__origin__, hints[name].__metadata__[0]
        given = [text for text in (info.default, *(info.param_decls or ())) if isinstance(text, str)]
        if isinstance(info, typer.models.ArgumentInfo):
            written = info.metavar or name.upper()
            written += " ..." if "list" in str(kind) else ""
        else:
            flag = kind is bool
            dashed = name.strip("_").replace("_", "-")
            written = " / ".join(given) or (f"--{dashed} / --no-{dashed}" if flag else f"--{dashed}")
            written += "" if flag else f" {info.metavar or _VALUES.get(kind, 'TEXT')}"
        empty = parameter.default is None or parameter.default is False or parameter.default is inspect.Parameter.empty
        needed = "needed" if parameter.default is inspect.Parameter.empty else ""
        found.append((written, needed if empty else f"`{parameter.default}`", " ".join((info.help or "").split())))
    return found


_VALUES = {int: "NUMBER", float: "NUMBER", Path: "PATH"}


def _parameters(callback: Any) -> str:
    lines = ["| argument or option | default | meaning |", "| --- | --- | --- |"]
    for written, default, meaning in parameters(callback):
        lines.append(f"| `{written}` | {default} | {_escaped(meaning)} |".replace("\\|", "|"))
    return "\n".join(lines) if len(lines) > 2 else ""


def formats_page() -> str:
    """Return all registered formats by family, with their constants and the density of their values."""
    from altgrad_core.analysis.formats.facts import facts_of, number
    from altgrad_core.analysis.formats.listing import families

    numbers = [
        "format",
        "bits",
        "exponent / mantissa",
        "largest",
        "smallest normal",
        "smallest",
        "range",
        "digits",
        "specials",
    ]
    words = ["format", "torch dtype", "native on", "source"]
    parts = [
        f"# Formats\n\n{NOTE}`altgrad formats` prints this table, `altgrad formats NAME` one format in full: its codes, its "
        "precision by magnitude, all its values. What each does to a training is [measured](../formats.md).\n\n"
        "Any name `e<E>m<M>` works, too, with the suffixes `fn` (no infinities), `fnuz` (no infinities, one zero) and `f` "
        "(all codes finite), and any `binary<K>p<P><s|u><e|f>` of IEEE P3109. `range` is 20 log10 of the largest over the "
        "smallest value, `digits` the significand's bits in decimal digits. Of a block format the constants are its "
        "element's, before the scale of the block; its bits include the share of the scale.\n\n"
        "The figures show how many values a format has in each binade, from 2^e to 2^(e+1): the height is its precision "
        "there, the width its range."
    ]
    for title, found in families():
        head = re.split(r"[:;]", title)[0]
        facts = [facts_of(format) for format in found]
        constants = [
            [f"`{f.name}`", f"{f.bits:g}", f.split, number(f.max_finite), number(f.min_normal), number(f.min_positive),
             f"{f.range_db:.0f} dB", f"{f.digits:.1f}", f.specials]
            for f in facts
        ]  # fmt: skip
        origins = [[f"`{f.name}`", f"`{f.torch_dtype}`" if f.torch_dtype else "", f.native, f.source] for f in facts]
        notes = [f"- `{f.name}`: {_escaped(f.note)}" for f in facts if f.note]
        tables = [_table(numbers, constants), _table(words, origins)]
        parts.append(
            "\n\n".join([f"## {head}", f"{title}.", density(found), *tables, *(["\n".join(notes)] if notes else [])])
        )
    return "\n\n".join(parts) + "\n"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([_escaped(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def density(formats: Any) -> str:
    """Return the figure of a family: values in each binade, in the page's colours.

    Formats of scales are left out where there are others: their range would squeeze these together.
    """
    from altgrad_core.analysis.figures import drawing, new_axes, styles, to_svg
    from altgrad_core.analysis.formats.figure import draw_density, powers_of_two

    formats = [format for format in formats if format.signed] or formats
    salt = f"density-{formats[0].name}"
    looks = styles([False] * len(formats))
    with drawing(salt):
        figure, axes = new_axes(7.4, 3.0 + 0.16 * (len(formats) // 4))
        for format, look in zip(formats, looks, strict=True):
            drawn = {"color": look.placeholder, "linestyle": look.dashes, "linewidth": look.width}
            draw_density(axes, format, drawn)
        powers_of_two(axes.xaxis, axes.set_xscale)
        powers_of_two(axes.yaxis, axes.set_yscale)
        axes.set_xlabel("magnitude")
        axes.set_ylabel("values in the binade")
        figure.legend(loc="outside upper left", ncols=4, frameon=False)
        svg = to_svg(figure, looks, salt)
    lines = [line for line in svg.splitlines() if line.strip()]
    names = ", ".join(format.name for format in formats)
    svg = "\n".join(lines).replace("<svg", f'<svg role="img" aria-label="Values in each binade of {names}"', 1)
    return f'<div class="density">\n{svg}\n</div>'


def changelog_page() -> str:
    """Return the changelog."""
    return (HERE.parent / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](../")


PAGES = {
    "python": python_page,
    "testing": testing_page,
    "hooks": hooks_page,
    "cli": cli_page,
    "formats": formats_page,
    "changelog": changelog_page,
}


def main(out: Path = OUT) -> None:
    """Write all pages; one that would stay as it is is left alone, so that Sphinx does not read it again."""
    out.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        path, text = out / f"{name}.md", page()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
