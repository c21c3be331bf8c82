"""A nested state of tensors and plain values, taken apart into tensors by name and JSON, and put together again.

No pickle: what is written is safetensors and JSON, so loading a checkpoint runs no code. Dicts with keys other than
strings (optimizer states are keyed by number), tuples and non-finite floats survive the round trip. Tensors that share
memory, such as tied weights, are stored once.
"""

from __future__ import annotations

import math
from typing import Any

import torch

_MARK = "$"


def split(tree: dict[str, Any]) -> tuple[dict[str, torch.Tensor], Any]:
    """Return (name -> tensor, JSON skeleton that refers to the tensors by name).

    Names are slash-separated paths such as ``model/blocks.0.attn.qkv.weight``. The tensors are those of the tree; the
    skeleton shares nothing with it. Raises ``TypeError`` for a value that is neither a tensor nor JSON, naming its path.
    """
    tensors: dict[str, torch.Tensor] = {}
    seen: dict[tuple[Any, ...], str] = {}
    return tensors, {key: _split(value, key, tensors, seen) for key, value in tree.items()}


def join(tensors: dict[str, torch.Tensor], skeleton: Any) -> Any:
    """Undo ``split``."""
    if isinstance(skeleton, list):
        return [join(tensors, item) for item in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    match skeleton.get(_MARK):
        case "tensor":
            return tensors[skeleton["name"]]
        case "dict":
            return {join(tensors, key): join(tensors, item) for key, item in skeleton["items"]}
        case "tuple":
            return tuple(join(tensors, item) for item in skeleton["items"])
        case "float":
            return float(skeleton["value"])
        case _:
            return {key: join(tensors, item) for key, item in skeleton.items()}


def _split(value: Any, path: str, tensors: dict[str, torch.Tensor], seen: dict[tuple[Any, ...], str]) -> Any:
    # A function of the module: a closure that calls itself is a cycle, and would keep all tensors until it is collected.
    def inner(item: Any, name: object) -> Any:
        return _split(item, f"{path}/{name}", tensors, seen)

    if isinstance(value, torch.Tensor):
        value = value.detach()
        key = (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride(), value.dtype)
        if value.numel() == 0 or key not in seen:
            while path in tensors:  # the keys 0 and "0", or "a/b" and "b" in "a"
                path += "'"
            seen[key] = path
            tensors[path] = value
            return {_MARK: "tensor", "name": path}
        return {_MARK: "tensor", "name": seen[key]}
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value) and _MARK not in value:
            return {key: inner(item, key) for key, item in value.items()}
        return {_MARK: "dict", "items": [[inner(key, "key"), inner(item, key)] for key, item in value.items()]}
    if isinstance(value, list):
        return [inner(item, i) for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {_MARK: "tuple", "items": [inner(item, i) for i, item in enumerate(value)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {_MARK: "float", "value": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"A checkpoint holds tensors, numbers, texts, lists, tuples and dicts; {path} is {type(value)}")
