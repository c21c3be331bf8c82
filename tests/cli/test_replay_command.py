"""What ``altgrad replay`` prints."""

from __future__ import annotations

import math

import pytest
from rich.console import Console

from altgrad_core.cli.replay import replay, show
from altgrad_core.errors import AltgradError
from altgrad_core.experiments.replay import Replay, Step
from altgrad_core.numerics.statistics import CastStatistics
from altgrad_core.training.postmortem import Findings, Place


def cast(**lost: float) -> CastStatistics:
    """1,000 elements at 20 dB, with what they lost."""
    counts = dict.fromkeys(("overflow", "underflow", "subnormal", "nan", "inf"), 0.0)
    powers = {"amax": 1.0, "amin": 0.1, "signal_power": 100.0, "error_power": 1.0}
    return CastStatistics(elements=1000.0, **counts | powers | lost)


def step(recipe: str, casts: dict[str, CastStatistics], *places: Place, changed: bool = False) -> Step:
    metrics = {"train/loss": 2.5, "overflow_rate": 0.00123, "dead_neuron_frac": 0.5, "bit_stall_rate": math.nan}
    return Step(recipe=recipe, changed=changed, metrics=metrics, findings=Findings(first=places, casts=casts))


def printed(*executions: Step, layers: int = 8, width: int = 80) -> list[str]:
    found = Replay(step=7, checkpoint=None, retrained=0, recorded={"train/loss": 2.5}, executions=executions)
    console = Console(width=width, color_system=None, force_terminal=False, highlight=False)
    with console.capture() as capture:
        show(found, console, layers)
    return [line.rstrip() for line in capture.get().splitlines() if line.strip()]


CASTS = {
    "blocks.0.mlp.up.input": cast(),
    "blocks.0.mlp.up.weight": cast(error_power=10.0),
    "blocks.11.attn.qkv.grad_output": cast(underflow=500.0),
    "blocks.0.attn.out.input": cast(overflow=1.0),
    "blocks.3.mlp.down.input": cast(nan=2.0, inf=1.0),
    "zeros": cast(signal_power=0.0, error_power=0.0),
}
ORDER = [
    "blocks.3.mlp.down.input", "blocks.0.attn.out.input", "blocks.11.attn.qkv.grad_output", "blocks.0.mlp.up.weight",
    "blocks.0.mlp.up.input", "zeros",
]  # fmt: skip


def test_a_single_recipe() -> None:
    lines = printed(step("e5m2", CASTS))
    table = lines[lines.index("Casts that lost most") + 1 :]
    assert table[0].split() == ["layer.operand", "NaN", "or", "inf", "overflow", "underflow", "SQNR", "dB"]
    rows = [line.split() for line in table[1:]]
    assert [row[0] for row in rows] == ORDER
    assert rows[0][1:] == ["3", "0.00", "%", "0.00", "%", "20.0"]
    assert rows[1][1:] == ["0", "0.10", "%", "0.00", "%", "20.0"]
    assert rows[5][-1] == "NaN"
    assert any(line.split() == ["overflow_rate", "-", "0.12", "%"] for line in lines)
    assert any(line.split() == ["dead_neuron_frac", "-", "50.00", "%"] for line in lines)
    assert any(line.split() == ["bit_stall_rate", "-", "NaN"] for line in lines)


def test_a_recipe_without_casts_beside_one_with() -> None:
    """Executions stand one under the other, so that the names of layers are whole at 80 columns."""
    lines = printed(step("e5m2", CASTS), step("bf16", {}, changed=True), layers=3)
    table = lines[lines.index("Casts that lost most") + 1 :]
    assert table[0].split()[:2] == ["layer.operand", "recipe"]
    assert [line.split()[0] for line in table[1:7:2]] == ORDER[:3]
    assert all(line.split() == ["bf16", "(changed)", "-", "-", "-", "-"] for line in table[2:7:2])
    assert len(table) == 7


def test_the_changed_one_is_called_so_in_the_sentences() -> None:
    place = Place(kind="saturation", phase="forward", where="blocks.0.mlp.up.input", what="1 of 8 elements clamped")
    lines = printed(step("e5m2", {}, place), step("e5m2", {}, changed=True))
    assert "e5m2: first saturation: forward, blocks.0.mlp.up.input: 1 of 8 elements clamped" in lines
    assert "e5m2 (changed): every number finite, nothing clamped" in lines
    assert lines[-1] == "Nothing was cast."


def test_names_are_whole_in_a_narrow_terminal() -> None:
    lines = printed(step("e5m2", CASTS), step("e5m2", CASTS, changed=True), width=50)
    assert any(line.startswith("blocks.11.attn.qkv.grad_output  e5m2 ") for line in lines)


@pytest.mark.parametrize("text", ["runs/x/y", "@3", "runs/x/y@"])
def test_what_replay_takes_is_a_number(text: str) -> None:
    with pytest.raises(AltgradError, match=r"a run's folder and the number of a step.*got") as raised:
        replay(text)
    assert "latest" not in str(raised.value)
