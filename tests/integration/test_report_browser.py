"""The report in a real browser: it opens from disk, everything that can be clicked works, and its text can be read."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers import altgrad_here

from altgrad_core.analysis.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr"
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; .ci/run installs Debian's")

RUNS = """
[[run]]
name = "bf16"
baseline = true
recipe = "bf16"
[[run]]
name = "e5m2-{seed}"
recipe = "e5m2"
matrix = { seed = [42, 43] }
[[run]]
name = "delayed"
recipe = { base = "e4m3fn", scaling = "delayed" }
alerts = { overflow = 1e-9 }
"""

# Run in the page: opens what can be opened, follows every link, and reads the colours that are in force.
WATCH = """
const found = {opened: 0, stuck: [], lost: [], files: {}, faint: [], series: [], wide: document.documentElement.scrollWidth};
for (const summary of document.querySelectorAll("summary")) {
  const details = summary.parentElement, was = details.open;
  summary.click();
  if (details.open === was) found.stuck.push(summary.textContent);
  details.open = true;
  found.opened++;
}
for (const link of document.querySelectorAll("a[href^='#']")) {
  link.click();
  if (location.hash !== link.getAttribute("href") || !document.querySelector(location.hash)) found.lost.push(link.href);
}
for (const link of document.querySelectorAll("a[download]"))
  found.files[link.download] = decodeURIComponent(link.href.split(",").slice(1).join(",")).split("\\n").length;
