"""Errors that a user can mend. Everything else is a bug and keeps its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AltgradError(Exception):
    """The user's input or surroundings are wrong: the text says what was expected, what came, and what to do."""

    exit_status = 2


class RunFailed(AltgradError):
    """A run could not go on (a full disk, a crash of its process); its finished steps are kept."""

    exit_status = 1


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of ``known``, or an empty string when none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Return the standard sentence for a name outside a closed set: the name, the nearest one and the whole set."""
    known = sorted(known)
    listed = ", ".join(known) if known else "none"
    return f"Unknown {what} '{name}'.{nearest(name, known)} Known: {listed}."
