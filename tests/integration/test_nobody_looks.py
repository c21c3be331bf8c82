"""A training goes on, and ends with the right status, whatever becomes of what shows it."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import MakeExperiment

import altgrad_core as altgrad
from altgrad_core.api import Silent
from altgrad_core.errors import AltgradError
from altgrad_core.experiments.guard import Guarded

TWO = '[[run]]\nname = "a"\nrecipe = "bf16"\n[[run]]\nname = "b"\nrecipe = "e5m2"\n'
LONG = '[[run]]\nname = "a"\nrecipe = "bf16"\ntrain = { steps = 5000 }\n'
RUN = [sys.executable, "-m", "altgrad_core.cli", "run"]


def wait_for(events: Path, text: str) -> None:
    deadline = time.monotonic() + 120
    while not (events.exists() and text in events.read_text()):
        assert time.monotonic() < deadline, f"{text} did not appear in {events}"
        time.sleep(0.02)


@pytest.mark.parametrize("both", [pytest.param(False, marks=pytest.mark.slow), True], ids=["stdout", "stderr too"])
def test_a_closed_pipe_ends_no_training(make_experiment: MakeExperiment, tmp_path: Path, both: bool) -> None:
    """`altgrad run FILE | head -1`, and `... 2>&1 | head -1`."""
    file = make_experiment(TWO, launcher="process")
    errors = subprocess.STDOUT if both else subprocess.PIPE
    with subprocess.Popen([*RUN, str(file)], stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        said = "" if process.stderr is None else process.stderr.read()
    assert process.returncode == 0, said
    assert [altgrad.load_run(tmp_path / "runs" / "small" / name).status for name in "ab"] == ["done", "done"]
    assert (tmp_path / "runs" / "small" / "report.html").exists()
    if not both:
        assert said.count("can no longer be shown (BrokenPipeError") == 1
        assert len(said.splitlines()) == 1


def test_a_failed_run_is_an_exit_status_also_when_nobody_looks(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    file = make_experiment(TWO, launcher="process")
    (tmp_path / "runs" / "small" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "small" / "a" / "checkpoints").write_text("a file where a folder should be")
    command = f"{' '.join(RUN)} {file} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 1, done.stderr
    assert [altgrad.load_run(tmp_path / "runs" / "small" / name).status for name in "ab"] == ["failed", "done"]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_signals_still_save_a_checkpoint_when_the_pipe_is_closed(
    make_experiment: MakeExperiment, tmp_path: Path, number: signal.Signals
) -> None:
    file = make_experiment(LONG, launcher="process")
    events = tmp_path / "runs" / "small" / "a" / "events.jsonl"
    with subprocess.Popen([*RUN, str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        wait_for(events, '"step": 2, ')
        process.stdout.close()
        wait_for(events, '"step": 40, ')
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == 128 + number, said
    run = altgrad.load_run(events.parent)
    assert run.status == "interrupted"
    assert run.checkpoints[-1]["step"] == run.metrics("train/loss")[0][-1]


def test_a_full_disk_under_the_output_ends_no_training(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    """`altgrad run FILE > /full/log.txt`."""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    file = make_experiment('[[run]]\nname = "a"\nrecipe = "bf16"\n', launcher="process")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*RUN, str(file)], stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=240
        )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("No space left on device") == 1
    assert altgrad.load_run(tmp_path / "runs" / "small" / "a").status == "done"


@pytest.mark.parametrize(
    "error", [pytest.param(ZeroDivisionError("in a frame"), marks=pytest.mark.slow), ConnectionResetError(104, "gone")]
)
def test_an_observer_that_raises_is_left(
    make_experiment: MakeExperiment, capfd: pytest.CaptureFixture[str], error: Exception
) -> None:
    class Broken(Silent):
        told = 0

        def event(self, run: str, event: dict[str, Any]) -> None:
            if event["event"] == "metrics":
                self.told += 1
                raise error

    observer = Broken()
    runs = altgrad.run(make_experiment(TWO, launcher="process"), observer=observer)
    assert [run.status for run in runs] == ["done", "done"]
    assert observer.told == 1, "it is told nothing more"
    print("the caller's own output", flush=True)
    said = capfd.readouterr()
    assert said.out == "the caller's own output\n"
    assert said.err.count(f"can no longer be shown ({type(error).__name__}: {error})") == 1
    assert ("Traceback" in said.err) == isinstance(error, ZeroDivisionError), "a fault of the program's"


def test_what_the_user_has_to_mend_is_raised_until_something_is_trained() -> None:
    class Refusing(Silent):
        def begin(self, plan: object) -> None:
            raise AltgradError("events.jsonl:3: damaged")

        def event(self, run: str, event: object) -> None:
            raise AltgradError("too late")

    guarded = Guarded(Refusing())
    with pytest.raises(AltgradError, match="damaged"):
        guarded.begin([])
    guarded.start(None)  # type: ignore[arg-type]
    guarded.event("r", {"event": "log"})


def test_what_no_encoding_has_is_shown_as_an_escape(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    """A log line that names a file whose name is not UTF-8, which ``events.jsonl`` keeps as it is."""
    file = make_experiment('[[run]]\nname = "a"\nrecipe = "bf16"\n', launcher="process")
    (tmp_path / "runs" / "small" / "a").mkdir(parents=True)
    event = {"time": 1.0, "event": "status", "status": "failed", "step": 0, "reason": "file \udcff"}
    (tmp_path / "runs" / "small" / "a" / "events.jsonl").write_text(json.dumps(event) + "\n")
    for encoding in ("utf-8", "latin-1"):
        done = subprocess.run(
            [*RUN, str(file)],
            capture_output=True,
            check=False,
            timeout=240,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
        assert done.returncode == 1, done.stderr
        assert done.stderr == b""
        assert rb"file \udcff" in done.stdout


SLOW = """
import sys, time
from altgrad_core.experiments import runner
def slow(configs, plugins, workspace):
    workspace.say("Reads a large text")
    time.sleep(60)
