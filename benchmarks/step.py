"""What a training step costs on this machine, as ratios to plain BF16, measured in one run.

    python benchmarks/step.py [--rounds 7] [--small]

Trains the reference model (6 layers, 6 heads, 384 wide, block 256, GPT-2 vocabulary, batch 12: 30 M parameters, 3,072
tokens a step) in several variants that take turns step by step, so that a slow moment of the machine hits all of them;
the medians, and those of the ratios within a round, are printed and written to ``benchmarks/results/step-<device>.json``.
The tokens are random: the time of a step does not depend on them.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import time
from pathlib import Path

VARIANTS = {
    # name: (recipe, probes at every step)
    "bf16": ("bf16", []),
    "fp32": ("fp32", []),
    "e5m2": ("e5m2", []),
    "e5m2 + stability": ("e5m2", ["stability"]),
    "e5m2 + gradients": ("e5m2", ["gradients"]),
    "e5m2 + updates": ("e5m2", ["updates"]),
    "e5m2 + all per-layer statistics": ("e5m2", ["stability", "gradients", "updates"]),
    "e5m2 + shadow": ("e5m2", ["shadow"]),
    "bf16 + shadow": ("bf16", ["shadow"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="Timed steps of each variant.")
    parser.add_argument("--small", action="store_true", help="A small model, to try the script.")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    _keep_freed_memory()

    import torch

    from altgrad_core.bench.timing import ratio
    from altgrad_core.experiments.environment import choose_device, environment

    device = choose_device(arguments.device)
    engines = {
        name: make_engine(recipe, probes, device, arguments.small) for name, (recipe, probes) in VARIANTS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in engines}
    in_probes: dict[str, list[float]] = {name: [] for name in engines}
    for name, engine in engines.items():
        engine.emit = functools.partial(_note_probes, in_probes[name])
    for round_number in range(arguments.rounds + 1):
        for name, engine in engines.items():
            started = time.perf_counter()
            engine.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_number:  # the first one warms up
                times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {name: ratio(times, name, "bf16") for name in times}
    print(f"{'variant':34}{'ms a step':>12}{'x bf16':>9}")
    for name, seconds in medians.items():
        print(f"{name:34}{1000 * seconds:12.1f}{ratios[name]:9.3f}")
    shadows = [one - step for one, step in zip(times["bf16 + shadow"], times["bf16"], strict=True)]
    bars = {
        "e5m2 operands with the statistics of every cast, to a bf16 step": (ratios["e5m2 + stability"], 1.15),
        # A difference of two steps is lost in their noise: the time in the probe is taken by itself.
        "per-layer gradient statistics, of a step": (
            statistics.median(in_probes["e5m2 + gradients"][1:]) / medians["e5m2 + gradients"],
            0.01,
        ),
        "a shadow, to an FP32 forward and backward": (ratio({**times, "shadow": shadows}, "shadow", "fp32"), 1.05),
    }
    for what, (measured, bar) in bars.items():
        print(f"{what}: {measured:.4f}, at most {bar}: {'yes' if measured <= bar else 'no'}")
    result = {
        "command": "python benchmarks/step.py" + (" --small" if arguments.small else ""),
        "environment": environment(device),
        "rounds": arguments.rounds,
        "median_ms": {name: round(1000 * seconds, 2) for name, seconds in medians.items()},
        "bars": {what: {"measured": round(measured, 4), "at_most": bar} for what, (measured, bar) in bars.items()},
        "ratio_to_bf16": {name: round(value, 4) for name, value in ratios.items()},
        "all_ms": {name: [round(1000 * s, 2) for s in values] for name, values in times.items()},
    }
    if not arguments.small:
        target = Path(__file__).parent / "results" / f"step-{device.type}.json"
        target.write_text(json.dumps(result, indent=1) + "\n")


def _note_probes(seconds: list[float], event: dict) -> None:
    if event["event"] == "metrics":
        seconds.append(event["values"]["train/probe_s"])


def make_engine(recipe_name: str, probe_names: list[str], device, small: bool):
    import numpy as np
    import torch
    from altgrad_adamw.plugin import AdamWOptions
    from altgrad_gpt.plugin import GPTOptions

    from altgrad_core.plugins import Choice, installed
    from altgrad_core.recipes.convert import convert
    from altgrad_core.recipes.resolve import resolve_recipe
    from altgrad_core.training.alerts import AlertWatch
    from altgrad_core.training.config import AlertConfig, TrainConfig
    from altgrad_core.training.data import TokenData
    from altgrad_core.training.engine import Engine

    options = GPTOptions() if small else GPTOptions(n_layer=6, n_head=6, n_embd=384, block_size=256)
    vocabulary = 257 if small else 50257
    tokens = np.random.default_rng(0).integers(0, vocabulary, 1_000_000).astype(np.uint16)
    data = TokenData(
        name="random", train=tokens, val=tokens, vocab_size=vocabulary, tokenizer="none", documents=1, source_sha256="",
        path=Path(),
    )  # fmt: skip
    plugins = installed()
    recipe = resolve_recipe(recipe_name)
    torch.manual_seed(0)
    model, _ = convert(plugins.get("model", "gpt").value(options, vocabulary), recipe)
    model.to(device)
    probes = {}
    for name in probe_names:
        extension = plugins.get("probe", name)
        probes[name] = extension.value(extension.options(every=1))
    return Engine(
        train=TrainConfig(steps=10**6, batch_size=16 if small else 12, warmup_steps=100, optimizer=Choice("adamw")),
        block_size=options.block_size, seed=0, checkpoint_every=0,
        recipe=recipe, model=model, optimizer=plugins.get("optimizer", "adamw").value(AdamWOptions(), model, 6e-4, 0.1),
        data=data, probes=probes, alerts=AlertWatch(AlertConfig()), checkpoints=None, emit=lambda event: None,
        stop_requested=lambda steps: False, sinks=None, device=device, config={},
    )  # fmt: skip


def _keep_freed_memory() -> None:
    """Start again with the allocator settings that the process launcher gives to workers."""
    from altgrad_launchers.process import WORKER_ENVIRONMENT

    if not WORKER_ENVIRONMENT.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **WORKER_ENVIRONMENT})


if __name__ == "__main__":
    main()
