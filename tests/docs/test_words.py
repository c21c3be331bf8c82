"""The names that the pages use are those of the code: options, keys, metrics, hooks, formats."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import attrs
import make_reference
import page_blocks
import pytest

from altgrad_core import hookspecs
from altgrad_core.plugins import KINDS, installed

ROOT = page_blocks.ROOT
PAGES = page_blocks.written_pages()


def inline(page: Path) -> list[str]:
    """What stands in single backticks on a page, outside of its blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL))


def options() -> set[str]:
    from altgrad_core.cli.main import app

    callbacks = [app.registered_callback.callback, *(callback for _, callback in make_reference.verbs(app))]
    written = [written for callback in callbacks for written, _, _ in make_reference.parameters(callback)]
    return {"--help", *re.findall(r"--[\w-]+", " ".join(written))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_exist(page: Path) -> None:
    foreign = {"--id", "--logdir", "--repo"}  # of W&B, TensorBoard, Aim
    ours = [text for text in inline(page) if not text.startswith(("pip ", "wandb ", "aim ", "tensorboard "))]
    said = {option for text in ours for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)}
    assert said <= options() | foreign, said - options()


def keys() -> dict[str, type]:
    """Every table of a run's configuration and the class that checks it; plugins' options are gathered by kind."""
    from altgrad_core.recipes.recipe import OperandCast, Recipe
    from altgrad_core.training.config import AlertConfig, CheckpointConfig, TrainConfig

    return {
        "train": TrainConfig,
        "checkpoint": CheckpointConfig,
        "alerts": AlertConfig,
        "recipe": Recipe,
        "cast": OperandCast,
    }


def fields(cls: type | None) -> set[str]:
    return {field.name for field in attrs.fields(cls)} if cls is not None and attrs.has(cls) else set()


def of_plugins(kind: str) -> set[str]:
    extensions = [installed().get(kind, name) for name in installed().names(kind)]
    return {"kind", *(key for extension in extensions for key in fields(extension.options))}


def known(dotted: str) -> bool:
    """Whether a dotted key of ``experiments.toml`` is one."""
    from altgrad_core.training import config

    table, *rest = dotted.split(".")
    if table in ("model", "data"):
        return rest[0] in of_plugins({"model": "model", "data": "dataset"}[table])
    if table == "probes":
        return rest[0] in installed().names("probe") and (
            len(rest) == 1 or rest[1] in fields(installed().get("probe", rest[0]).options)
        )
    if table == "alerts" and len(rest) > 1:
        return rest[0] in fields(config.AlertConfig) and rest[1] in fields(type(config.AlertConfig.default(rest[0])))
    if table == "recipe" and len(rest) > 1:
        return rest[0] in fields(keys()["recipe"]) and rest[1] in fields(keys()["cast"]) | of_plugins("scaling")
    shared = {"base"} | fields(keys()["cast"]) if table == "recipe" else set()  # of all operands that say nothing else
    return rest[0] in fields(keys()[table]) | shared


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_keys_exist(page: Path) -> None:
    for text in inline(page):
        for dotted in re.findall(
            r"(?<![\w./-])(?:train|checkpoint|alerts|probes|recipe|model|data)(?:\.[a-z_]+)+\b(?![/(])", text
        ):
            if not dotted.endswith((".safetensors", ".toml", ".bin")):
                assert known(dotted), f"{page.name}: `{text}`: there is no key {dotted}"


def metrics() -> set[str]:
    """The names that docs/metrics.md defines; a test of their own says that a run measures these and no others."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    return {name.split("/<")[0] for row in rows for name in re.findall(r"`([^`]+)`", row)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_metrics_exist(page: Path) -> None:
    for text in inline(page):
        name = text.removeprefix("simulated/")
        if re.fullmatch(r"(?:train|val)/[a-z_]+", name):
            assert name in metrics(), f"{page.name}: there is no metric {name}"
        elif re.fullmatch(
            r"[a-z][a-z0-9_]*/(?:<(?:layer|parameter|weight|layer\.operand)>|[a-z_]+\.\d[a-z0-9_.]*|\.\.\.)", name
        ):
            assert name.split("/")[0] in metrics() | {"weight_norm", "histogram"}, (
                f"{page.name}: there is no metric {name}"
            )


@pytest.mark.parametrize("probe", ["gradients", "stability", "updates", "shadow"])
def test_a_probe_is_defined_as_it_says_itself(probe: str) -> None:
    """The table in the probe's module and that of docs/metrics.md have the same metrics with the same units."""
    module = importlib.import_module(f"altgrad_probes.{probe}")
    page = (ROOT / "docs" / "metrics.md").read_text()
    section = re.split(r"^## ", page[page.index(f"## Probe `{probe}`") :], flags=re.MULTILINE)[1]
    assert units(inspect.getdoc(module) or "") == units(section)
    assert f"(../plugins/altgrad_probes/{probe}.py)" in section


