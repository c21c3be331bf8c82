"""What a file gets: plain lines, few of them, without control codes."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
import scenes
from rich.console import Console
from scenes import Teller
from test_frames import compare

from altgrad_core.console.screen import LiveScreen, PlainScreen, make_screen
from altgrad_core.console.state import RunState


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def told(events: list[dict[str, Any]], *, names: tuple[str, ...] = ("e5m2",), title: str = "e5m2-vs-bf16") -> str:
    """Return what a plain screen makes of the events of the first run."""
    file = io.StringIO()
    screen = make_screen(Console(file=file), title=title, now=lambda: events[-1]["time"] + 1)
    assert type(screen) is PlainScreen
    for name in names:
        screen.add(name)
    for event in events:
        screen.event(names[0], event)
    screen.close()
    screen.close()
    text = file.getvalue()
    assert "\x1b" not in text
    return text


def test_a_whole_run() -> None:
    tell = Teller(RunState("e5m2"))
    tell("log", level="info", message="Reading text\nfrom two places\x1b[2J")
    tell.start(300, world=64)
    tell.gpus(64)
    tell.evaluate(0, 5.4)
    tell.train(1, 100)
    tell.evaluate(100, 2.31)
    saved = {
        "path": "checkpoints/step-000100",
        "bytes": 9_437_184,
        "seconds": 0.22,
        "blocked_s": 0.01,
        "name": "step-000100",
    }
    tell("checkpoint", step=100, kind="best", **saved, state_hash="c0ffee" * 10)
    tell("log", level="warning", message="a slow disk", rank=17)
    tell("comm", step=100, op="all_reduce", milliseconds=12.345, bytes=2**27, ranks=64)
    for _ in range(3):
        tell.sample(64)
    for _ in range(3):
        tell.sample(64, sick=False)
    nan = {"alert": "nan", "action": "stop", "value": "NaN", "threshold": 10.0}
    tell("alert", step=101, **nan, message="The loss is nan; this update is skipped (10 in a row, 10 stop the run).")
    tell("status", status="stopped", step=101, reason="non-finite loss or gradients")
    text = told(tell.events)
    compare("plain-run", text)
    assert text.count("[rank ") == 16 + 3 + 1 + 3  # detected, sick, the warning, well again
    assert "... and 48 more GPUs" in text


def test_a_matrix_introduces_itself_once() -> None:
    events = []
    for name in ("bf16", "e5m2"):
        tell = Teller(RunState(name))
        tell.start(300)
        events.append(tell.events)
    file = io.StringIO()
    screen = PlainScreen(Console(file=file), now=lambda: scenes.START)
    for name, told_by_it in zip(("bf16", "e5m2"), events):
        screen.add(name)
        for event in told_by_it:
            screen.event(name, event)
    assert file.getvalue().count("tokenizer") == 1
    screen.close()
    assert "bf16  running" in file.getvalue()


def test_a_long_run_says_little(monkeypatch: pytest.MonkeyPatch) -> None:
    tell = Teller(RunState("e5m2"))
    tell.start(5000)
    before = len(told(tell.events).splitlines())
    tell.train(1, 5000)
    assert len(told(tell.events).splitlines()) - before == 11 + 1  # the first step, every tenth; "training" in the box


def test_half_a_minute_without_a_line_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(0, 10**6, 20))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))
    tell = Teller(RunState("e5m2"))
    tell.start(5000)
    tell.train(1, 100)
    assert told(tell.events).count(" tok/s") == 50


def test_differences_from_the_baseline_stand_in_the_line() -> None:
    file = io.StringIO()
    screen = PlainScreen(Console(file=file), now=lambda: scenes.START)
    screen.add("bf16", baseline=True)
    screen.add("e5m2")
    for name, above in (("bf16", 0.0), ("e5m2", 0.1)):
        tell = Teller(RunState(name))
        tell.start(10)
        tell.train(1, 1, above=above)
        for event in tell.events:
            screen.event(name, event)
    assert "+1.85 % to baseline" in file.getvalue()


def test_live_only_on_a_terminal_that_can_move_its_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert type(make_screen(Console(file=Terminal()))) is LiveScreen
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert type(make_screen(Console(file=io.StringIO()))) is PlainScreen
    monkeypatch.setenv("TERM", "dumb")
    assert type(make_screen(Console(file=Terminal()))) is PlainScreen


@pytest.mark.parametrize(
    ("variables", "unicode"),
    [
        ({"LANG": "C"}, False),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, False),  # what Python makes of LANG=C
        ({"LANG": "C", "LC_CTYPE": "de_DE.UTF-8"}, True),
        ({"LC_ALL": "POSIX", "LANG": "de_DE.UTF-8"}, False),
        ({"LANG": "C.UTF-8"}, True),
        ({}, True),
    ],
)
def test_which_characters(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], unicode: bool) -> None:
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    text = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    assert PlainScreen(Console(file=text)).look.unicode == unicode
    latin = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    assert not PlainScreen(Console(file=latin)).look.unicode
