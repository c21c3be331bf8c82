"""The live frame, compared with what was looked at: ``golden/*.txt``. ``ALTGRAD_UPDATE_GOLDEN=1`` writes them anew."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import scenes
from rich.cells import cell_len
from rich.color import ColorSystem

from altgrad_core.console.canvas import BAD, Look
from altgrad_core.console.frame import frame, health_line
from altgrad_core.console.runs_table import runs_table
from altgrad_core.console.series import Series
from altgrad_core.console.state import RunState, ScreenState

GOLDEN = Path(__file__).parent / "golden"
SIZES = [(80, 24), (100, 30), (160, 50), (40, 15)]
SCENES = {
    "training": scenes.training,
    "matrix": scenes.matrix,
    "gpus-1": lambda: scenes.training(1),
    "gpus-8": lambda: scenes.training(8),
    "gpus-64": lambda: scenes.training(64),
    "gpus-256": lambda: scenes.training(256),
}
LOOKS = {
    "plain": Look(),
    "colour": Look(color=ColorSystem.STANDARD),
    "ascii": Look(unicode=False),
}


def drawn(screen: ScreenState, width: int, height: int, look: Look) -> str:
    """What a terminal of that size gets: a column stays free, and rows for log lines."""
    lines = frame(screen, width - 1, height - max(3, height // 5), scenes.now(screen))
    assert len(lines) <= height - max(3, height // 5)
    for line in lines:
        assert line.width == cell_len(line.plain) <= width - 1, line.plain
    return "".join(line.drawn(look) + "\n" for line in lines)


def compare(name: str, text: str) -> None:
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("ALTGRAD_UPDATE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("scene", SCENES)
def test_frames(scene: str, size: tuple[int, int]) -> None:
    compare(f"{scene}-{size[0]}x{size[1]}", drawn(SCENES[scene](), *size, LOOKS["plain"]))


@pytest.mark.parametrize("look", ["colour", "ascii"])
@pytest.mark.parametrize("scene", SCENES)
def test_looks(scene: str, look: str) -> None:
    text = drawn(SCENES[scene](), 80, 24, LOOKS[look])
    compare(f"{scene}-80x24-{look}", text)
    assert ("\x1b[" in text) == (look == "colour")
    assert text.isascii() == (look == "ascii")


def test_without_colour_nothing_moves_and_nothing_is_lost() -> None:
    """Every finding has a mark beside its colour, and ASCII takes the same cells."""
    for scene in SCENES.values():
        plain, ascii_only = (drawn(scene(), 80, 24, LOOKS[look]).splitlines() for look in ("plain", "ascii"))
        assert [cell_len(line) for line in plain] == [len(line) for line in ascii_only]
    text = drawn(scenes.training(64), 160, 50, LOOKS["plain"])
    for finding in ("T 1 throttled", "H 1 hot", "S 1 straggler", " 3S", " 6T", " 41H", "88.00 % !"):
        assert finding in text


def test_of_many_runs_those_that_need_eyes_are_shown() -> None:
    text = drawn(scenes.matrix(waiting=40), 80, 24, LOOKS["plain"])
    assert "mxfp4" in text
    assert "e5m2-delayed" in text
    assert "total" in text
    assert "waiting" in text.split("more: ")[1].splitlines()[0]


@pytest.mark.parametrize("width", [10, 20, 40, 79, 200])
def test_a_simulation_says_so_however_long_its_title_is(width: int) -> None:
    screen = scenes.training()
    screen.runs["e5m2"].simulated = True
    for length in range(100):
        screen.title = "x" * length
        first = frame(screen, width, 20, scenes.now(screen))[0]
        assert first.width == width
        assert first.plain.endswith("SIMULATED ─" if width > 10 else "SIMULATE…")
        assert length < 3 or width < 20 or " xx" in first.plain


def test_what_is_no_number_is_never_well() -> None:
    """A bit stall of NaN: no gradient was left to make an update of."""
    screen = scenes.training()
    run = screen.runs["e5m2"]
    for value in (math.nan, math.inf):
        run.values.update(bit_stall_rate=value, overflow_rate=value, underflow_rate=value, grad_cos_sim=value)
        line = health_line(run, 79)
        assert line is not None
        marked = [(part.text, part.style) for part in line.parts if str(value) in part.text]
        assert len(marked) == 4
        for text, style in marked:
            assert text.endswith(" !")
            assert style is BAD
        screen.runs["other"] = RunState("other", steps=10)
        table = "".join(line.plain + "\n" for line in runs_table(screen, 199, 9, scenes.now(screen)))
        assert table.count(f"{value} %!") == 3


def test_a_cosine_has_no_alert() -> None:
    """It is shown as it is: there is no threshold that it could be past."""
    run = scenes.training().runs["e5m2"]
    run.values["grad_cos_sim"] = -0.9
    line = health_line(run, 99)
    assert line is not None
    assert line.plain.endswith("cosine -0.9000")


def test_where_health_has_no_room_the_worst_comes_first() -> None:
    run = scenes.training().runs["e5m2"]
    texts = [line.plain for width in (79, 78, 39, 20) if (line := health_line(run, width)) is not None]
    assert texts == [
        "health overflow 0.60 % ~  underflow <0.01 %  bit stall 88.00 % !  cosine 0.9852",
        "health over 0.60% ~  under <0.01%  stall 88.00% !  cos 0.99",
        "health stall 88.00% !  over 0.60% ~",
        "health stall 88.00% !",
    ]


@pytest.mark.parametrize("height", range(1, 12))
def test_very_low_terminals(height: int) -> None:
    for scene in SCENES.values():
        screen = scene()
        for width in (1, 5, 20, 79):
            lines = frame(screen, width, height, scenes.now(screen))
            assert 1 <= len(lines) <= height
            assert all(line.width <= width for line in lines)


def test_eight_billion_parameters_leave_room_for_a_bar() -> None:
    screen = ScreenState(title="x")
    run = screen.runs["a"] = RunState("a", steps=10)
    task = {"time": scenes.START, "event": "task", "task": "building the model", "unit": "parameters"}
    run.take({**task, "state": "begin", "done": 0, "total": 8_030_261_248})
    run.take({**task, "state": "progress", "done": 4_000_000_000})
    text = drawn(screen, 80, 24, LOOKS["plain"])
    assert "━━━" in text
    assert " 50 %  4.0B/8.0B parameters" in text


def test_what_has_no_loss_yet_is_not_compared() -> None:
    screen = scenes.matrix()
    screen.runs["e5m2-delayed"].expect()
    screen.runs["e5m2-delayed"].losses = Series()
    assert "\nbase " not in drawn(screen, 80, 24, LOOKS["plain"])


def test_before_anything_is_heard() -> None:
    screen = ScreenState(title="x")
    assert len(frame(screen, 79, 20, 0.0)) == 1
    screen.runs["a"] = RunState("a", steps=10)
    assert len(frame(screen, 79, 20, 0.0)) == 1


def test_texts_of_others_cannot_move_the_cursor() -> None:
    screen = scenes.training()
    screen.title = "a\x1b[2Jb\r\nc\x9b2J"
    text = drawn(screen, 80, 24, LOOKS["plain"])
    assert not any((ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160 for c in text)
    screen.title = "数" * 100
    assert cell_len(drawn(screen, 80, 24, LOOKS["plain"]).splitlines()[0]) == 79
