"""From a run's configuration to a training: builds all parts through the plugins, resumes, trains, and tells about it."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import nn

from altgrad_core.experiments.config import load_run
from altgrad_core.experiments.environment import choose_device, environment, record_environment
from altgrad_core.experiments.eventlog import EventLog
from altgrad_core.experiments.folder import RunFolder
from altgrad_core.experiments.hardware import as_facts
from altgrad_core.experiments.nvml import NvmlReader, NvmlUnavailable
from altgrad_core.experiments.sampler import Sampler
from altgrad_core.experiments.schema import RunConfig
from altgrad_core.files import cache_folder
from altgrad_core.plugins import Choice, installed
from altgrad_core.recipes.convert import ConversionSummary, convert
from altgrad_core.training import rng
from altgrad_core.training.alerts import AlertWatch
from altgrad_core.training.checkpoint import Checkpoints
from altgrad_core.training.data import TokenData, Workspace
from altgrad_core.training.engine import Engine, Outcome
from altgrad_core.training.events import Event


def train_run(folder: RunFolder, device_name: str, log: EventLog, stop_requested: Callable[[], bool]) -> Outcome:
    """Train the run in ``folder`` to its end, or until ``stop_requested``, and return how it ended."""
    config = load_run(folder.config)
    device = choose_device(device_name)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic cuBLAS needs a workspace of fixed size
    torch.use_deterministic_algorithms(True)
    facts = environment(device)

    data = _build("dataset", config.data, Workspace(cache=cache_folder(), say=log.log))
    rng.seed_all(config.seed)
    model = _build("model", config.model, data.vocab_size)
    model, summary = convert(model, config.recipe)
    model.to(device)
    reader, gpus_unread = _gpu_reader(device)
    sampler = Sampler(reader)
    engine = _engine(config, folder, model, data, log, sampler.after(log.emit), device, stop_requested)
    for number, sink in enumerate(config.sinks):
        name = sink.kind if [s.kind for s in config.sinks].count(sink.kind) == 1 else f"{sink.kind}-{number + 1}"
        log.add_sink(name, functools.partial(_build, "sink", sink, folder.path))
    resumed = engine.resume()
    changes = record_environment(folder.environment, facts)
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
    _tell(config, engine, summary, facts, reader, log)
    if gpus_unread:
        log.warn(f"The GPU is not watched: {gpus_unread}")
    if resumed is not None:
        log.log(f"Resumed from {resumed}.")
        if changes:
            log.warn(
                f"The run began in another environment ({'; '.join(changes)}), so from here on it is not bit for bit "
                "what it would have been there."
            )
    with sampler:
        outcome = engine.run()
    reason = {"done": "", "stopped": "non-finite loss or gradients", "interrupted": "signal"}[outcome]
    log.emit({"event": "status", "status": outcome, "step": engine.step_number, "reason": reason})
    return outcome


def _gpu_reader(device: torch.device) -> tuple[NvmlReader | None, str]:
    """Return what reads the run's GPU, None without one, and why a GPU cannot be read."""
    if device.type != "cuda":
        return None, ""
    uuid = f"GPU-{str(torch.cuda.get_device_properties(device).uuid).removeprefix('GPU-')}"
    try:
        return NvmlReader([uuid], node=platform.node()), ""
    except NvmlUnavailable as error:
        return None, str(error)


def _build(kind: str, choice: Choice, *arguments: Any) -> Any:
    return installed().get(kind, choice.kind).value(choice.options, *arguments)


def _engine(
    config: RunConfig,
    folder: RunFolder,
    model: nn.Module,
    data: TokenData,
    log: EventLog,
    emit: Callable[[Event], None],
    device: torch.device,
    stop_requested: Callable[[], bool],
) -> Engine:
    return Engine(
        train=config.train,
        block_size=config.model.options.block_size,
        seed=config.seed,
        checkpoint_every=config.checkpoint.every,
        recipe=config.recipe,
        model=model,
        optimizer=_build(
            "optimizer", config.train.optimizer, model, config.train.learning_rate, config.train.weight_decay
        ),
        data=data,
        probes={probe.kind: _build("probe", probe) for probe in config.probes},
        alerts=AlertWatch(config.alerts, weight_storage=config.recipe.weight_storage),
        checkpoints=Checkpoints(
            _build("checkpoint", config.checkpoint.backend, folder.checkpoints), config.checkpoint.keep, log.warn
        ),
        emit=emit,
        stop_requested=stop_requested,
        sinks=log,
        device=device,
    )


def _tell(
    config: RunConfig,
    engine: Engine,
    summary: ConversionSummary,
    environment: dict[str, Any],
    reader: NvmlReader | None,
    log: EventLog,
) -> None:
    """Emit what a person wants to know before the first step."""
    model, data, train = engine.model, engine.data, config.train
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
            "batch_size": train.batch_size,
            "accumulate": train.accumulate,
            "block_size": engine.block_size,
            "tokens_per_step": engine.tokens_per_step,
            "steps": train.steps,
            "epochs": train.steps * engine.tokens_per_step / len(data.train),
        },
        "recipe": {
            "name": summary.recipe,
            "compute": config.recipe.compute,
            "linear_layers": len(summary.layers),
            "converted": summary.converted,
            "left_alone": summary.skipped,
            "backend": "emulated" if summary.converted else "-",
        },
        "distributed": {"world_size": 1, "nodes": 1},
        "alerts": attrs.asdict(config.alerts),
    }
    if reader is not None:
        facts["gpus"] = {"gpus": [as_facts(gpu) for gpu in reader.gpus]}
    for what, content in facts.items():
        log.emit({"event": "init", "what": what, "facts": content})
    for pattern in summary.unused_overrides:
        log.warn(f"The recipe's override '{pattern}' matches no linear layer.")
