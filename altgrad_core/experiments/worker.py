"""The worker: executes one run folder, from ``run.toml`` to the last checkpoint, and tells all in ``events.jsonl``."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from altgrad_core.errors import AltgradError, RunFailed
from altgrad_core.experiments.config import load_run
from altgrad_core.experiments.environment import choose_device, environment
from altgrad_core.experiments.eventlog import EventLog
from altgrad_core.experiments.folder import RunFolder, hold
from altgrad_core.experiments.schema import RunConfig
from altgrad_core.plugins import Choice, installed
from altgrad_core.recipes.convert import ConversionSummary, convert
from altgrad_core.training import rng
from altgrad_core.training.alerts import AlertWatch
from altgrad_core.training.checkpoint import Checkpoints
from altgrad_core.training.data import TokenData, Workspace, cache_folder
from altgrad_core.training.engine import Engine, Loop


def main() -> None:
    """Run ``python -m altgrad_core.experiments.worker FOLDER --device DEVICE``."""
    parser = argparse.ArgumentParser(description="Execute one run folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    sys.exit(execute(RunFolder(arguments.folder), arguments.device))


def execute(folder: RunFolder, device_name: str) -> int:
    """Train the run and return its exit status: 0 done or stopped by an alert, 1 failed, 128 + signal interrupted."""
    with hold(folder.lock, f"The run {folder.path}"), _signals() as received:
        log = EventLog(folder.events)
        try:
            return _train(folder, device_name, log, received)
        except Exception as error:
            known = isinstance(error, AltgradError | torch.OutOfMemoryError)
            if not known:
                traceback.print_exc()
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            print(reason, file=sys.stderr)  # noqa: T201 - the worker's log
            with contextlib.suppress(
                RunFailed
            ):  # a full disk takes no event either; the lock tells that the run is over
                log.emit({"event": "status", "status": "failed", "reason": reason})
            return 1
        finally:
            log.close()


def _train(folder: RunFolder, device_name: str, log: EventLog, received: list[int]) -> int:
    config = load_run(folder.config)
    device = choose_device(device_name)
    torch.use_deterministic_algorithms(True)
    facts = environment(device)
    folder.environment.write_text(json.dumps(facts, indent=2) + "\n")

    data = _build("dataset", config.data, Workspace(cache=cache_folder(), say=log.log))
    rng.seed_all(config.seed)
    model = _build("model", config.model, data.vocab_size)
    model, summary = convert(model, config.recipe)
    model.to(device)
    engine = _engine(config, folder, model, data, log, device, received)
    for number, sink in enumerate(config.sinks):
        name = sink.kind if [s.kind for s in config.sinks].count(sink.kind) == 1 else f"{sink.kind}-{number + 1}"
        log.add_sink(name, functools.partial(_build, "sink", sink, folder.path))
    resumed = engine.resume()
    log.start_sinks(folder.path / "sinks.json")
    log.emit(
        {
            "event": "status",
            "status": "running",
            "step": engine.step_number,
            "resumed": resumed is not None,
            "pid": os.getpid(),
        }
    )
    _tell(config, engine, summary, facts, log)
    if resumed is not None:
        log.log(f"Resumed from {resumed}.")
    outcome = engine.run()
    reason = {"done": "", "stopped": "non-finite loss or gradients", "interrupted": "signal"}[outcome]
    log.emit({"event": "status", "status": outcome, "step": engine.step_number, "reason": reason})
    return 128 + received[0] if outcome == "interrupted" else 0


def _build(kind: str, choice: Choice, *arguments: Any) -> Any:
    return installed().get(kind, choice.kind).value(choice.options, *arguments)


def _engine(
    config: RunConfig,
    folder: RunFolder,
    model: nn.Module,
    data: TokenData,
    log: EventLog,
    device: torch.device,
    received: list[int],
) -> Engine:
    train = config.train
    return Engine(
        loop=Loop(
            steps=train.steps,
            batch_size=train.batch_size,
            block_size=config.model.options.block_size,
            accumulate=train.accumulate,
            learning_rate=train.learning_rate,
            final_learning_rate=train.final_learning_rate,
            warmup_steps=train.warmup_steps,
            grad_clip=train.grad_clip,
            eval_every=train.eval_every,
            eval_batches=train.eval_batches,
            log_every=train.log_every,
            checkpoint_every=config.checkpoint.every,
            seed=config.seed,
        ),
        recipe=config.recipe,
        model=model,
        optimizer=_build("optimizer", train.optimizer, model, train.learning_rate, train.weight_decay),
        data=data,
        probes={probe.kind: _build("probe", probe) for probe in config.probes},
        alerts=AlertWatch(config.alerts),
        checkpoints=Checkpoints(
            _build("checkpoint", config.checkpoint.backend, folder.checkpoints), config.checkpoint.keep, log.warn
        ),
        emit=log.emit,
        stop_requested=lambda: bool(received),
        sinks=log,
        device=device,
    )


def _tell(
    config: RunConfig, engine: Engine, summary: ConversionSummary, environment: dict[str, Any], log: EventLog
) -> None:
    """Emit what a person wants to know before the first step."""
    model, data, loop = engine.model, engine.data, engine.loop
    groups: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        group = name.partition(".")[0]
        groups[group] = groups.get(group, 0) + parameter.numel()
    facts = {
        "environment": environment,
        "model": {
            "kind": config.model.kind,
            "parameters": sum(groups.values()),
            "groups": groups,
            "options": attrs.asdict(config.model.options),
        },
        "data": {
            "name": data.name,
            "tokenizer": data.tokenizer,
            "vocab_size": data.vocab_size,
            "documents": data.documents,
            "train_tokens": len(data.train),
            "val_tokens": len(data.val),
            "source_sha256": data.source_sha256,
        },
        "batch": {
            "batch_size": loop.batch_size,
            "accumulate": loop.accumulate,
            "block_size": loop.block_size,
            "tokens_per_step": loop.tokens_per_step,
            "steps": loop.steps,
            "epochs": loop.steps * loop.tokens_per_step / len(data.train),
        },
        "recipe": {
            "name": summary.recipe,
            "compute": config.recipe.compute,
            "linear_layers": len(summary.layers),
            "converted": summary.converted,
            "left_alone": summary.skipped,
            "backend": "emulated" if summary.converted else "-",
        },
    }
    for what, content in facts.items():
        log.emit({"event": "init", "what": what, "facts": content})
    for pattern in summary.unused_overrides:
        log.warn(f"The recipe's override '{pattern}' matches no linear layer.")


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM; a second one of a kind ends the process as usual."""
    received: list[int] = []

    def receive(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
