"""From a run's configuration to a training: builds all parts through the plugins, resumes, trains, and tells about it."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from altgrad_core.errors import RunFailed
from altgrad_core.experiments.adopt import adopt
from altgrad_core.experiments.config import load_run
from altgrad_core.experiments.environment import choose_device, environment, record_environment
from altgrad_core.experiments.eventlog import EventLog
from altgrad_core.experiments.feed import add_sinks
from altgrad_core.experiments.folder import FINISHED, RunFolder
from altgrad_core.experiments.hardware import as_facts
from altgrad_core.experiments.history import last_metrics
from altgrad_core.experiments.nvml import NvmlReader, NvmlUnavailable
from altgrad_core.experiments.origin import check_unchanged
from altgrad_core.experiments.runfile import run_table
from altgrad_core.experiments.sampler import Sampler
from altgrad_core.experiments.schema import RunConfig
from altgrad_core.files import cache_folder
from altgrad_core.plugins import Choice, installed
from altgrad_core.recipes.convert import ConversionSummary, convert
from altgrad_core.training import rng
from altgrad_core.training.alerts import AlertWatch
from altgrad_core.training.checkpoint import Checkpoints, load_checkpoint
from altgrad_core.training.data import Workspace
from altgrad_core.training.engine import Engine, Outcome, Stateful
from altgrad_core.training.events import Event
from altgrad_core.training.progress import telling
from altgrad_core.training.recorder import FlightRecorder


def train_run(
    folder: RunFolder,
    device_name: str,
    log: EventLog,
    stop_requested: Callable[[int], bool],
    why_stopped: Callable[[], str],
) -> Outcome:
    """Train the run in ``folder`` to its end and return how it ended.

    ``stop_requested`` is asked between steps, with the number of steps done; a true answer ends the run as interrupted,
    for the reason that ``why_stopped`` then gives.
    """
    config = load_run(folder.config)
    device = prepare_device(device_name)
    with telling(log.emit, "getting ready to cast"):  # compiles the kernel, the first time on a machine
        facts = environment(device)
    checkpoints = open_checkpoints(config, folder, log.warn, sync_events=log.sync)
    reader, gpus_unread = _gpu_reader(device)
    sampler = Sampler(reader, log.emit)
    engine, summary = assemble(
        config,
        device,
        checkpoints,
        emit=log.emit,
        say=log.log,
        stop_requested=stop_requested,
        sinks=log,
    )
    engine.recorder = FlightRecorder(folder.anomalies, functools.partial(last_metrics, folder.events))
    add_sinks(log, folder, config.sinks)
    checkpoints.clean()
    started = time.perf_counter()
    with telling(log.emit, "loading a checkpoint") if folder.has_checkpoints else contextlib.nullcontext():
        resumed = engine.resume(lambda found: check_unchanged(found, engine.config, engine.data))
    loading_s = time.perf_counter() - started
    notes = _begin_fork(config, engine) if resumed is None and config.fork is not None else None
    changes = record_environment(folder.environment, facts)
    log.start_sinks(folder.sinks)
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
        # Also because a process killed between writing a checkpoint and saying so has left it untold.
        log.emit(
            {
                "event": "checkpoint",
                "step": engine.step_number,
                "kind": "resumed",
                **attrs.asdict(resumed),
                "seconds": loading_s,
                "blocked_s": loading_s,
            }
        )
        if changes:
            log.warn(
                f"The run began in another environment ({'; '.join(changes)}), so from here on it is not bit for bit "
                "what it would have been there."
            )
    if config.fork is not None and notes is not None:
        log.log(" ".join([f"Begins where {config.fork.run} stood after step {config.fork.step}.", *notes]))
    with sampler:
        outcome = engine.run()
    if outcome in FINISHED:
        log.training_ended()
    reasons = {"done": "", "stopped": engine.alerts.stop_reason, "interrupted": why_stopped()}
    log.emit({"event": "status", "status": outcome, "step": engine.step_number, "reason": reasons[outcome]})
    return outcome


def prepare_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` and make this process compute deterministically."""
    device = choose_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic cuBLAS needs a workspace of fixed size
    torch.use_deterministic_algorithms(True)
    return device


def _gpu_reader(device: torch.device) -> tuple[NvmlReader | None, str]:
    """Return what reads the run's GPU, None without one, and why a GPU cannot be read."""
    if device.type != "cuda":
        return None, ""
    uuid = f"GPU-{str(torch.cuda.get_device_properties(device).uuid).removeprefix('GPU-')}"
    try:
        return NvmlReader([uuid], node=platform.node()), ""
    except NvmlUnavailable as error:
        return None, str(error)


