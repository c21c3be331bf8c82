from __future__ import annotations

import attrs
import pytest

from altgrad_core.experiments.feed import options_hash
from altgrad_core.experiments.runfile import sink_names
from altgrad_core.plugins import Choice


@attrs.frozen
class Options:
    project: str = "altgrad"
    tags: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("kinds", "names"),
    [
        (["csv"], ["csv"]),
        (["csv", "csv"], ["csv", "csv-2"]),
        (["wandb", "csv", "aim", "csv", "csv"], ["wandb", "csv", "aim", "csv-2", "csv-3"]),
        (["csv", "csv-2", "csv"], ["csv", "csv-2", "csv-3"]),
    ],
)
def test_a_sink_is_named_by_its_kind_and_not_by_its_place(kinds: list[str], names: list[str]) -> None:
    assert sink_names([Choice(kind) for kind in kinds]) == names


def test_the_hash_is_that_of_the_options() -> None:
    one = options_hash(Choice("wandb", Options(project="one")))
    assert one == options_hash(Choice("wandb", Options(project="one")))
    assert one != options_hash(Choice("wandb", Options(project="two")))
    assert one != options_hash(Choice("wandb", Options(project="one", tags=("a",))))
    assert "one" not in one
