"""Whether a run would go on as it began: what its checkpoint remembers of configuration and data, against what is there now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altgrad_core.errors import AltgradError
from altgrad_core.experiments.runfile import decisive_changes
from altgrad_core.training.checkpoint import Loaded
from altgrad_core.training.data import TokenData, data_changes


def changes_since(found: Loaded, config: Mapping[str, Any], data: TokenData) -> list[str]:
    """Return a line for each key of the configuration (as tables), and each trait of the data, that differs: then -> now."""
    other = data_changes(found.notes["data"], data.identity)
    return [*decisive_changes(found.notes["config"], config), *([f"the data: {other}"] if other else [])]


def check_unchanged(found: Loaded, config: Mapping[str, Any], data: TokenData) -> None:
    """Raise ``AltgradError`` with what differs unless a run from this checkpoint goes on as it began."""
    changes = changes_since(found, config, data)
    if changes:
        lines = "\n".join(f"  {line}" for line in changes)
        raise AltgradError(
            f"The checkpoint {found.saved.path} was trained otherwise than this run would go on (then -> now):\n{lines}\n"
            "Put run.toml and the data back as they were, or start over with --fresh, which keeps the old folder aside."
        )