def assemble(
    config: RunConfig,
    device: torch.device,
    checkpoints: Checkpoints,
    *,
    emit: Callable[[Event], None],
    say: Callable[[str], None],
    stop_requested: Callable[[int], bool],
    sinks: Stateful,
) -> tuple[Engine, ConversionSummary]:
    """Return the engine of a run before its first step, and what its recipe converted. Seeds all generators."""
    with telling(emit, "opening the data"):
        data = build("dataset", config.data, Workspace(cache=cache_folder(), say=say))
    model = _build_model(config, data.vocab_size, emit)
    model, summary = convert(model.to(device), config.recipe)  # which decides for the device at hand
    engine = Engine(
        train=config.train,
        block_size=config.model.options.block_size,
        seed=config.seed,
        checkpoint_every=config.checkpoint.every,
        recipe=config.recipe,
        model=model,
        optimizer=build(
            "optimizer", config.train.optimizer, model, config.train.learning_rate, config.train.weight_decay
        ),
        data=data,
        probes={probe.kind: build("probe", probe) for probe in config.probes},
        alerts=AlertWatch(
            config.alerts,
            weight_storage=config.recipe.weight_storage,
            casts=any(recipe.all_casts() for recipe in (config.recipe, *(o.recipe for o in config.recipe.overrides))),
        ),
        checkpoints=checkpoints,
        emit=emit,
        stop_requested=stop_requested,
        sinks=sinks,
        device=device,
        config=run_table(config),
        first_step=0 if config.fork is None else config.fork.step,
    )
    return engine, summary


def _build_model(config: RunConfig, vocab_size: int, emit: Callable[[Event], None]) -> nn.Module:
    """Return the model, its weights drawn anew from the seed, and tell how many of them there are meanwhile."""
    with torch.device("meta"):
        total = sum(p.numel() for p in build("model", config.model, vocab_size).parameters())
    done = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal done
        done = min(total, done + parameter.numel())
        progress.advance(done)

    rng.seed_all(config.seed)
    with telling(emit, "building the model", total=total, unit="parameters") as progress:
        counting = register_module_parameter_registration_hook(count)
        try:
            model: nn.Module = build("model", config.model, vocab_size)
        finally:
            counting.remove()
    return model


def open_checkpoints(
    config: RunConfig,
    folder: RunFolder,
    warn: Callable[[str], None],
    *,
    sync_events: Callable[[], None] | None = None,
) -> Checkpoints:
    """Return the checkpoints of the run in ``folder``; ``warn`` is told what goes wrong without ending the run."""
    return Checkpoints(
        build("checkpoint", config.checkpoint.backend, folder.checkpoints),
        config.checkpoint.keep,
        warn,
        keep_every=config.checkpoint.keep_every,
        sync_events=sync_events,
    )


def build(kind: str, choice: Choice, *arguments: Any) -> Any:
    """Return what the plugin chosen as ``kind`` builds of its options and ``arguments``."""
    return installed().get(kind, choice.kind).value(choice.options, *arguments)


def _begin_fork(config: RunConfig, engine: Engine) -> list[str]:
    """Give the engine the state that the fork begins with; returns what of it starts anew, in sentences."""
    assert config.fork is not None
    backend, start = engine.checkpoints.backend, config.fork.start
    found = load_checkpoint(backend, start) if start in backend.names() else None
    if found is None or found.saved.state_hash != config.fork.state_hash:
        what = "is missing" if found is None else "has another state than run.toml says"
        raise RunFailed(
            f"This run is a fork of {config.fork.run} after step {config.fork.step}, and its copy of the parent's "
            f"checkpoint, {start}, {what}: give the command 'altgrad fork' again."
        )
    return adopt(engine, found.state, found.notes["config"], found.notes["data"])


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
            "kinds": list(config.recipe.layers),
            "converted": summary.converted,
            "left_alone": summary.skipped,
            "backend": summary.backend,
            "backends": summary.backends,
        },
        "distributed": {"world_size": 1, "nodes": 1},
        "alerts": attrs.asdict(config.alerts),
    }
    if reader is not None:
        facts["gpus"] = {"gpus": [as_facts(gpu) for gpu in reader.gpus]}
    for what, content in facts.items():
        log.emit({"event": "init", "what": what, "facts": content})
    for pattern in summary.unused_overrides:
        log.warn(f"The recipe's override '{pattern}' matches no layer.")
