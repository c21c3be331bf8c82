"""The sinks of a finished run that have not got all of it: killed or abandoned before they had, or named only since.

Nothing is trained and nothing of the run changes but its last event, ``sinks``; what goes wrong is a warning.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence

from altgrad_core.experiments.config import load_run
from altgrad_core.experiments.eventlog import EventLog
from altgrad_core.experiments.folder import RunFolder
from altgrad_core.experiments.history import fed_sinks
from altgrad_core.experiments.runfile import sink_names
from altgrad_core.plugins import Choice, installed
from altgrad_core.structure import unstructure


def hungry_sinks(folder: RunFolder, sinks: Sequence[Choice]) -> list[str]:
    """Return those of ``sinks``, by the names that they have in the run's files, that have not got every event.

    One whose package is not installed is none of them: it could take nothing.
    """
    fed = fed_sinks(folder.events).values()
    return [
        name
        for name, sink in zip(sink_names(sinks), sinks, strict=True)
        if options_hash(sink) not in fed and not installed().get("sink", sink.kind).missing
    ]


def add_sinks(log: EventLog, folder: RunFolder, sinks: Sequence[Choice], only: Sequence[str] | None = None) -> None:
    """Name the sinks of a run to its log; ``only`` leaves out the others."""
    for name, sink in zip(sink_names(sinks), sinks, strict=True):
        if only is None or name in only:
            build = installed().get("sink", sink.kind).value
            log.add_sink(name, functools.partial(build, sink.options, folder.path), options_hash(sink))


def feed(folder: RunFolder, log: EventLog) -> None:
    """Start the sinks of a finished run that lack something; closing the log lets them come to their end."""
    sinks = load_run(folder.config).sinks
    add_sinks(log, folder, sinks, only=hungry_sinks(folder, sinks))
    log.feed_sinks(folder.sinks)


def options_hash(choice: Choice) -> str:
    """Return a text that is the same for the same kind and options and gives none of them away."""
    text = json.dumps([choice.kind, unstructure(choice.options)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
