"""The screen on a real terminal: tmux, which interprets the control codes as a terminal does, and a bare pty."""

from __future__ import annotations

import importlib
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import MakeExperiment

import altgrad_core as altgrad
from altgrad_core.console import terminal as terminal_module
from altgrad_core.console.canvas import Line, Look
from altgrad_core.console.terminal import LiveArea

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "NO_COLOR", "TMUX"))}
UTF8 = {**PLAIN, "LC_ALL": "C.UTF-8"}


class Tmux:
    """A terminal of a given size with a shell in it; a server of its own."""

    def __init__(self, folder: Path, number: int, columns: int, rows: int, environment: dict[str, str]) -> None:
        self._socket = str(folder / f"tmux{number}")
        self._environment = environment
        shell = "env PS1='$ ' PS2= bash --norc --noprofile"
        self(
            "-f", "/dev/null", "-u", "new-session", "-d", "-x", str(columns), "-y", str(rows), "-c", str(folder), shell
        )
        self("set-option", "-g", "history-limit", "5000")

    def __call__(self, *arguments: str) -> str:
        command = ["tmux", "-S", self._socket, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=self._environment, timeout=30)
        return done.stdout

    def screen(self, *, history: bool = False, codes: bool = False) -> str:
        return self("capture-pane", "-p", *(("-S", "-") if history else ()), *(("-e",) if codes else ()))

    def type(self, text: str) -> None:
        self("send-keys", text, "Enter")

    def interrupt(self) -> None:
        self("send-keys", "C-c")

    def resize(self, columns: int, rows: int) -> None:
        self("resize-window", "-x", str(columns), "-y", str(rows))

    def cursor_is_shown(self) -> bool:
        return self("display-message", "-p", "#{cursor_flag}").strip() == "1"

    def until(self, holds: Callable[[str], object]) -> str:
        deadline = time.monotonic() + 60
        while not holds(screen := self.screen()):
            assert time.monotonic() < deadline, screen
            time.sleep(0.1)
        return screen


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Tmux]]:
    opened: list[Tmux] = []

    def open_terminal(columns: int, rows: int, environment: dict[str, str] = UTF8) -> Tmux:
        opened.append(Tmux(tmp_path, len(opened), columns, rows, environment))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one("kill-server")


def simulate(*arguments: str) -> str:
    return " ".join([sys.executable, "-m", "altgrad_core.cli", "simulate", "--faults", "none", *arguments])


def frames(screen: str) -> int:
    """How many live frames, whole or in part, stand on the screen."""
    return len(re.findall(r"^. llama-3.1-8b on \d+ GPUs", screen, re.MULTILINE))


def width(screen: str) -> int:
    """How wide the lowest frame is."""
    rules = re.findall(r"^. llama-3.1-8b on .*", screen, re.MULTILINE)
    return len(rules[-1]) if rules else 0


def step(screen: str) -> int:
    found = re.search(r"^step .* ([\d,]+)/[\d,]+ ", screen, re.MULTILINE)
    return int(found[1].replace(",", "")) if found else 0


@needs_tmux
def test_one_frame_whatever_scrolls_and_however_wide(terminal: Callable[..., Tmux]) -> None:
    tmux = terminal(80, 24)
    tmux.type(simulate("--speed", "200"))
    tmux.until(lambda screen: step(screen) > 5 and "node07" in screen)
    for columns, rows in ((120, 24), (120, 40), (160, 40), (160, 50)):
        tmux.resize(columns, rows)
        tmux.until(lambda screen, columns=columns: width(screen) == columns - 1)
        before = step(tmux.screen())
        screen = tmux.until(lambda screen, before=before: step(screen) > before + 3)
        assert frames(screen) == 1
        assert screen.count("\nnode07") == 1
    everything = tmux.screen(history=True)
    assert frames(everything) == 1
    assert len(re.findall(r"^train ", everything, re.MULTILINE)) == 1
    assert not tmux.cursor_is_shown()


@needs_tmux
def test_a_terminal_that_gets_small_keeps_one_frame_in_sight(terminal: Callable[..., Tmux]) -> None:
    tmux = terminal(160, 50)
    tmux.type(simulate("--speed", "200"))
    tmux.until(lambda screen: step(screen) > 5)
    for columns, rows in ((80, 24), (60, 20), (40, 15), (100, 30)):
        tmux.resize(columns, rows)
        tmux.until(lambda screen, columns=columns: width(screen) == columns - 1)
        before = step(tmux.screen())
        screen = tmux.until(lambda screen, before=before: step(screen) > before + 3)
        assert frames(screen) == 1, screen


@needs_tmux
def test_ctrl_c_leaves_a_sane_terminal(terminal: Callable[..., Tmux]) -> None:
    tmux = terminal(100, 30)
    tmux.type(simulate("--speed", "50"))
    tmux.until(lambda screen: step(screen) > 0)
    tmux.interrupt()
    screen = tmux.until(lambda screen: screen.rstrip().endswith("$"))
    assert "interrupted: SIGINT" in screen
    assert "SIMULATED, nothing was trained" in screen
    assert frames(screen) == 0  # the box stands where the frame was
    assert tmux.cursor_is_shown()
    tmux.type("echo status=$? $((6 * 7))")
    tmux.until(lambda screen: "status=130 42" in screen)


