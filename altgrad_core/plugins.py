"""Find, load, list and disable plugins.

Built-ins (``DEFAULT_PLUGINS``) and third parties (entry points of the group ``altgrad``) come through the same door.
A plugin that cannot be imported, names a hook that does not exist, or registers something invalid becomes a row with
its reason: the rest works, and an error is raised only when an experiment asks for what the broken one would offer.
pluggy's own entry-point loader is not used because one broken plugin would end it (and with it the command line).
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import pluggy

from altgrad_core import hookspecs
from altgrad_core.errors import AltgradError, unknown

DEFAULT_PLUGINS = (
    "altgrad_format_ieee",
    "altgrad_format_ocp",
    "altgrad_format_splits",
    "altgrad_format_p3109",
    "altgrad_format_tables",
    "altgrad_format_blocks",
    "altgrad_scaling",
    "altgrad_recipes",
    "altgrad_layers",
    "altgrad_gpt",
    "altgrad_data",
    "altgrad_adamw",
    "altgrad_probes",
    "altgrad_checkpoint",
    "altgrad_csv",
    "altgrad_aim",
    "altgrad_launchers",
    "altgrad_tensorboard",
    "altgrad_wandb",
)
ENTRY_POINT_GROUP = "altgrad"
BUILT_IN = "built-in"
DISABLE_VARIABLE = "ALTGRAD_DISABLE_PLUGINS"

# hook -> the kind of thing it registers, in the words of experiments.toml and of error texts
KINDS = {
    "altgrad_register_formats": "format",
    "altgrad_register_recipes": "recipe",
    "altgrad_register_scaling": "scaling",
    "altgrad_register_layers": "layer",
    "altgrad_register_models": "model",
    "altgrad_register_datasets": "dataset",
    "altgrad_register_optimizers": "optimizer",
    "altgrad_register_probes": "probe",
    "altgrad_register_sinks": "sink",
    "altgrad_register_checkpoints": "checkpoint",
    "altgrad_register_launchers": "launcher",
}
_NAME = re.compile(r"[a-z0-9][a-z0-9_.+-]*")


@attrs.frozen
class NoOptions:
    """Options of an implementation that takes none: any key beside ``kind`` is an error."""


@attrs.frozen(kw_only=True)
class Extension:
    """One thing a plugin offers."""

    kind: str
    """What it is: a value of ``KINDS``."""
    name: str
    """The name that users write."""
    plugin: str
    """The plugin that registered it."""
    value: Any
    """The ``build`` callable; for formats the ``Format``, for recipes the table."""
    options: type = NoOptions
    """attrs class whose fields are the keys accepted beside ``kind``."""
    cannot: Mapping[str, str] = {}
    """Clauses of its conformance suite that it does not keep, with the reason: the plugin's ``ALTGRAD_CANNOT``."""
    missing: str = ""
    """Why it cannot be used here (the package that it ``needs`` is not installed); building it says the same."""


@attrs.frozen
class Choice:
    """A chosen implementation, ``{ kind = "delayed", history = 16 }`` in TOML."""

    kind: str
    """Name of the implementation among those of its kind."""
    options: Any = NoOptions()
    """Instance of the implementation's options class."""


@attrs.define(kw_only=True)
class PluginRow:
    """One line of ``altgrad plugins``."""

    name: str
    """Import name for built-ins, entry-point name for third parties."""
    source: str
    """``built-in``, or the distribution that announced the entry point."""
    version: str
    """Version of that distribution, ``?`` when unknown."""
    status: str = "ok"
    """``ok``, ``missing`` (a package is absent that it, or something it offers, needs), ``broken`` or ``disabled``."""
    reason: str = ""
    """Why the status is not ``ok``."""
    offers: dict[str, list[str]] = attrs.field(factory=dict)
    """Kind -> names registered."""
    hookspec: int | None = None
    """The hook specification that it says it was written for (``ALTGRAD_HOOKSPEC``), None when it does not say."""
    note: str = ""
    """What its author should know: that it was written for another hook specification, or uses what is deprecated."""


@attrs.define
class Plugins:
    """Everything that is installed, by kind and name."""

    rows: list[PluginRow] = attrs.field(factory=list)
    extensions: dict[tuple[str, str], Extension] = attrs.field(factory=dict)

    def names(self, kind: str) -> list[str]:
        """Return the sorted names registered under ``kind``."""
        return sorted(name for k, name in self.extensions if k == kind)

    def find(self, kind: str, name: str) -> Extension | None:
        """Return the extension, or None when nothing of that kind has the name."""
        return self.extensions.get((kind, name))

    def get(self, kind: str, name: str) -> Extension:
        """Return the extension; an ``AltgradError`` lists what there is and which plugins did not load."""
        extension = self.find(kind, name)
        if extension is None:
            raise AltgradError(unknown(kind, name, self.names(kind)) + self.hint())
        return extension

    def not_loaded(self) -> list[PluginRow]:
        """Return the plugins that offer nothing, for the reason in their row."""
        return [row for row in self.rows if row.status != "ok" and not row.offers]

    def hint(self) -> str:
        """Return a sentence naming the plugins that did not load, empty when all did."""
        silent = [f"{row.name} ({row.status}: {row.reason})" for row in self.not_loaded()]
        return f" Plugins that did not load: {'; '.join(silent)}." if silent else ""


