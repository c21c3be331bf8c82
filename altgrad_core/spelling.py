"""Keys and values as TOML spells them, for error texts and names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import tomli_w

KeyPath = tuple[str | int, ...]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SHOWN = 60


def key_text(path: KeyPath) -> str:
    """Return a key path as one would write it: ``train.steps``, ``sink[0].kind``, ``matrix."recipe.scaling"``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _BARE_KEY.fullmatch(part) else shown(part, limit=None))
    return text


def shown(value: Any, limit: int | None = _SHOWN) -> str:
    """Return a value as TOML spells it, shortened to ``limit`` characters."""
    text = _spelled(value)
    return text if limit is None or len(text) <= limit else text[: limit - 3] + "..."


def _spelled(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key_text((str(key),))} = {_spelled(item)}" for key, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_spelled(item) for item in value)}]"
    try:
        return tomli_w.dumps({"x": value}).removeprefix("x = ").removesuffix("\n")
    except (TypeError, ValueError):
        return repr(value)
