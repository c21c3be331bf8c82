"""What a run ran on: versions, device, threads, git commit. Kept in ``env.json`` and told at the start."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from altgrad_core.errors import AltgradError
from altgrad_core.files import write_whole
from altgrad_core.numerics.native import status

_PACKAGES = ("altgrad", "torch", "numpy", "tiktoken", "safetensors", "attrs", "cattrs", "pluggy")


def choose_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; an ``AltgradError`` when it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise AltgradError(f"--device takes auto, cpu, cuda or cuda:N, got '{name}'.") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise AltgradError(f"--device {name}: torch sees {count} CUDA devices. Use --device cpu, or a CUDA build.")
    elif device.type != "cpu":
        raise AltgradError(f"--device takes auto, cpu, cuda or cuda:N, got '{name}'.")
    return device


def environment(device: torch.device) -> dict[str, Any]:
    """Return the facts for ``env.json``."""
    facts: dict[str, Any] = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "cpu_threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
    }
    if device.type == "cpu":
        facts["cast_kernel"] = cast_kernel()
    else:
        facts["cuda"] = torch.version.cuda
        facts["device_memory_gib"] = round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
    return facts


def cast_kernel() -> str:
    """Return which kernel casts on the CPU, and why when it is a slower one; the first call on a machine compiles it."""
    kernel = status()
    if not kernel.native:
        return f"torch operations, because: {kernel.reason}"
    return f"native, one thread, because: {kernel.one_thread}" if kernel.one_thread else "native"


def record_environment(path: Path, facts: dict[str, Any]) -> list[str]:
    """Write ``env.json`` and return what differs from where the run began: ``cpu_threads: 1 -> 2``.

    The file holds the newest environment; those before it that differ stay under ``earlier``, oldest first. One that is
    damaged is written anew: no training depends on it.
    """
    before: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    earlier = before.pop("earlier", [])
    if before and before != facts:
        earlier.append(before)
    text = json.dumps({**facts, "earlier": earlier} if earlier else facts, indent=2)
    write_whole(path, f"{text}\n")
    first = earlier[0] if earlier else facts
    return [f"{key}: {first.get(key)} -> {facts[key]}" for key in facts if first.get(key) != facts[key]]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """Return the commit of the working directory's repository, with ``+changes`` when its files differ."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")
