"""Registers the launchers ``process`` and ``inline``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from altgrad_core.hookspecs import Register, hookimpl

if TYPE_CHECKING:
    from altgrad_core.experiments.launch import Launcher


def build_process(options: object) -> Launcher:
    """Each run in a process of its own: a crash ends that run only."""
    from altgrad_launchers.process import ProcessLauncher

    return ProcessLauncher()


def build_inline(options: object) -> Launcher:
    """The run in this process, for a debugger or a profiler; one after the other, no protection from crashes."""
    from altgrad_launchers.inline import InlineLauncher

    return InlineLauncher()


@hookimpl
def altgrad_register_launchers(register: Register) -> None:
    """Register both."""
    register("process", build_process)
    register("inline", build_inline)
