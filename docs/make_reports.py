"""Photographs reports for the pages: ``python docs/make_reports.py [FOLDER]``.

FOLDER is the experiment of docs/first-run.md as it was trained (``runs/first``); without one it is trained here, as the page
says, which takes some minutes. The photographer is Chromium, so that the pictures are what a browser shows.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from page_blocks import DOCS, blocks, lay_down, run
from PIL import Image

PICTURES = DOCS / "pictures"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH = 1000
LAYERS = ("gradient-cosine-layers-2", "underflow-layers-1")
CURVES = ("difference", "gradient-norm", "gradient-cosine", "underflow")


def browser() -> str:
    """Return the path of a browser that takes photographs."""
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    sys.exit(f"No browser found: install one of {', '.join(BROWSERS)}.")


def capture(page: Path, out: Path, width: int, height: int, *flags: str) -> Image.Image:
    """Photograph the top of a page with the browser, into ``out``, and return the photograph."""
    switches = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},{height}"]
    command = [browser(), *switches, *flags, f"--screenshot={out}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return Image.open(out).convert("RGB")


def shot(page: Path, out: Path, height: int, *, dark: bool = False, scale: float = 1.5, colours: int = 160) -> None:
    """Photograph the top of a page, as light or dark, and cut off what is empty at the bottom."""
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    image = capture(page, out, WIDTH, height, f"--force-device-scale-factor={scale}", scheme)
    pixels = np.asarray(image)
    used = np.nonzero((pixels != pixels[-1, 0]).any(axis=(1, 2)))[0].max()
    image = image.crop((0, 0, image.width, min(image.height, int(used) + round(24 * scale))))
    image.quantize(colours, dither=Image.Dither.NONE).save(out, optimize=True)
    print(out.relative_to(DOCS.parent))


def only(report: Path, keys: tuple[str, ...], folder: Path) -> Path:
    """Return a page that has nothing of a report but some of its figures."""
    text = report.read_text(encoding="utf-8")
    figures = [re.search(rf'<figure id="{key}">.*?</figure>', text, re.DOTALL) for key in keys]
    missing = [key for key, found in zip(keys, figures, strict=True) if found is None]
    if missing:
        sys.exit(
            f"{report} has no figure {', '.join(missing)}; it has {', '.join(re.findall(r'<figure id=.([^>]*).>', text))}."
        )
    body = "".join(found[0] for found in figures if found)
    page = folder / "figures.html"
    head = text[: text.index("</head>")]
    page.write_text(
        f'{head}</head><body><main><div class="figures">{body}</div></main></body></html>', encoding="utf-8"
    )
    return page


def main(experiment: Path | None) -> None:
    """Take all pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if experiment is None:
            (first,) = [block for block in blocks(DOCS / "first-run.md") if block.said("file") == "first.toml"]
            lay_down(folder / "first.toml", first.text)
            run("altgrad run first.toml", folder)
            experiment = folder / "runs" / "first"
        report = experiment / "report.html"
        shot(report, PICTURES / "landing-light.png", 1440)
        shot(report, PICTURES / "landing-dark.png", 1440, dark=True)
        shot(report, PICTURES / "report.png", 1500)
        shot(only(report, CURVES, folder), PICTURES / "report-curves.png", 1600)
        shot(only(report, LAYERS, folder), PICTURES / "report-layers.png", 1600)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None)
