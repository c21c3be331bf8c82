"""How something public goes: it is deprecated in one version, says so whenever it is used, and is gone in a later one.

One ``Deprecation`` says it in the same words everywhere:

    a name of ``altgrad_core``    in ``altgrad_core.DEPRECATED``: name -> (Deprecation, where it is now)
    a hook                        in ``altgrad_core.hookspecs.DEPRECATED``; a plugin that implements it gets a note
    a key of experiments.toml     in its field's metadata: ``attrs.field(..., metadata={"deprecated": Deprecation(...)})``
"""

from __future__ import annotations

import warnings

import attrs


class AltgradDeprecationWarning(FutureWarning):
    """Something that is used here will be gone; shown by default, since users of a tool have to see it."""


@attrs.frozen(kw_only=True)
class Deprecation:
    """What goes, since when, and what to do."""

    what: str
    """What is deprecated, such as ``the hook altgrad_register_x``."""
    since: str
    """The version that deprecated it."""
    gone: str
    """The version that will no longer have it."""
    instead: str
    """What to do, as a sentence without its full stop: ``use train.steps``."""

    def __str__(self) -> str:
        return f"{self.what} is deprecated since {self.since} and gone in {self.gone}: {self.instead}"

    def warn(self, stacklevel: int = 2) -> None:
        """Warn the caller."""
        warnings.warn(f"{self}.", AltgradDeprecationWarning, stacklevel=stacklevel + 1)
