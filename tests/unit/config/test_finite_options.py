"""Options of the built-in plugins take finite numbers only; so does every number of the training itself."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from altgrad_core.plugins import KINDS, installed
from altgrad_core.structure import StructureError, structure
from altgrad_core.training.config import AlertConfig, TrainConfig


def _numbers() -> list[Any]:
    plugins = installed()
    classes = {(kind, name): plugins.get(kind, name).options for kind in KINDS.values() for name in plugins.names(kind)}
    classes |= {("train", ""): TrainConfig}
    classes |= {("alerts", alert): type(AlertConfig.default(alert)) for alert in attrs.fields_dict(AlertConfig)}
    return [
        pytest.param(cls, field.name, id=f"{kind}-{name}-{field.name}")
        for (kind, name), cls in classes.items()
        if cls is not None
        for field in attrs.fields(attrs.resolve_types(cls))
        if field.type in (float, float | None)
    ]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize(("cls", "field"), _numbers())
def test_no_number_is_infinite(cls: type, field: str, value: float) -> None:
    with pytest.raises(StructureError, match=f"{field}: expected a finite number, got {value}"):
        structure({field: value}, cls)


def test_the_list_is_not_empty() -> None:
    assert len(_numbers()) > 15
