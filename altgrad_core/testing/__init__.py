"""Conformance suites and hypothesis strategies for third parties; needs the packages of ``altgrad[test]``.

A format of your own is tested by::

    from altgrad_core.testing import FormatConformance

    class TestMyFP8(FormatConformance):
        format = "myfp8"

A metric sink of your own by::

    from altgrad_core.testing import SinkConformance

    class TestMySink(SinkConformance):
        def build(self, folder):
            return MySink(folder / "my.db")

        def stored(self, folder):
            return [(row.step, row.metric, row.value) for row in open_my_db(folder / "my.db")]

Importing this package imports neither torch nor hypothesis: a sink is also fed in processes that do nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from altgrad_core.testing.checkpoints import CheckpointConformance
    from altgrad_core.testing.formats import FormatConformance
    from altgrad_core.testing.scaling import ScalingConformance
    from altgrad_core.testing.sinks import SinkConformance
    from altgrad_core.testing.strategies import descriptors, float_formats, landmarks, table_formats, tensors, views

_LAZY = {
    "CheckpointConformance": "altgrad_core.testing.checkpoints",
    "FormatConformance": "altgrad_core.testing.formats",
    "ScalingConformance": "altgrad_core.testing.scaling",
    "SinkConformance": "altgrad_core.testing.sinks",
    "descriptors": "altgrad_core.testing.strategies",
    "float_formats": "altgrad_core.testing.strategies",
    "landmarks": "altgrad_core.testing.strategies",
    "table_formats": "altgrad_core.testing.strategies",
    "tensors": "altgrad_core.testing.strategies",
    "views": "altgrad_core.testing.strategies",
}

__all__ = [
    "CheckpointConformance",
    "FormatConformance",
    "ScalingConformance",
    "SinkConformance",
    "descriptors",
    "float_formats",
    "landmarks",
    "table_formats",
    "tensors",
    "views",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'altgrad_core.testing' has no attribute '{name}'")
