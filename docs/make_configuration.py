"""Write ``docs/configuration.md`` from the classes that check ``experiments.toml``: ``python docs/make_configuration.py``."""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path

import attrs

from altgrad_core.experiments.runfile import DEFAULTS
from altgrad_core.experiments.schema import RunConfig
from altgrad_core.plugins import Choice, NoOptions, installed
from altgrad_core.recipes.recipe import OperandCast, Override, Recipe
from altgrad_core.recipes.resolve import resolve_recipe
from altgrad_core.spelling import shown
from altgrad_core.structure import unstructure
from altgrad_core.training.config import (
    AlertConfig,
    CheckpointConfig,
    CountRule,
    DivergenceRule,
    NanRule,
    RateRule,
    SpikeRule,
    TrainConfig,
)

HEAD = """# Every key of experiments.toml

Made by `docs/make_configuration.py` from the classes that check the file. `[defaults]` holds what every run starts from; a
`[[run]]` says what is different; a `matrix` in it makes one run a combination, in file order, and its keys may be dotted. A run's
`name` may hold `{key}` for the value of a matrix key (its last part or all of it). `--set key=value` overrides a key in every run,
`--set RUN:key=value` in one; the value is TOML, so a text needs quotes of its own: `--set 'data.path="texts"'`. Where a plugin is chosen,
its name alone stands for a table with that `kind` and default options: `optimizer = "adamw"`, `scaling = "delayed"`.

Probes that are not named run with their defaults; `shadow = false` switches one off. Every `[[sink]]` table adds a receiver of the metrics
to all runs.
"""

RECIPES = """A recipe is a name (one of those below, or any format: all three operands in it) or a table. `base = "e5m2"` starts from a named
recipe and changes what the table says. What is cast is the name of a format or a table of its own (see [A cast](#a-cast)).
`scaling`, `rounding`, `saturation` and `random_bits` in the recipe's table hold for every operand, and for `gradient`, that does not say
otherwise itself; `weight_storage`, `optimizer_state` and `saved_activations` say theirs themselves.
What each kind of layers casts: [convert.md](convert.md#convert).
"""

CASTS = """An operand, `gradient`, `weight_storage` or `saved_activations`: `"e5m2"`, or a table with these keys. Without `scaling` a block
format (`mxfp8_e4m3`, `nvfp4`) brings its own, a format with the range of FP32 (`bf16`) has none, and any other is scaled by its current
amax. `weight_storage` needs scales that are powers of two ([why](decisions/0005-weights-without-a-master-copy.md)),
`saved_activations` scales without a history.
"""

STATE = """One cast for all of the optimizer's tensors that have the shape of their parameter, or one for each that is named as torch
names it; what is not named is kept as it is ([what to choose](decisions/0006-optimizer-state.md)):

```toml
[[run]]
name = "one-for-all"
recipe = { base = "bf16", optimizer_state = { format = "mxfp8_e4m3", rounding = "stochastic" } }
[[run]]
name = "each-its-own"
recipe = { base = "bf16", optimizer_state = { exp_avg = "mxfp8_e4m3", exp_avg_sq = "bf16" } }
```

Both together: `format` with its `scaling`, `rounding`, ... holds for all that are not named. Without `format`, `scaling` and the rest hold for
those that are.
"""


ALERTS = """What is watched, and why these defaults: [alerts.md](alerts.md). A number stands for the first key of the alert's table, `false`
switches it off, `true` on. What a table leaves out is as in the default.
"""


SINKS = """A receiver of the metrics of all runs; as many tables as you like, each with its `kind`. Sinks stand in the file alone: there is no
`--set` for them, and since they decide nothing of what is trained, they may be added and removed at any time; one that is added to a
finished run gets all of it at the next `altgrad run`.
W&B, TensorBoard and Aim, and what a run that goes on looks like in them: [trackers.md](trackers.md). Your own:
[plugins.md](plugins.md#write-a-sink).

```toml
[[sink]]
kind = "csv"
```

`csv` writes `metrics.csv` in each run's folder, in the order of the events, one row a value; a resumed run has no step twice:

| column | meaning |
| --- | --- |
| `step` | Optimizer step, from 1; 0 for the evaluation before the first. |
| `metric` | Name of the metric, with the layer and operand behind it: `train/loss`, `overflow_rate/blocks.0.mlp.up.input` ([metrics.md](metrics.md)). |
| `value` | A number; `NaN`, `Infinity` or `-Infinity` where it is none. |
"""

_OPTIONAL = {(RunConfig, "train"), (RunConfig, "checkpoint"), (Recipe, "name")}
_OPTIONAL |= {(NanRule, "patience"), (NanRule, "action"), (RateRule, "threshold")}  # each alert has its own


