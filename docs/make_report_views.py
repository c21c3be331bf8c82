"""Takes the pictures of a report for docs/analysis.md: ``python docs/make_report_views.py``. Needs Chromium.

A small matrix is really trained (a minute or so) and its report photographed: on a dark screen, on a phone, on paper, and
the figures of values on the formats' grids. Chromium's windows are no narrower than 500 pixels, so the phone is a frame in
one; on paper means the page's rules for print, applied to a screen as wide as A4.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from make_reports import PICTURES, capture
from PIL import Image

import altgrad_core as altgrad
from altgrad_core.analysis.report import write_report

DARK = "--blink-settings=preferredColorScheme=0"
EXPERIMENT = """
[experiment]
name = "four-formats"
[defaults]
launcher = "inline"
[defaults.model]
n_layer = 2
n_embd = 64
n_head = 2
block_size = 64
[defaults.train]
steps = 60
batch_size = 8
warmup_steps = 5
eval_every = 10
eval_batches = 2
[defaults.probes]
histograms = { every = 20 }
[[run]]
name = "bf16"
baseline = true
[[run]]
name = "e5m2"
recipe = "e5m2"
[[run]]
name = "hybrid"
recipe = "hybrid"
[[run]]
name = "mxfp4"
recipe = "mxfp4"
"""


def photograph(text: str, target: Path, width: int, height: int, *more: str) -> None:
    """Save a page as a PNG of few colours, which keeps it small."""
    with tempfile.TemporaryDirectory() as folder:
        page, raw = Path(folder, "page.html"), Path(folder, "page.png")
        page.write_text(text, encoding="utf-8")
        profile = f"--user-data-dir={folder}/profile"
        image = capture(page, raw, max(width, 500), height, profile, *more).crop((0, 0, width, height))
        image.quantize(128, method=Image.Quantize.MAXCOVERAGE).save(target, optimize=True)
    print(f"{target.name}: {target.stat().st_size:,} bytes")


def on_a_phone(page: Path) -> str:
    """Return a page with the report in a frame as wide as a phone."""
    return f'<body style="margin: 0"><iframe src="{page.as_uri()}#comparison" style="border: 0; width: 390px; height: 844px"></iframe>'


def section(text: str, key: str) -> str:
    """Return the report with one of its sections alone."""
    start = text.rindex("<section>", 0, text.index(f'<h2 id="{key}">'))
    end = text.index("</section>", start)
    return text[: text.index("<header>")] + "<main>" + text[start:end] + "</section></main></body></html>"


def pictures(page: Path) -> None:
    """Take all pictures of a report."""
    text = page.read_text(encoding="utf-8")
    margin = "body { padding: 1.5cm !important; }"  # the browser's, on paper
    photograph(text, PICTURES / "report-dark.png", 1000, 1150, DARK)
    photograph(on_a_phone(page), PICTURES / "report-phone.png", 390, 844)
    photograph(text.replace("@media print {", f"@media all {{ {margin}"), PICTURES / "report-print.png", 794, 1123)
    photograph(section(text, "grids"), PICTURES / "report-grids.png", 1000, 1090)


def main() -> None:
    """Train, and take all pictures."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "experiment.toml")
        file.write_text(EXPERIMENT)
        altgrad.run(file, runs=Path(folder, "runs"))
        page = write_report(Path(folder, "runs", "four-formats"))
        pictures(page)


if __name__ == "__main__":
    main()
