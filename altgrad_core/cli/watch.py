"""``altgrad watch``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def watch(
    target: Annotated[
        Path | None, typer.Argument(help="Folder of a run or of an experiment; the newest experiment when not given.")
    ] = None,
    replay: Annotated[bool, typer.Option("--replay", help="Play what was recorded, from the beginning.")] = False,
    speed: Annotated[str, typer.Option("--speed", help="Of --replay: times as fast as it was, or max.")] = "20",
    runs: Annotated[Path, typer.Option("--runs", help="Where run folders are.")] = Path("runs"),
) -> None:
    """Watch runs from another terminal, or from another machine with the folder mounted.

    Ends when all of them have ended; Ctrl-C ends only the watching.
    """
    import time

    from altgrad_core.console.follow import Follower, config_of, find, recorded
    from altgrad_core.console.screen import make_screen
    from altgrad_core.console.terminal import restored, terminal
    from altgrad_core.experiments.pacing import pace, paced

    factor = pace(speed)
    found = find(target, runs)
    if not replay:
        screen = make_screen(terminal(), title=found.title)
        screen.now = lambda: max(time.time(), screen.state.latest)  # a simulation's clock may be ahead
        with restored(screen.close):
            Follower(found, screen).follow()
        return
    screen = make_screen(terminal(), title=f"{found.title} (replay, {speed} times as fast)")
    screen.now = lambda: screen.state.latest
    with restored(screen.close):
        folders = found.runs()
        for folder in folders:
            screen.add(**config_of(folder.path))
            screen.folders[folder.path.name] = folder
        for name, event in paced(recorded(folders), factor, screen.idle, longest_s=10.0):
            screen.event(name, event)
        for state in screen.state.runs.values():
            if state.latest and not state.over:
                state.stop("interrupted", "the recording ends here")
