"""Photographs Aim's explorer for docs/trackers.md: ``python docs/make_aim.py``.

Three small runs are trained into a repository of their own, ``aim up`` serves it, and Chromium shows the explorer with a query.
"""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from make_reports import PICTURES, browser
from PIL import Image
from websockets.sync.client import ClientConnection, connect

import altgrad_core as altgrad

EXPERIMENT = """
[experiment]
name = "formats"
[defaults]
launcher = "inline"
[defaults.model]
n_layer = 2
n_embd = 64
n_head = 2
block_size = 64
[defaults.train]
steps = 120
batch_size = 8
learning_rate = 2e-3
warmup_steps = 5
eval_every = 20
eval_batches = 2
[[run]]
name = "bf16"
baseline = true
[[run]]
name = "e5m2"
recipe = "e5m2"
[[run]]
name = "e2m1fn"
recipe = "e2m1fn"
[[sink]]
kind = "aim"
"""
QUERY = 'metric.name in ["bit_stall_rate", "loss"] and (metric.name == "loss" or metric.context.layer == "blocks.0.mlp.up.weight")'
GROUPING = {"color": ["run.props.name"], "stroke": ["context.subset"], "chart": ["name"]}


def encoded(state: dict[str, Any]) -> str:
    """Return a state of the explorer as its address holds it."""
    text = urllib.parse.quote(json.dumps(state), safe="~()*!.'-_;/?:@&=+$,#")  # JavaScript's encodeURI
    code = base64.b64encode(text.encode()).decode()
    return "O-" + code.replace("=", "").replace("+", "-").replace("/", "_")


def free_port() -> int:
    """Return a port that nothing listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def photograph(address: str, out: Path, folder: Path) -> None:
    """Show an address, close the invitation that lies over it, and take a picture.

    By Chromium's debugging port and in real time: ``--screenshot`` comes before Aim's charts are drawn.
    """
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1400,970",
             "--remote-debugging-port=0", f"--user-data-dir={folder}", address]  # fmt: skip
    with subprocess.Popen([browser(), *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            told = folder / "DevToolsActivePort"
            waited(lambda: told.exists() and told.read_text().splitlines()[0])
            port = told.read_text().splitlines()[0]
            pages = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10).read())
            socket_of = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
            with connect(socket_of, max_size=None) as session:
                time.sleep(20)
                click = "[...document.querySelectorAll('button')].filter(b => b.innerText == 'Skip').forEach(b => b.click())"
                asked(session, "Runtime.evaluate", expression=click)
                time.sleep(5)
                out.write_bytes(base64.b64decode(asked(session, "Page.captureScreenshot")["data"]))
        finally:
            process.terminate()


def asked(session: ClientConnection, method: str, **parameters: Any) -> dict[str, Any]:
    """Ask the browser for something and return its answer."""
    session.send(json.dumps({"id": 1, "method": method, "params": parameters}))
    while (answer := json.loads(session.recv(60))).get("id") != 1:
        pass
    return dict(answer["result"])


def waited(ready: Callable[[], Any]) -> None:
    """Wait up to a minute until something is there."""
    for _ in range(120):
        try:
            if ready():
                return
        except (OSError, IndexError):
            pass
        time.sleep(0.5)
    sys.exit("What was waited for did not come within a minute.")


def main() -> None:
    """Train, serve, photograph."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "e.toml").write_text(EXPERIMENT.replace('kind = "aim"', f'kind = "aim"\nrepo = "{folder}"'))
        altgrad.run(folder / "e.toml", runs=folder / "runs")
        port = free_port()
        aim = [sys.executable, "-c", "from aim.cli.cli import cli_entry_point; cli_entry_point()", "up"]
        server = subprocess.Popen(
            [*aim, "--repo", str(folder), "--port", str(port), "--host", "127.0.0.1"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            here = f"http://127.0.0.1:{port}"
            waited(lambda: urllib.request.urlopen(f"{here}/api/projects/", timeout=2).read())
            select = {"options": [], "query": "", "advancedQuery": QUERY, "advancedMode": True}
            address = f"{here}/metrics?grouping={encoded(GROUPING)}&select={encoded(select)}"
            out = PICTURES / "aim.png"
            photograph(address, out, folder / "browser")
        finally:
            server.terminate()
            server.wait(20)
        Image.open(out).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    main()
