"""The default experiment in every named format: trains benchmarks/formats.toml and writes the table of docs/formats.md.

    python benchmarks/formats.py [--runs DIR] [--jobs 1] [--only RUN ...]

Finished runs are skipped, as ``altgrad run`` does, so that it may be stopped and started again. The figures go to
``benchmarks/results/formats-<device>.json``, the page is made of them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "formats.md"
OPERANDS = ("input", "weight", "grad_output")

INTRODUCTION = """# The default experiment in every format

The model and data of `experiments.toml` (0.8 M parameters, bytes of Python's own library, 300 steps, seed 42), with the
operands of all linear layers, the head's included, cast to each named format. The rest is BF16 over FP32 master weights.
One seed each: differences of a few tenths of a percent mean nothing. Made by `python benchmarks/formats.py`
({machine}); the figures are in [benchmarks/results/{result}](../benchmarks/results/{result}).

- **loss**: validation loss at the end, and its distance from the baseline's
- **cosine**: mean cosine between a parameter's gradient and that of an FP32 pass at the same weights and batch
- **SQNR**: mean signal-to-quantization-noise ratio of the casts of inputs, weights and output gradients, in dB
- **underflow**, **overflow**: of output gradients, the operand with the widest range: non-zero elements that became zero,
  elements that were clamped
- **bit stall**: weights with a gradient whose value in the format a step leaves as it is
- the last column: `trains` within 2 % of the baseline's loss, `worse` within 10 %, `poor` within 25 %, `fails` beyond

| format | scaling | loss | difference | cosine | SQNR input / weight / gradient | underflow | overflow | bit stall | |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""

READING = """
## How to read it

{reading}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="Where the run folders are kept.")
    parser.add_argument("--jobs", type=int, default=1, help="Runs at a time.")
    parser.add_argument("--only", nargs="*", default=(), help="Train these runs only; no page is written.")
    arguments = parser.parse_args()

    import altgrad_core as altgrad

    results = altgrad.run(HERE / "formats.toml", runs=arguments.runs, jobs=arguments.jobs, only=arguments.only)
    if arguments.only:
        return
    rows = [facts(run) for run in results]
    baseline = next(row for row in rows if row["run"] == "bf16")
    for row in rows:
        row["difference_percent"] = _percent_above(row["validation_loss"], baseline["validation_loss"])
        row["outcome"] = outcome(row, baseline)
    environment = results[0].environment
    device = str(environment["device"]).partition(":")[0]
    name = f"formats-{device}.json"
    kept = {key: environment[key] for key in ("device_name", "cpu_threads", "packages", "git_commit")}
    record = {"command": "python benchmarks/formats.py", "environment": kept, "runs": rows}
    (HERE / "results" / name).write_text(json.dumps(record, indent=1) + "\n")
    page = INTRODUCTION.format(machine=environment["device_name"], result=name)
    PAGE.write_text(page + "".join(line(row) for row in rows) + READING.format(reading=reading(rows)))


def facts(run: Any) -> dict[str, Any]:
    """What a run ended with; means over all measured steps and layers."""

    def mean(metric: str) -> float | None:
        finite = [value for value in run.metrics(metric)[1] if math.isfinite(value)]
        return statistics.fmean(finite) if finite else None

    def of_operand(metric: str, operand: str) -> float | None:
        found = [mean(f"{metric}/{layer}") for layer in run.layers(metric) if layer.endswith(f".{operand}")]
        known = [value for value in found if value is not None]
        return statistics.fmean(known) if known else None

    _, losses = run.metrics("val/loss")
    recipe = run.config["recipe"]
    cast = recipe.get("input", {})
    return {
        "run": run.name,
        "format": cast.get("format", recipe["name"]),
        "scaling": cast.get("scaling", {}).get("kind"),
        "status": run.status,
        "validation_loss": losses[-1] if losses else None,
        "grad_cos_sim": mean("grad_cos_sim"),
        "sqnr_db": {operand: of_operand("sqnr_db", operand) for operand in OPERANDS},
        "underflow_rate": {operand: of_operand("underflow_rate", operand) for operand in OPERANDS},
        "overflow_rate": {operand: of_operand("overflow_rate", operand) for operand in OPERANDS},
        "bit_stall_rate": mean("bit_stall_rate"),
    }


def outcome(row: dict[str, Any], baseline: dict[str, Any]) -> str:
    """``trains`` within 2 % of the baseline, ``worse`` within 10 %, ``poor`` beyond, ``fails`` where little is learnt."""
    if row["run"] == baseline["run"]:
        return "baseline"
    loss = row["validation_loss"]
    if row["status"] != "done" or loss is None or not math.isfinite(loss):
        return "fails"
    difference = row["difference_percent"]
    return "trains" if difference <= 2 else "worse" if difference <= 10 else "poor" if difference <= 25 else "fails"


def line(row: dict[str, Any]) -> str:
    def percent(value: float | None) -> str:
        if value is None:
            return ""
        return f"{100 * value:.2f} %" if value == 0 or value >= 5e-5 else "<0.01 %"

    def decibels(value: float | None) -> str:
        return "exact" if value is None or value > 100 else f"{value:.1f}"

    sqnr = " / ".join(decibels(row["sqnr_db"][operand]) for operand in OPERANDS)
    difference = round(row["difference_percent"], 1) + 0.0  # no -0.0
    cells = [
        f"`{row['format']}`",
        row["scaling"] or "",
        "-" if row["validation_loss"] is None else f"{row['validation_loss']:.3f}",
        "" if row["outcome"] == "baseline" else f"{difference:+.1f} %",
        "" if row["grad_cos_sim"] is None else f"{row['grad_cos_sim']:.3f}",
        "" if row["outcome"] == "baseline" else sqnr,
        percent(row["underflow_rate"]["grad_output"]),
        percent(row["overflow_rate"]["grad_output"]),
        percent(row["bit_stall_rate"]),
        row["outcome"],
    ]
    return f"| {' | '.join(cells)} |\n"


def reading(rows: list[dict[str, Any]]) -> str:
    """What the rows that do not train have in common, in sentences made of their own figures."""
    sentences = []
    for row in rows:
        if row["outcome"] not in ("poor", "fails"):
            continue
        lost, noise = row["underflow_rate"]["grad_output"] or 0.0, row["sqnr_db"]
        worst = min((noise[o], o) for o in OPERANDS if noise[o] is not None)
        why = f"its {worst[1].replace('grad_output', 'output gradient')}s keep {worst[0]:.1f} dB"
        if lost > 0.5:
            why = f"{100 * lost:.0f} % of its output gradients become zero"
        sentences.append(
            f"- `{row['run']}` {row['outcome'] if row['outcome'] == 'fails' else 'trains poorly'} "
            f"({row['difference_percent']:+.0f} %): {why}, and its gradients have a cosine of "
            f"{row['grad_cos_sim']:.2f} to FP32."
        )
    return "\n".join(sentences)


def _percent_above(loss: float | None, baseline: float) -> float:
    return math.inf if loss is None else 100 * (loss / baseline - 1)


if __name__ == "__main__":
    main()
