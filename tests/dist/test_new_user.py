"""A new user: an empty folder, the wheel, pip, and the page on a format of one's own, its commands taken literally."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from environments import Environment

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_commands_of_the_page(make_environment: Callable[[], Environment], wheel: Path) -> None:
    page = (ROOT / "docs" / "write-a-format.md").read_text()
    commands = "".join(re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)).splitlines()
    environment = make_environment()
    environment.run("pip", "install", wheel)
    assert not any(environment.folder.iterdir())
    said, seconds = {}, {}
    for command in commands:
        started = time.perf_counter()
        said[command] = environment.run("bash", "-ec", command)
        seconds[command] = time.perf_counter() - started
    events = (environment.folder / "runs" / "first" / "myfp8" / "events.jsonl").read_text().splitlines()
    assert json.loads(events[-1])["event"] == "sinks" or json.loads(events[-1])["status"] == "done"
    compared = said["altgrad compare runs/first/bf16 runs/first/myfp8"]
    assert re.search(r"^ *myfp8 ", compared, re.MULTILINE), compared
    assert "bias           10" in said["altgrad formats myfp8"]
    assert "format/myfp8: 17 passed" in said["altgrad plugins check myfp8"]
    assert (environment.folder / "runs" / "first" / "report.html").stat().st_size > 10_000
    (code,) = [text for text in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL) if '"myfp8")' in text]
    environment.run("python", "-c", code)
    written = environment.folder / "altgrad-format-myfp8" / "altgrad_format_myfp8.py"
    print(f"{len(commands)} commands, {len(written.read_text().splitlines())} lines of code, {sum(seconds.values()):.0f} s")
    for command, taken in seconds.items():
        print(f"{taken:7.1f} s  {command}")
    for line in compared.splitlines():
        print(line)