const channels = color => color.match(/[\\d.]+/g).map(Number);
const light = color => {
  const [r, g, b] = channels(color).map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
const ground = element => {
  for (; element; element = element.parentElement) {
    const color = getComputedStyle(element).backgroundColor;
    if (channels(color).length < 4 || channels(color)[3] > 0) return color;
  }
};
for (const element of document.body.querySelectorAll("*:not(script)")) {
  const own = [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
  if (!own) continue;
  const style = getComputedStyle(element), color = element instanceof SVGElement ? style.fill : style.color;
  const ratio = contrast(color, ground(element));
  if (!(ratio >= 4.5)) found.faint.push(`${element.tagName} ${element.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
}
const probe = document.body.appendChild(document.createElement("i"));
for (let i = 1; i <= 5; i++) {
  probe.style.color = `var(--series-${i})`;
  found.series.push(contrast(getComputedStyle(probe).color, ground(document.body)));
}
found.dark = light(ground(document.body)) < 0.1;
const out = document.body.appendChild(document.createElement("pre"));
out.id = "found";
out.textContent = JSON.stringify(found);
"""


# Finds, in a frame as wide as a phone, what sticks out of its box and cannot be scrolled to.
PHONE = """
<iframe src="REPORT" style="width: 390px; height: 844px; border: 0"></iframe><pre id="found"></pre>
<script>
document.querySelector("iframe").onload = event => {
  const page = event.target.contentDocument, found = {cut: [], scrolls: 0};
  for (const details of page.querySelectorAll("details")) details.open = true;
  for (const box of page.querySelectorAll("body *")) {
    if (box.namespaceURI.endsWith("svg") || box.scrollWidth <= box.clientWidth + 1 || !box.clientWidth) continue;
    if (["auto", "scroll"].includes(event.target.contentWindow.getComputedStyle(box).overflowX)) found.scrolls++;
    else if (!box.closest(".scroll")) found.cut.push(box.tagName + " " + box.className + " " + box.textContent.slice(0, 40));
  }
  found.wide = page.documentElement.scrollWidth;
  document.getElementById("found").textContent = JSON.stringify(found);
};
</script>
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained experiment: two seeds, delayed scaling, an alert, a fork."""
    from conftest import SMALL

    place = tmp_path_factory.mktemp("browser")
    text = place / "text"
    text.mkdir()
    for number in range(20):
        (text / f"{number}.txt").write_text(f"Document {number}. " + "The quick brown fox jumps over it. " * 20)
    file = place / "small.toml"
    file.write_text(SMALL.format(launcher="inline", dropout=0.0, text=text) + RUNS)
    runs = place / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALTGRAD_CACHE", str(place / "cache"))
        assert altgrad_here("run", file, "--runs", runs)[0] == 0
        forked = altgrad_here("fork", f"{runs / 'small' / 'e5m2-42'}@8", "--name", "later", "--set", 'recipe="hybrid"')
        assert forked[0] == 0, forked[1]
    write_report(runs / "small")
    return runs / "small"


def browse(page: Path, place: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [str(CHROMIUM), *SWITCHES.split(), f"--user-data-dir={place / 'profile'}", *more, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done


def watch(page: Path, place: Path, *more: str) -> dict[str, Any]:
    """Return what ``WATCH`` found in a copy of the page."""
    copy = place / "watched.html"
    copy.write_text(
        page.read_text(encoding="utf-8").replace("</body>", f"<script>{WATCH}</script></body>"), encoding="utf-8"
    )
    text = browse(copy, place, *more, "--dump-dom").stdout
    match = re.search(r'<pre id="found">(.*?)</pre>', text, re.DOTALL)
    assert match, text[-2000:]
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    return found


@pytest.mark.parametrize("width", [1280, 500])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_works_and_can_be_read(folder: Path, tmp_path: Path, width: int, scheme: str) -> None:
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    found = watch(folder / "report.html", tmp_path, f"--window-size={width},2000", *dark)
    assert found["dark"] == (scheme == "dark")
    assert found["stuck"] == found["lost"] == found["faint"] == []
    assert found["opened"] >= 10
    assert found["wide"] <= width  # what is too wide scrolls in a box of its own
    assert min(found["series"]) >= 3  # WCAG 2.2, 1.4.11: graphics
    assert {
        *(
            "training-loss.csv",
            "ratio.csv",
            "scale-layers-0.csv",
            "grid-0.csv",
            "grid-casts-0.csv",
            "alerts.csv",
            "speed.csv",
        ),
        "lineage.csv",
    } <= set(found["files"])
    assert all(lines >= 3 for lines in found["files"].values()), found["files"]  # a header, a row, the end


def test_on_a_phone_nothing_is_wider_than_the_screen(folder: Path, tmp_path: Path) -> None:
    """390 pixels, which Chromium's own windows do not go down to: a frame of that width, everything opened."""
    page = tmp_path / "phone.html"
    page.write_text(PHONE.replace("REPORT", (folder / "report.html").as_uri()), encoding="utf-8")
    text = browse(page, tmp_path, "--allow-file-access-from-files", "--window-size=800,900", "--dump-dom").stdout
    match = re.search(r'<pre id="found">(.*?)</pre>', text)
    assert match, text[-2000:]
    found = json.loads(html.unescape(match[1]))
    assert found["wide"] <= 390
    assert found["cut"] == []
    assert found["scrolls"] >= 1  # the tables, each in a box of its own, with the runs' names in sight


def test_it_draws_and_says_what_it_should(folder: Path, tmp_path: Path) -> None:
    done = browse(folder / "report.html", tmp_path, "--dump-dom")
    assert "e5m2 over 2 seeds (42, 43)" in done.stdout
    assert "later is a fork of small/e5m2-42 after step 8." in done.stdout
    assert done.stdout.count("<svg") >= 20
    image = tmp_path / "report.png"
    browse(folder / "report.html", tmp_path, "--hide-scrollbars", f"--screenshot={image}")
    assert image.stat().st_size > 30_000  # an empty page of this size has 5 to 10 KB


def test_it_prints(folder: Path, tmp_path: Path) -> None:
    paper = tmp_path / "report.pdf"
    browse(folder / "report.html", tmp_path, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    assert paper.read_bytes().startswith(b"%PDF")
    assert paper.stat().st_size > 50_000