def load_plugins(
    *,
    modules: Iterable[str] = DEFAULT_PLUGINS,
    entry_points: Iterable[importlib.metadata.EntryPoint] | None = None,
    disabled: Iterable[str] | None = None,
) -> Plugins:
    """Load the built-in ``modules``, then the installed ``entry_points``, and collect what they register.

    ``disabled`` names plugins that are not even imported; by default the comma-separated environment variable
    ``ALTGRAD_DISABLE_PLUGINS``. Nothing a plugin does raises here; see ``Plugins.rows`` for the outcome of each.
    """
    if entry_points is None:
        entry_points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    if disabled is None:
        disabled = [name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(",")]
    disabled = {name for name in disabled if name}
    plugins = Plugins()
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    version = _version("altgrad")
    for module in modules:
        row = PluginRow(name=module, source=BUILT_IN, version=version)
        _load(plugins, manager, row, functools.partial(importlib.import_module, f"{module}.plugin"), disabled)
    for entry in sorted(entry_points, key=lambda e: (e.name, e.value)):
        dist = entry.dist
        row = PluginRow(name=entry.name, source=dist.name if dist else "?", version=dist.version if dist else "?")
        _load(plugins, manager, row, functools.partial(_hooks_of, entry), disabled)
    for name in sorted(disabled - {row.name for row in plugins.rows}):
        reason = f"named in {DISABLE_VARIABLE}, but there is no such plugin"
        plugins.rows.append(PluginRow(name=name, source="?", version="?", status="missing", reason=reason))
    return plugins


@functools.cache
def installed() -> Plugins:
    """Return this process's plugins, loaded at the first call."""
    return load_plugins()


def _hooks_of(entry: importlib.metadata.EntryPoint) -> Any:
    """Load an entry point; of a package without hooks of its own, its module ``plugin``."""
    loaded = entry.load()
    if (
        isinstance(loaded, types.ModuleType)
        and hasattr(loaded, "__path__")
        and not any(map(_is_hook, vars(loaded).values()))
    ):
        name = f"{loaded.__name__}.plugin"
        if importlib.util.find_spec(name) is not None:
            return importlib.import_module(name)
    return loaded


def _is_hook(value: Any) -> bool:
    return callable(value) and hasattr(value, f"{hookspecs.PROJECT}_impl")


def _is_there(package: str) -> bool:
    # A folder of that name in the working directory (W&B leaves a "wandb") is found too, as a package without a file.
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _refusing(build: Callable[..., Any], reason: str) -> Callable[..., Any]:
    """Return what stands for a ``build`` whose package is missing."""

    @functools.wraps(build)
    def refuse(*_: Any) -> Any:
        raise AltgradError(f"{reason[0].upper()}{reason[1:]}")

    return refuse


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "?"


def _load(
    plugins: Plugins, manager: pluggy.PluginManager, row: PluginRow, load: Callable[[], Any], disabled: set[str]
) -> None:
    plugins.rows.append(row)
    if row.name in disabled:
        row.status, row.reason = "disabled", f"named in {DISABLE_VARIABLE}"
        return
    if manager.has_plugin(row.name):
        row.status, row.reason = "broken", f"another plugin is already called '{row.name}'"
        return
    try:
        module = load()
        _note_age(row, module)
        manager.register(module, row.name)
        manager.check_pending()  # a misspelt hook is accepted by register()
        found = _collect(manager, row, _cannot(module))
    except (Exception, SystemExit) as error:
        package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if package and package not in sys.modules:
            row.status, row.reason = "missing", f"needs the package '{package}', which is not installed"
        else:
            row.status, row.reason = "broken", f"{type(error).__name__}: {error}"
    else:
        clash = next((plugins.extensions[key] for key in found if key in plugins.extensions), None)
        if clash is None:
            if not found:
                row.status = "broken"
                row.reason = "registers nothing; are its functions named as the hooks and marked with @hookimpl?"
            plugins.extensions.update(found)
            for kind, name in found:
                row.offers.setdefault(kind, []).append(name)
            if missing := [extension.missing for extension in found.values() if extension.missing]:
                row.status, row.reason = "missing", "; ".join(missing)
            return
        row.status = "broken"
        row.reason = f"the {clash.kind} '{clash.name}' is already registered by '{clash.plugin}'; rename one of them"
    if manager.has_plugin(row.name):
        manager.unregister(name=row.name)