def fields(cls: type) -> dict[str, str]:
    """Return attribute name -> its docstring, the string under the field."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    found = {}
    for field, after in zip(body, body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[field.target.id] = " ".join(str(after.value.value).split()).replace("``", "`").replace("|", "\\|")
    return found


def default_of(cls: type, field: attrs.Attribute) -> str:
    """Return a default as TOML would write it."""
    value = field.default
    if value is attrs.NOTHING:
        made = {(RunConfig, "recipe"): "bf16", (OperandCast, "scaling"): "current"} | {
            (owner, key): DEFAULTS[key] for owner in (RunConfig, TrainConfig, CheckpointConfig) for key in DEFAULTS
        }
        if (cls, field.name) in made:
            return f'`"{made[cls, field.name]}"`'
        return "" if (cls, field.name) in _OPTIONAL else "needed"
    if isinstance(value, attrs.Factory) or value is None or value == ():
        return ""
    if isinstance(value, tuple):
        return f"`{shown(list(value))}`"
    if isinstance(value, Choice):
        return f'`"{value.kind}"`'
    if attrs.has(type(value)) or isinstance(value, tuple):
        return f"`{shown(unstructure(value), limit=None)}`"
    text = str(value).lower() if isinstance(value, bool) else (f'"{value}"' if isinstance(value, str) else str(value))
    return f"`{text}`"


def table(cls: type, skip: tuple[str, ...] = ()) -> str:
    """Return the keys of a class as a table."""
    docs = fields(cls)
    lines = ["| key | default | meaning |", "| --- | --- | --- |"]
    for field in attrs.fields(cls):
        if field.init and field.name not in skip:
            lines.append(f"| `{field.name}` | {default_of(cls, field)} | {docs[field.name]} |")
    return "\n".join(lines)


def plugin_tables(kind: str) -> str:
    """Return one table for each implementation of a kind."""
    parts = []
    for name in installed().names(kind):
        extension = installed().get(kind, name)
        if not extension.plugin.startswith("altgrad_"):
            continue
        said = f"`{name}`: {' '.join((inspect.getdoc(extension.value) or '').split()).replace('``', '`')}"
        parts.append(said if extension.options is NoOptions else f"{said}\n\n{table(extension.options)}")
    return "\n\n".join(parts)


def named_recipes() -> str:
    """Return the registered recipes as a table."""
    lines = ["| name | casts | the rest in |", "| --- | --- | --- |"]
    for name in installed().names("recipe"):
        extension = installed().get("recipe", name)
        if extension.plugin.startswith("altgrad_"):
            recipe = resolve_recipe(name)
            casts = [f"{key} `{cast.format}` ({_how(cast)})" for key, cast in recipe.all_casts().items()]
            lines.append(f"| `{name}` | {', '.join(casts) or 'nothing'} | {recipe.compute} |")
    return "\n".join(lines)


def _how(cast: OperandCast) -> str:
    options = attrs.asdict(cast.scaling.options)
    block = f" {options['rows']}x{options['columns']}" if "rows" in options else ""
    return f"{cast.scaling.kind}{block}{'' if cast.rounding == 'nearest_even' else f', {cast.rounding}'}"


def page() -> str:
    """Return the whole page."""
    sections = [
        HEAD.rstrip(),
        "## `[experiment]`\n\n| key | default | meaning |\n| --- | --- | --- |\n| `name` | needed | Folder under `runs/`. |",
        f"## `[defaults]` and `[[run]]`\n\n{table(RunConfig, skip=('experiment', 'sinks', 'name', 'fork'))}",
        f"## `train`\n\n{table(TrainConfig)}",
        f"### `train.optimizer`\n\n{plugin_tables('optimizer')}",
        f"## `checkpoint`\n\n{table(CheckpointConfig)}",
        f"### `checkpoint.backend`\n\n{plugin_tables('checkpoint')}",
        f"## `alerts`\n\n{ALERTS}\n{table(AlertConfig)}",
        f"### `nan`, `nan_patience`\n\n{table(NanRule)}",
        f"### `non_finite`\n\n{table(CountRule)}",
        f"### `loss_spike`\n\n{table(SpikeRule)}",
        f"### `divergence`\n\n{table(DivergenceRule)}",
        f"### `bit_stall`, `overflow`, `underflow`, `dead_neurons`\n\n{table(RateRule)}",
        f"## `recipe`\n\n{RECIPES}\n{table(Recipe)}",
        f"### Named recipes\n\n{named_recipes()}",
        f"### A cast\n\n{CASTS}\n{table(OperandCast)}",
        f"### `optimizer_state`\n\n{STATE}",
        f"### `scaling`\n\n{plugin_tables('scaling')}",
        f"### An override\n\n{table(Override)}",
        f"## `model`\n\n{plugin_tables('model')}",
        f"## `data`\n\n{plugin_tables('dataset')}",
        f"## `probes`\n\n{plugin_tables('probe')}",
        f"## `[[sink]]`\n\n{SINKS}\n{plugin_tables('sink')}",
        f"## `launcher`\n\n{plugin_tables('launcher')}",
    ]
    return "\n\n".join(sections) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("configuration.md").write_text(page(), encoding="utf-8")
