"""The GPU grid: it fits wherever it is put, names the sick ones, and says N/A for what it does not know."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenes import training

from altgrad_core.console.grid import draw_grid, layout
from altgrad_core.console.health import Health, diagnose, worst
from altgrad_core.console.state import RunState
from altgrad_core.experiments.hardware import Gpu, GpuSample


@given(st.integers(1, 600), st.integers(1, 80), st.integers(10, 300), st.integers(1, 100))
def test_a_layout_never_takes_more_than_there_is(gpus: int, nodes: int, width: int, height: int) -> None:
    nodes = min(nodes, gpus)
    plan = layout(gpus, nodes, width, height)
    assert 1 <= plan.rows <= height
    assert plan.columns >= 1
    assert plan.columns * plan.cell <= width
    if plan.mode != "node":  # every GPU has its place
        each = -(-gpus // nodes)
        assert nodes * -(-each // plan.columns) * (2 if plan.mode == "detail" else 1) < plan.rows + 1


@pytest.mark.parametrize(
    ("gpus", "width", "height", "mode"),
    [
        (1, 79, 5, "detail"),
        (8, 79, 10, "line"),
        (8, 79, 20, "detail"),
        (8, 60, 8, "tile"),
        (64, 79, 9, "tile"),
        (64, 79, 8, "node"),
        (64, 199, 60, "line"),
        (256, 79, 12, "node"),
        (256, 199, 40, "tile"),
    ],
)
def test_modes(gpus: int, width: int, height: int, mode: str) -> None:
    assert layout(gpus, -(-gpus // 8), width, height).mode == mode


@pytest.mark.parametrize("gpus", [1, 2, 8, 9, 64, 256])
def test_what_is_drawn_fits(gpus: int) -> None:
    run = training(gpus).runs["e5m2"]
    for width in (30, 40, 64, 79, 99, 159, 199):
        for height in (1, 2, 3, 5, 9, 12, 20, 40, 70):
            lines = draw_grid(run, width, height)
            assert 1 <= len(lines) <= height
            assert all(line.width <= width for line in lines)


def test_the_sick_ones_of_256_are_named_in_few_rows() -> None:
    text = "\n".join(line.plain for line in draw_grid(training(256).runs["e5m2"], 79, 8))
    for finding in (
        "rank 6 T: hardware thermal",
        "rank 41 H: 86 °C, limit 90",
        "rank 130 M: memory 99 %",
        "rank 200 E: 2",
    ):
        assert finding in text
    assert "… and 26 more nodes, all well" in text
    few = "\n".join(line.plain for line in draw_grid(training(256).runs["e5m2"], 79, 3))
    assert "31 more nodes" in few
    assert "GPUs there are not well" in few


def test_what_is_unknown_is_not_zero() -> None:
    run = RunState("r")
    run.gpus = {0: Gpu(rank=0, node="n", uuid="GPU-0", name="a card"), 1: Gpu(rank=1, node="n", uuid="GPU-1", name="b")}
    run.samples = {0: GpuSample(rank=0, temperature_c=50)}
    for height in (3, 5):
        text = "\n".join(line.plain for line in draw_grid(run, 79, height))
        assert "N/A" in text
        assert " 0 %" not in text
        assert " 0 W" not in text
    assert "all well" in text


def gpu(**facts: float) -> Gpu:
    return Gpu(rank=0, node="n", uuid="u", name="g", **{"total_mib": 80_000, "slowdown_c": 90, **facts})


@pytest.mark.parametrize(
    ("sample", "health"),
    [
        ({"throttle": ["power cap", "idle"]}, (0, "·", "")),
        ({"throttle": ["power cap", "software thermal"]}, (2, "T", "software thermal")),
        ({"throttle": ["power brake"]}, (2, "T", "power brake")),
        ({"temperature_c": 84}, (0, "·", "")),
        ({"temperature_c": 85}, (2, "H", "85 °C, limit 90")),
        ({"used_mib": 77_599}, (0, "·", "")),
        ({"used_mib": 77_600}, (2, "M", "memory 97 %")),
        ({"ecc": 1}, (2, "E", "1 ECC errors")),
        ({"utilization": None, "used_mib": None, "temperature_c": None, "power_w": None}, (2, "X", "unreadable")),
        ({"utilization": 70}, (0, "·", "")),
        ({"utilization": 69}, (1, "S", "69 %, median 90 %")),
        ({"sm_mhz": 1444}, (1, "S", "1444 MHz, median 1700")),
    ],
)
def test_what_counts_as_sick(sample: dict[str, object], health: tuple[int, str, str]) -> None:
    well = {
        "used_mib": 1000,
        "utilization": 90,
        "temperature_c": 60,
        "power_w": 500,
        "sm_mhz": 1700,
        "ecc": 0,
        "throttle": [],
    }
    gpus = {rank: gpu() for rank in range(5)}
    samples = {rank: GpuSample(rank=rank, **well) for rank in range(1, 5)}
    samples[0] = GpuSample(rank=0, **{**well, **sample})
    found = diagnose(gpus, samples)
    assert found[0] == Health(*health)
    assert worst(found) == (0 if health[0] else None)


def test_two_cards_have_no_straggler() -> None:
    gpus = {0: gpu(), 1: gpu()}
    samples = {0: GpuSample(rank=0, utilization=10), 1: GpuSample(rank=1, utilization=90)}
    assert worst(diagnose(gpus, samples)) is None