def _note_age(row: PluginRow, module: Any) -> None:
    """Note for which hook specification a plugin was written, and which deprecated hooks it implements."""
    notes = []
    said = getattr(module, "ALTGRAD_HOOKSPEC", None)
    if said is not None:
        if not isinstance(said, int):
            raise TypeError(f"ALTGRAD_HOOKSPEC is a number such as {hookspecs.HOOKSPEC_VERSION}, got {said!r}")
        row.hookspec = said
        if said > hookspecs.HOOKSPEC_VERSION:
            notes.append(
                f"written for hook specification {said}, this AltGrad has {hookspecs.HOOKSPEC_VERSION}: upgrade altgrad"
            )
        elif said < hookspecs.HOOKSPEC_OLDEST:
            notes.append(
                f"written for hook specification {said}, the oldest that works is {hookspecs.HOOKSPEC_OLDEST}: "
                "upgrade the plugin"
            )
    notes += [str(old) for hook, old in hookspecs.DEPRECATED.items() if hasattr(module, hook)]
    row.note = "; ".join(notes)


def _cannot(module: Any) -> Mapping[str, Mapping[str, str]]:
    """Return kind/name -> clause -> reason, as the plugin says it."""
    said = getattr(module, "ALTGRAD_CANNOT", {})
    if not isinstance(said, Mapping) or not all(isinstance(clauses, Mapping) for clauses in said.values()):
        raise TypeError(f"ALTGRAD_CANNOT is {{'kind/name': {{'clause': 'reason'}}}}, got {said!r}")
    return said


def _collect(
    manager: pluggy.PluginManager, row: PluginRow, cannot: Mapping[str, Mapping[str, str]]
) -> dict[tuple[str, str], Extension]:
    """Call the plugin's hooks and return what it registers; raises on anything invalid: all or nothing."""
    found: dict[tuple[str, str], Extension] = {}
    others = [plugin for name, plugin in manager.list_name_plugin() if name != row.name]

    def add(kind: str, name: str, value: Any, options: type | None, missing: str = "") -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise TypeError(f"register() of a {kind} takes a lower-case name ({_NAME.pattern}), got {name!r}")
        if options is not None:
            if not attrs.has(options):
                raise TypeError(f"options= of the {kind} '{name}' must be an attrs class, got {options!r}")
            attrs.resolve_types(options)  # a NameError here, and not when an experiment uses it
        if kind == "model" and "block_size" not in attrs.fields_dict(options or NoOptions):
            raise TypeError(f"options= of the model '{name}' must have a field 'block_size'")
        if kind == "layer" and name == "linear":
            raise ValueError("the layers 'linear' are converted by altgrad_core itself")
        if (kind, name) in found:
            raise ValueError(f"the {kind} '{name}' is registered twice")
        found[kind, name] = Extension(
            kind=kind,
            name=name,
            plugin=row.name,
            value=value,
            options=options or NoOptions,
            cannot=cannot.get(f"{kind}/{name}", {}),
            missing=missing,
        )

    def register_build(
        kind: str,
        name: str,
        build: Callable[..., Any],
        options: type | None = None,
        *,
        needs: str | None = None,
        missing: str = "",
    ) -> None:
        if not callable(build):
            raise TypeError(f"register('{name}', build): build must be callable, got {build!r}")
        if needs is not None and _is_there(needs):
            missing = ""
        elif needs is not None and not missing:
            pip = f"'altgrad[{needs}]'" if row.source == BUILT_IN else needs
            missing = f"the {kind} '{name}' needs the package '{needs}', which is not installed: pip install {pip}"
        add(kind, name, _refusing(build, missing) if missing else build, options, missing)

    def register_recipe(name: str, table: Mapping[str, Any]) -> None:
        if not isinstance(table, Mapping):
            raise TypeError(f"register('{name}', table): table must be a mapping, got {table!r}")
        add("recipe", name, table, None)

    def register_format(format: Any) -> None:
        from altgrad_core.numerics.formats import Format

        if not isinstance(format, Format):
            raise TypeError(f"register(format) takes an altgrad_core.numerics.Format, got {format!r}")
        add("format", format.name, format, None)

    for hook, kind in KINDS.items():
        caller = manager.subset_hook_caller(hook, remove_plugins=others)
        if kind == "format":
            caller(register=register_format)
        elif kind == "recipe":
            caller(register=register_recipe)
        else:
            caller(register=functools.partial(register_build, kind))
    return found