def units(text: str) -> dict[str, str]:
    rows = [re.split(r"(?<!\\)\|", line) for line in text.splitlines() if line.startswith("| `")]
    return {
        name.split("/<")[0]: row[-2].strip().removesuffix(" a token")
        for row in rows
        for name in re.findall(r"`+([^`]+)`+", row[1])
    }


def test_the_install_page_has_every_environment_variable() -> None:
    sources = [path for folder in ("altgrad_core", "plugins", "formats") for path in (ROOT / folder).rglob("*.py")]
    read = {name for path in sources for name in re.findall(r"\bALTGRAD_[A-Z_]+", path.read_text())}
    told = set(re.findall(r"^\| `(ALTGRAD_\w+)`", (ROOT / "docs" / "install.md").read_text(), re.MULTILINE))
    assert told == read - {"ALTGRAD_CANNOT", "ALTGRAD_HOOKSPEC"}  # which stand in a plugin's module


def test_hooks_exist_and_are_implemented_with_their_arguments() -> None:
    """Every hook that a page names, and what each ``build`` function that comes with AltGrad is called with."""
    specs = {name: spec for name, spec in vars(hookspecs).items() if name.startswith("altgrad_register_")}
    assert len(specs) >= 10
    for page in PAGES:
        text = page.read_text()
        assert set(re.findall(r"altgrad_register_\w+", text)) <= set(specs), page.name
        for name, arguments in re.findall(r"def (altgrad_register_\w+)\(([^)]*)\)", text):
            assert arguments.split(", ") == list(inspect.signature(specs[name]).parameters), page.name
    for name, spec in specs.items():
        said = re.search(r"``build\(([^)]*)\)", inspect.getdoc(spec) or "")
        if said is None:
            continue
        for plugin in installed().names(KINDS[name]):
            taken = list(inspect.signature(installed().get(KINDS[name], plugin).value).parameters)
            assert taken == said[1].split(", "), f"{name}: {plugin} takes {taken}"


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    return {name: page() for name, page in make_reference.PAGES.items()}


def test_the_reference_has_everything_with_a_sentence(reference: dict[str, str]) -> None:
    """Names, verbs, hooks and formats; and nothing of them is without a docstring, a help text or a meaning."""
    import altgrad_core
    import altgrad_core.testing
    from altgrad_core.cli.main import app

    for page, names in (("python", altgrad_core.__all__), ("testing", altgrad_core.testing.__all__)):
        for name in names:
            assert re.search(rf"^:+{{py:\w+}} {name}\b", reference[page], re.MULTILINE), name
    for words, callback in make_reference.verbs(app):
        assert f"## altgrad {words}\n" in reference["cli"]
        assert inspect.getdoc(callback), words
        for written, _, meaning in make_reference.parameters(callback):
            assert f"`{written}`" in reference["cli"]
            assert meaning, f"altgrad {words}: {written} has no help"
    for name in installed().names("format"):
        assert f"| `{name}` |" in reference["formats"], name
    bare = re.findall(
        r"^:+\{py:[\w]+\} ([^\n]+)\n(?::[^\n]+\n)*\n+:+$", reference["python"] + reference["hooks"], re.MULTILINE
    )
    assert not bare, f"without a docstring: {bare}"


def test_what_other_libraries_words_mean_in_ours_loads() -> None:
    """Recipes and tables in the right column of docs/coming-from.md."""
    import tomli

    from altgrad_core.recipes.resolve import resolve_recipe

    checked = 0
    for line in (ROOT / "docs" / "coming-from.md").read_text().splitlines():
        for text in re.findall(r"`([^`]+)`", line.split("|")[2] if line.startswith("|") else ""):
            if re.match(r"(scaling|rounding|backend|compute|overrides) = (?!.*\.\.\. )[\"{\[]", text):
                table = tomli.loads(text)
                if not table.get("scaling") or "..." not in str(table):
                    resolve_recipe({"base": "e5m2", **table})
                    checked += 1
    assert checked >= 10
