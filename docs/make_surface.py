"""Write ``docs/public-surface.txt``, what others may build on: ``python docs/make_surface.py``.

Names and signatures of ``altgrad_core`` and ``altgrad_core.testing``, what plugins subclass and call, the hooks, the command
line, the keys of experiments.toml, the kinds of events, the metrics. A test compares the file with the code, and the
changelog with the file: its unreleased section ends with the first digits of the file's sha256. Whoever changes the surface
says in the changelog what changed, and then runs ``python docs/make_surface.py --in-changelog``.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import attrs
import typer

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "public-surface.txt"
CHANGELOG = ROOT / "CHANGELOG.md"
MARK = re.compile(r"^Public surface: `([0-9a-f]{12})`\.$", re.MULTILINE)

# What a plugin subclasses, gets, returns and calls, beside the names of altgrad_core itself.
FOR_PLUGINS = {
    "altgrad_core.hookspecs": ("HOOKSPEC_VERSION", "RegisterFormat", "RegisterRecipe", "Register"),
    "altgrad_core.errors": ("AltgradError", "RunFailed"),
    "altgrad_core.numerics.amax": ("tensor_amax", "block_amax"),
    "altgrad_core.numerics.scaling": ("Scale", "ScalingPolicy", "scale_for", "split", "usable", "power_of_two_from"),
    "altgrad_core.training.events": ("MetricSink", "StateLost"),
    "altgrad_core.training.checkpoint": ("CheckpointBackend", "Content", "Saved", "DamagedCheckpoint"),
    "altgrad_core.training.probes": ("Probe", "StepContext"),
    "altgrad_core.training.metrics": ("Measurements",),
    "altgrad_core.training.data": ("TokenData", "Workspace", "write_tokens", "open_tokens"),
    "altgrad_core.experiments.launch": ("Launcher",),
    "altgrad_core.analysis.tracking": ("settings_of", "outcome"),
}


def surface() -> str:
    """Return the text of the file."""
    import altgrad_core
    import altgrad_core.testing
    from altgrad_core import hookspecs

    sections: dict[str, Iterator[str]] = {
        "altgrad_core": _names(altgrad_core, altgrad_core.__all__),
        "altgrad_core.testing": _names(altgrad_core.testing, altgrad_core.testing.__all__),
        **{name: _names(importlib.import_module(name), public) for name, public in FOR_PLUGINS.items()},
        "hooks": _hooks(hookspecs),
        "command line": _commands(),
        "experiments.toml": _keys(),
        "events": _events(),
        "metrics": _metrics(),
    }
    text = "\n".join("".join(f"{line}\n" for line in (f"[{title}]", *lines)) for title, lines in sections.items())
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _names(module: ModuleType, names: tuple[str, ...] | list[str]) -> Iterator[str]:
    for name in sorted(names):
        yield from _described(name, getattr(module, name))


def _described(name: str, value: object) -> Iterator[str]:
    if isinstance(value, type):
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        yield f"{name}({bases})"
        yield from (f"    {line}" for line in _members(value))
    elif callable(value):
        yield f"{name}{_signature(value)}"
    else:
        yield f"{name} = {value!r}"


def _members(cls: type) -> Iterator[str]:
    if attrs.has(cls):
        for field in attrs.fields(cls):
            if field.init and not field.name.startswith("_"):
                # As it is written: attrs.resolve_types may have put in field.type what the name stands for.
                hint = _annotations(cls).get(field.name, field.type)
                yield f"{field.name}: {_text(hint)}{_default(field)}"
    elif "__init__" in vars(cls) and "Protocol" not in {base.__name__ for base in cls.__bases__}:
        yield f"__init__{_signature(cls.__init__)}"
    fields = {field.name for field in attrs.fields(cls)} if attrs.has(cls) else set()
    for name in sorted(_annotated(cls) - fields):
        yield f"{name}: {_text(_annotations(cls)[name])}"
    for name, member in sorted(inspect.getmembers(cls)):
        owner = next((base for base in cls.__mro__ if name in vars(base)), object)
        ours = owner.__module__.startswith("altgrad_core") and not name.startswith("_")
        if not ours or name in fields or name in _annotated(cls):
            continue
        raw = vars(owner)[name]
        if isinstance(raw, property):
            yield f"{name} -> {_text(raw.fget.__annotations__.get('return')) if raw.fget else ''}"
        elif callable(member):
            yield f"{name}{'' if name.startswith('test_') else _signature(member)}"


def _annotations(cls: type) -> dict[str, object]:
    found: dict[str, object] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("altgrad_core"):
            found |= inspect.get_annotations(base)
    return found


def _annotated(cls: type) -> set[str]:
    return {name for name in _annotations(cls) if not name.startswith("_")}


def _default(field: attrs.Attribute) -> str:
    if field.default is attrs.NOTHING:
        return ""
    return " = ..." if isinstance(field.default, attrs.Factory) else f" = {field.default!r}"


def _text(hint: object) -> str:
    if isinstance(hint, str) or hint is None:
        return str(hint)
    return re.sub(r"\b(?:[a-z_]\w*\.)+", "", hint.__name__ if isinstance(hint, type) else str(hint))


def _signature(function: object) -> str:
    return str(inspect.signature(function)).replace("'", "")


def _hooks(module: ModuleType) -> Iterator[str]:
    for name, hook in sorted(vars(module).items()):
        if hasattr(hook, "altgrad_spec"):
            yield f"{name}{_signature(hook)}"
            yield f"    {' '.join((inspect.getdoc(hook) or '').split())}"


def _commands() -> Iterator[str]:
    from altgrad_core.cli.main import app

    yield from _verbs("altgrad", typer.main.get_command(app))


def _verbs(name: str, command: object) -> Iterator[str]:
    words = [
        parameter.name.upper() if parameter.param_type_name == "argument" else "/".join(parameter.opts)
        for parameter in command.params
    ]
    yield " ".join([name, *sorted(words)])
    for inner, verb in sorted(getattr(command, "commands", {}).items()):
        yield from _verbs(f"{name} {inner}", verb)


def _keys() -> Iterator[str]:
    """Yield the keys of docs/configuration.md, which is made from the classes that check the file."""
    spec = importlib.util.spec_from_file_location("make_configuration", ROOT / "docs" / "make_configuration.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    place = ""
    for line in module.page().splitlines():
        if line.startswith("#"):
            place = line.lstrip("# ").replace("`", "")
        elif match := re.match(r"`([a-z0-9_-]+)`: ", line):
            place = f"{place.partition(' ')[0]} {match[1]}"
        elif place != "[[sink]]" and (match := re.match(r"\| `([a-z0-9_-]+)` \| ([^|]*) \|", line)):
            yield f"{place}: {match[1]} {match[2].strip('` ')}".rstrip()


def _events() -> Iterator[str]:
    from altgrad_core.training import events

    for line in (events.__doc__ or "").splitlines():
        if match := re.match(r"\| ``(\w+)`` \| (.*)", line):
            keys = re.findall(r"``(\w+)``", match[2])
            yield f"{match[1]}: {', '.join(keys)}".rstrip(": ")


def _metrics() -> Iterator[str]:
    """Yield the metrics of docs/metrics.md, which a test compares with those that a run measures."""
    rows = [line.split("|")[1] for line in (ROOT / "docs" / "metrics.md").read_text().splitlines() if line[:3] == "| `"]
    yield from sorted(name for row in rows for name in re.findall(r"`([^`]+)`", row))


def short_hash(text: str) -> str:
    """Return what the changelog says of the file."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def unreleased(changelog: str) -> str:
    """Return the newest section of the changelog."""
    return "\n## ".join(changelog.split("\n## ")[:2])


def main() -> None:
    """Write the file, and if asked its hash into the changelog."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--in-changelog", action="store_true", help="the changelog says what changed; put the hash there"
    )
    asked = parser.parse_args()
    text = surface()
    FILE.write_text(text)
    changelog = CHANGELOG.read_text()
    said = f"Public surface: `{short_hash(text)}`."
    if asked.in_changelog:
        section = unreleased(changelog)
        marked = MARK.sub(said, section) if MARK.search(section) else f"{section.rstrip()}\n\n{said}\n"
        CHANGELOG.write_text(changelog.replace(section, marked))
    print(f"{FILE.relative_to(ROOT)}: {len(text.splitlines())} lines. In the changelog: {said}")


if __name__ == "__main__":
    main()
