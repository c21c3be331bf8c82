"""Run folders written with plain json, as a worker writes them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import tomli_w

from altgrad_core.numerics import get_format
from altgrad_core.training.histograms import FormatRange

LAYERS = [f"blocks.{i}.{name}" for i in range(4) for name in ("attn.qkv", "attn.out", "mlp.up", "mlp.down")]
OPERANDS = ("input", "weight", "grad_output")
START = 1_790_000_000.0
MEANS = ("grad_cos_sim", "shadow_grad_snr_db", "bit_stall_rate", "overflow_rate", "underflow_rate", "scale_log2")
CAST = {"scaling": {"kind": "current"}, "rounding": "nearest_even", "saturation": "finite"}


def recipe(name: str) -> dict[str, Any]:
    """A recipe's long form: no casts for bf16, otherwise one format for all operands."""
    if name == "bf16":
        return {"name": "bf16", "compute": "bf16", "backend": "auto"}
    casts = {operand: {"format": name, **CAST} for operand in OPERANDS}
    overrides = [{"match": "lm_head", "recipe": {"name": "bf16"}}]
    return {"name": name, "compute": "bf16", "backend": "auto", **casts, "overrides": overrides}


def config(name: str, **changes: Any) -> dict[str, Any]:
    """A run.toml; ``changes`` replace whole keys."""
    made = {
        "experiment": "e5m2-vs-bf16",
        "name": name,
        "baseline": False,
        "seed": 42,
        "model": {"kind": "gpt", "n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 128, "dropout": 0.0},
        "data": {"kind": "stdlib", "tokenizer": "bytes", "val_fraction": 0.1},
        "recipe": recipe("bf16"),
        "train": {"steps": 300, "batch_size": 16, "learning_rate": 6e-4, "warmup_steps": 20, "eval_every": 50},
        "probes": {"shadow": {"every": 1}},
    }
    return {**made, **changes}


def status(word: str, *, time: float = START, step: int = 0, **more: Any) -> dict[str, Any]:
    return {"time": time, "event": "status", "status": word, "step": step, **more}


def metrics(step: int, values: Mapping[str, Any], *, time: float | None = None) -> dict[str, Any]:
    return {"time": START + step if time is None else time, "event": "metrics", "step": step, "values": dict(values)}


def histograms(step: int, name: str) -> dict[str, Any]:
    """Where the casts of a step lie on the grid of format ``name``: a layer's values lie lower than those of the one before."""
    its = FormatRange.of(get_format(name))
    casts = {}
    for index, layer in enumerate(LAYERS):
        for operand in OPERANDS:
            first = round(math.log2(its.max_finite)) - 16 - index
            counts = [10 * 2**i for i in range(15)]
            casts[f"{layer}.{operand}"] = {
                "format": name, "elements": sum(counts) + 5, "zeros": 5, "underflow": 40 * index, "subnormal": 3,
                "overflow": step, "nan": 0, "inf": 0, "codes": 120 - index, "first": first, "counts": counts,
            }  # fmt: skip
    ranges = {name: attrs.asdict(its)}
    return {"time": START + step, "event": "histograms", "step": step, "formats": ranges, "casts": casts}


def write_run(folder: Path, made: Mapping[str, Any], events: list[Any] | None, *, tail: str = "") -> Path:
    """Write a run's folder; a str among ``events`` goes in as it is, ``tail`` after the last line without a newline."""
    folder.mkdir(parents=True)
    (folder / "run.toml").write_text(tomli_w.dumps(dict(made)), encoding="utf-8")
    (folder / "env.json").write_text(json.dumps({"python": "3.13.1", "torch": "2.13.0", "device": "cpu"}))
    if events is not None:
        lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
        (folder / "events.jsonl").write_text("".join(f"{line}\n" for line in lines) + tail, encoding="utf-8")
    return folder


def training(name: str, *, steps: int = 300, seed: int = 0, planned: int = 300) -> list[dict[str, Any]]:
    """The events of a plausible training in format ``name``: done when ``steps`` reaches ``planned``."""
    rng = random.Random(f"{name}{seed}")
    cast = name != "bf16"
    worse = {"bf16": 0.0, "e5m2": 0.04}.get(name, 0.015)
    events: list[dict[str, Any]] = [
        status("running", pid=4242, resumed=False),
        {"time": START, "event": "init", "what": "model", "facts": {"parameters": 824_448, "layers": len(LAYERS) + 1}},
        {"time": START, "event": "init", "what": "device", "facts": {"device": "cpu", "threads": 2}},
    ]
    for step in range(1, steps + 1):
        loss = 2.0 + worse + 3.5 * math.exp(-step / 60) + rng.gauss(0, 0.03)
        values = {
            "train/loss": loss,
            "train/perplexity": math.exp(loss),
            "train/lr": 6e-4 * min(1, step / 20),
            "train/grad_norm": 1.2 + rng.random(),
            "train/tokens_per_s": 21_000.0 * (0.6 if cast else 1.0) * (1 + rng.gauss(0, 0.02)),
        }
        if cast:
            cosines = {}
            for index, layer in enumerate(LAYERS):
                cosines[layer] = 1 - (0.03 if name == "e5m2" else 0.01) * (1 + index / 8) * (0.6 + 0.4 * rng.random())
                values[f"grad_cos_sim/{layer}.weight"] = cosines[layer]
                values[f"shadow_grad_snr_db/{layer}.weight"] = -10 * math.log10(2 * (1 - cosines[layer]))
                values[f"bit_stall_rate/{layer}.weight"] = 0.5 + 0.4 * step / planned + rng.gauss(0, 0.01)
                for operand in OPERANDS:
                    peak = 3e-4 * math.exp(-((step - 120) ** 2) / 400) * (index == 7) * (operand == "input")
                    values[f"overflow_rate/{layer}.{operand}"] = peak
                    values[f"underflow_rate/{layer}.{operand}"] = 0.02 * (index + 1) / 16 * rng.random()
                    values[f"scale_log2/{layer}.{operand}"] = -14.0 - index % 4 - step // 100
            for metric in MEANS:
                found = [value for key, value in values.items() if key.startswith(f"{metric}/")]
                values[metric] = sum(found) / len(found)
            if step == 120:
                message = "bit stall 0.66 is above 0.5: most updates do not reach the cast weights"
                alert = {"alert": "bit_stall", "value": 0.66, "threshold": 0.5, "message": message, "action": "log"}
                events.append({"time": START + step, "event": "alert", "step": step, **alert})
        events.append(metrics(step, values))
        if step % 50 == 0:
            val = 2.05 + worse + 3.5 * math.exp(-step / 60)
            events.append(metrics(step, {"val/loss": val, "val/perplexity": math.exp(val)}))
        if step % 10 == 0:
            load = {"cpu_percent": 90.0, "cores": 2, "used_bytes": 4 * 2**30, "total_bytes": 16 * 2**30}
            events.append({"time": START + step, "event": "host", **load, "process_bytes": 2**30 + step * 2**20})
        if step % 100 == 0:
            path = f"checkpoints/step-{step:06d}"
            events.append({"time": START + step, "event": "checkpoint", "step": step, "kind": "step", "path": path})
    if steps >= planned:
        events.append(status("done", time=START + steps + 1, step=steps))
    return events