runner.open_data = slow
from altgrad_core.cli.main import main
sys.argv = ["altgrad", "run", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_runs_are_planned_leaves_a_sane_terminal(
    make_experiment: MakeExperiment, tmp_path: Path, number: signal.Signals
) -> None:
    file = make_experiment(TWO, launcher="process")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    command = [sys.executable, "-c", SLOW, str(file)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        said, sent = b"", False
        for block in _blocks(ours):
            said += block
            if not sent and b"Reads a large text" in said and b"\x1b[?2026l" in said:
                process.send_signal(number)
                sent = True
    os.close(ours)
    assert process.returncode == 128 + number, said
    assert said.count(b"\x1b[?25l") == said.count(b"\x1b[?25h") == 1
    assert said.count(b"\x1b[?2026h") == said.count(b"\x1b[?2026l")
    assert b"Traceback" not in said
    assert not (tmp_path / "runs" / "small" / "a").exists()


def _blocks(terminal: int) -> Iterator[bytes]:
    while select.select([terminal], [], [], 60)[0]:
        try:
            yield os.read(terminal, 65536)
        except OSError:  # Linux: the other side is closed
            return


def test_the_log_of_an_earlier_start_explains_no_death(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    file = make_experiment(LONG, launcher="process")
    folder = tmp_path / "runs" / "small" / "a"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("Traceback\nZeroDivisionError: of the first start, mended since\n")
    with subprocess.Popen([*RUN, str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait_for(folder / "events.jsonl", '"step": 2, ')
        pid = next(
            event["pid"]
            for event in map(json.loads, (folder / "events.jsonl").read_text().splitlines())
            if event.get("status") == "running"
        )
        os.kill(pid, signal.SIGKILL)
        assert process.stdout is not None
        said = process.stdout.read()
    assert process.returncode == 1
    assert "its process ended without a word, by SIGKILL" in said
    assert "of the first start" not in said