@needs_tmux
def test_no_colour_means_no_colour(terminal: Callable[..., Tmux]) -> None:
    for environment in (UTF8, {**UTF8, "NO_COLOR": "1"}):
        tmux = terminal(80, 24, environment)
        tmux.type(simulate("--speed", "200"))
        tmux.until(lambda screen: step(screen) > 5)
        told = tmux.screen(codes=True, history=True).partition("started")[2]
        assert ("\x1b[" in told) == ("NO_COLOR" not in environment)


@needs_tmux
@pytest.mark.parametrize("variables", [{"LC_ALL": "C"}, {"LANG": "C"}, {"LANG": "POSIX"}])
def test_the_c_locale_gets_ascii(terminal: Callable[..., Tmux], variables: dict[str, str]) -> None:
    tmux = terminal(80, 24, {**PLAIN, **variables})
    tmux.type(simulate("--speed", "200"))
    screen = tmux.until(lambda screen: step(screen) > 5)
    assert screen.isascii()
    assert frames(screen) == 1
    assert "------" in screen


@needs_tmux
def test_a_dumb_terminal_gets_lines(terminal: Callable[..., Tmux]) -> None:
    tmux = terminal(200, 50)
    tmux.type(f"TERM=dumb {simulate('--speed', 'max', '--steps', '50')}")
    screen = tmux.until(lambda screen: "model" in screen and screen.rstrip().endswith("$"))
    assert frames(screen) == 0
    assert "step 50/50" in screen
    assert "\x1b[" not in tmux.screen(codes=True)


@pytest.mark.parametrize("redirect", ["| cat", "> log.txt; cat log.txt"])
def test_pipes_and_files_get_few_lines_without_codes(tmp_path: Path, redirect: str) -> None:
    command = f"{simulate('--speed', 'max', '--steps', '5000', '--gpus', '8')} {redirect}"
    done = subprocess.run(command, shell=True, capture_output=True, cwd=tmp_path, env=UTF8, check=True, timeout=120)
    text = done.stdout.decode()
    assert "\x1b" not in text
    assert "\r" not in text
    lines = [line for line in text.splitlines() if "all_reduce of" not in line]
    assert "step 5000/5000" in text
    assert len(lines) < 100
    assert len(text) < 20_000


def in_pty(command: list[str], *, cwd: Path, stop: int | None = None, when: bytes = b"") -> tuple[int, bytes]:
    """Run a command on a terminal of its own; ``stop`` is sent when ``when`` was printed."""
    ours, theirs = pty.openpty()
    environment = {**UTF8, "TERM": "xterm-256color"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=environment) as process:
        os.close(theirs)
        said = b""
        while True:
            ready, _, _ = select.select([ours], [], [], 240)
            assert ready, said
            try:
                block = os.read(ours, 65536)
            except OSError:  # Linux: the other side is closed
                break
            if not block:
                break
            said += block
            if stop is not None and when in said:
                process.send_signal(stop)
                stop = None
    os.close(ours)
    return process.returncode, said


def test_the_benchmark_draws_on_a_terminal_as_large_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    benchmark = importlib.import_module("console")
    ours, theirs = benchmark.open_terminal(*benchmark.TERMINAL)
    with os.fdopen(theirs, "w") as file:
        assert LiveArea(file, Look()).size() == (100, 30)
    os.close(ours)


@pytest.mark.parametrize("method", ["draw", "close"])
def test_a_signal_that_waited_for_a_frame_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """It comes while the frame is written, and goes on from within: what stands there must be known by then."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as file:
        area = LiveArea(file, Look())
        if method == "close":
            area.draw([Line("a frame")])
        monkeypatch.setattr(terminal_module._writing, "waiting", "SIGTERM")
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            getattr(area, method)([Line("a line")])
        area.close()
        said = b""
        while select.select([ours], [], [], 2.0)[0] and not said.endswith(b"\x1b[?25h"):
            said += os.read(ours, 65536)  # a terminal hands on one write at a time
    os.close(ours)
    assert said.count(b"\x1b[?25l") == said.count(b"\x1b[?25h") == 1
    assert said.endswith(b"\x1b[?25h")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_signal_gives_the_cursor_back(tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-m", "altgrad_core.cli", "simulate", "--speed", "50"]
    status, said = in_pty(command, cwd=tmp_path, stop=number, when=b"epoch")
    assert status == 128 + number
    assert said.count(b"\x1b[?25l") == said.count(b"\x1b[?25h") == 1
    assert said.rindex(b"\x1b[?25h") > said.rindex(b"\x1b[?25l")
    assert b"interrupted: SIG" in said
    assert said.count(b"\x1b[?2026h") == said.count(b"\x1b[?2026l") > 0


def test_losses_are_the_same_with_and_without_a_live_screen(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    runs = '[[run]]\nname = "e5m2"\nrecipe = "e5m2"\ntrain = { steps = 4 }\n'
    file = make_experiment(runs, launcher="process", dropout=0.1)
    command = [sys.executable, "-m", "altgrad_core.cli", "run", str(file), "--runs", "live"]
    status, said = in_pty(command, cwd=tmp_path)
    assert status == 0, said.decode()
    assert b"\x1b[?2026h" in said
    (silent,) = altgrad.run(file, runs="silent")
    live = altgrad.load_run(tmp_path / "live" / "small" / "e5m2")
    for metric in ("train/loss", "val/loss", "train/grad_norm", "grad_cos_sim", "bit_stall_rate"):
        assert live.metrics(metric) == silent.metrics(metric)
        assert live.metrics(metric)[1]
