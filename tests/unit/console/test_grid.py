"""The GPU grid: it fits wherever it is put, names the sick ones, and says N/A for what it does not know."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenes import training

from altgrad_core.console.canvas import Line
from altgrad_core.console.grid import Grid, layout
from altgrad_core.console.health import MARKS, Health, diagnose, worst
from altgrad_core.console.nodes import short_name
from altgrad_core.console.state import RunState
from altgrad_core.experiments.hardware import Gpu, GpuSample


def cluster(sizes: Sequence[int], sick: Mapping[int, Mapping[str, object]] = {}) -> RunState:
    """A run on nodes of so many GPUs each, all sampled; ``sick`` gives what is different with some ranks."""
    run = RunState("r")
    hosts = [f"host-{number:03}" for number, size in enumerate(sizes) for _ in range(size)]
    gpus = [{"rank": rank, "node": node, "uuid": f"GPU-{rank}", "name": "a card"} for rank, node in enumerate(hosts)]
    run.take({"time": 1.0, "event": "init", "what": "gpus", "facts": {"gpus": gpus}})
    samples = [{"rank": gpu["rank"], "utilization": 50, **sick.get(gpu["rank"], {})} for gpu in gpus]
    run.take({"time": 2.0, "event": "gpus", "samples": samples})
    return run


def accounted_for(lines: Sequence[Line]) -> int:
    """Return how many GPUs have a mark of their own in a grid, or are counted in a row of it."""
    parts = [part.text for line in lines for part in line.parts]
    marks = sum(len(text) for text in parts if set(text) <= {"·", *MARKS})
    return marks + sum(int(number) for line in lines for number in re.findall(r"nodes?, (\d+) GPUs", line.plain))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(30, 250), st.integers(1, 90))
def test_every_gpu_is_accounted_for(sizes: list[int], width: int, height: int) -> None:
    """However uneven the nodes are: a place for each, or a row that says how many have none."""
    run = cluster(sizes)
    lines = Grid(run).draw(width, height)
    assert len(lines) <= height
    assert all(line.width <= width for line in lines)
    assert lines[0].plain.startswith(f"{sum(sizes)} GPU")
    if height > 1:
        assert accounted_for(lines) == sum(sizes), "\n".join(line.plain for line in lines)


def test_a_node_with_one_more_is_not_cut_off() -> None:
    run = cluster([8, 1])
    for height in range(2, 12):
        lines = Grid(run).draw(79, height)
        assert accounted_for(lines) == 9


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=40),
    st.integers(30, 200),
    st.integers(2, 60),
    st.sets(st.integers(0, 300), max_size=12),
)
def test_every_sick_gpu_is_named_or_counted(sizes: list[int], width: int, height: int, ranks: set[int]) -> None:
    number = sum(sizes)
    sick = {rank: {"ecc": 1} for rank in ranks if rank < number}
    lines = Grid(cluster(sizes, sick)).draw(width, height)
    text = "\n".join(line.plain for line in lines)
    if sick:
        assert f"E {len(sick)}" in lines[0].plain
    named = {int(rank) for rank in re.findall(r"(?:rank |\b)(\d+) ?E", text)} & set(sick)
    more = sum(int(found) for found in re.findall(r" and (\d+) more", text))
    assert len(named) + more >= len(sick), text


@pytest.mark.parametrize(
    ("gpus", "width", "height", "mode"),
    [
        (1, 79, 5, "detail"),
        (8, 79, 10, "line"),
        (8, 79, 20, "detail"),
        (8, 60, 8, "tile"),
        (64, 79, 9, "tile"),
        (64, 79, 8, "marks"),
        (64, 199, 60, "line"),
        (256, 79, 12, "marks"),
        (256, 159, 28, "node"),
        (256, 199, 40, "tile"),
    ],
)
def test_modes(gpus: int, width: int, height: int, mode: str) -> None:
    sizes = [min(8, gpus)] * -(-gpus // 8)
    plan = layout(sizes, width, height)
    assert plan.mode == mode
    assert plan.rows <= height
    assert plan.columns * plan.cell <= width


@pytest.mark.parametrize("gpus", [1, 2, 8, 9, 64, 256])
def test_what_is_drawn_fits(gpus: int) -> None:
    run = training(gpus).runs["e5m2"]
    for width in (30, 40, 64, 79, 99, 159, 199):
        for height in (1, 2, 3, 5, 9, 12, 20, 40, 70):
            lines = Grid(run).draw(width, height)
            assert 1 <= len(lines) <= height
            assert all(line.width <= width for line in lines)


def test_256_gpus_in_80_columns() -> None:
    """What the lower half of 80 x 24 has to hold: a mark for each, and a name for each that is sick."""
    run = training(256).runs["e5m2"]
    assert Grid(run).least_rows(79) == 1 + 8 + 3
    text = "\n".join(line.plain for line in Grid(run).draw(79, 12))
    assert text.count("·") == 256 - 5
    for finding in (
        "rank 3 S: 61 %, median 95 %  node00",
        "rank 6 T: hardware thermal  node00",
        "rank 41 H: 86 °C, limit 90  node05",
        "rank 130 M: memory 99 %  node16",
        "rank 200 E: 2 ECC errors  node25",
    ):
        assert finding in text
    few = [line.plain.rstrip() for line in Grid(run).draw(79, 4)]
    assert few[1] == " node00 ···S··T·   node05 ·H······   node16 ··M·····   node25 E·······"
    assert few[2] == " … 28 more nodes, 224 GPUs, all well"
    assert few[3] == " rank 6 T: hardware thermal  node00     41H 130M 200E 3S"
    assert Grid(run).draw(79, 2)[1].plain.rstrip() == " rank 6 T: hardware thermal  node00     41H 130M 200E 3S"


def test_many_sick_ones_are_named_in_short_and_then_counted() -> None:
    run = cluster([8] * 32, {rank: {"ecc": 1} for rank in range(0, 256, 8)})
    *_, last = Grid(run).draw(79, 10)
    assert last.plain.startswith(" rank 0 E: 1 ECC errors  host-000")
    assert re.search(r" 8E 16E .* and \d+ more$", last.plain.rstrip())


@pytest.mark.parametrize(
    ("node", "width", "short"),
    [
        ("node07", 7, "node07"),
        ("gpu-rack-017", 7, "…ck-017"),
        ("gpu-rack-017.cluster.local", 12, "gpu-rack-017"),
        ("10.20.3.117", 7, "….3.117"),
    ],
)
def test_a_name_that_is_too_long_keeps_what_tells_it_apart(node: str, width: int, short: str) -> None:
    assert short_name(node, width) == short


def test_one_node_may_have_more_gpus_than_a_line_has_cells() -> None:
    run = cluster([256])
    lines = Grid(run).draw(79, 6)
    assert [line.plain.count("·") for line in lines[1:]] == [64] * 4
    assert [line.plain.startswith("  " if row else " …") for row, line in enumerate(lines[1:])] == [True] * 4


def test_a_gpu_that_is_left_out_of_a_sample_is_not_well() -> None:
    run = cluster([4])
    assert "all well" in Grid(run).draw(79, 1)[0].plain
    run.take({"time": 3.0, "event": "gpus", "samples": [{"rank": 1, "utilization": 90}]})
    assert [health.mark for health in diagnose(run.gpus, run.samples).values()] == ["X", "·", "X", "X"]
    text = "\n".join(line.plain for line in Grid(run).draw(79, 9))
    assert "X 3" in text
    assert " 50 %" not in text
    run.take({"time": 4.0, "event": "gpus", "samples": []})
    assert {health.mark for health in diagnose(run.gpus, run.samples).values()} == {"X"}


def test_before_the_first_sample_nobody_is_sick() -> None:
    run = cluster([4])
    run.samples.clear()
    text = Grid(run).draw(79, 1)[0].plain
    assert "X" not in text
    assert "all well" not in text


def test_what_is_unknown_is_not_zero() -> None:
    run = RunState("r")
    run.gpus = {0: Gpu(rank=0, node="n", uuid="GPU-0", name="a card"), 1: Gpu(rank=1, node="n", uuid="GPU-1", name="b")}
    run.samples = {0: GpuSample(rank=0, temperature_c=50)}
    for height in (3, 5):
        text = "\n".join(line.plain for line in Grid(run).draw(79, height))
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
