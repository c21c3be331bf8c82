"""A report of more runs than can have a look of their own: what stands out, what is left, and how large it gets."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from pages import Page, rows
from run_folders import OPERANDS, config, metrics, recipe, status, write_run

from altgrad_core.analysis.compare import compare
from altgrad_core.analysis.figures import REST
from altgrad_core.analysis.report import write_report
from altgrad_core.analysis.report.many import drawn_runs
from altgrad_core.analysis.runs import load_experiment_runs

FORMATS = [f"e{e}m{7 - e}" for e in range(1, 8)]


def many(folder: Path, runs: int, *, steps: int = 40) -> Path:
    """A baseline and ``runs - 1`` others, each worse than the one before; the last one met NaN."""
    for index in range(runs):
        rng = random.Random(index)
        name = "bf16" if index == 0 else f"run-{index:03d}"
        format_ = FORMATS[index % len(FORMATS)]
        events = [status("running")]
        for step in range(1, steps + 1):
            loss = 2.0 * (1 + index / 1000) + 3.0 / step + rng.gauss(0, 0.01)
            values: dict[str, object] = {"train/loss": loss, "train/tokens_per_s": 1000.0 + index}
            if index == runs - 1 and step > steps // 2:
                values["train/loss"] = "NaN"
            if index:
                for operand in OPERANDS:
                    values[f"overflow_rate/blocks.0.mlp.up.{operand}"] = rng.random() * 1e-3
                values["overflow_rate"] = 1e-4 * rng.random()
            events.append(metrics(step, values))
        events.append(metrics(steps, {"val/loss": "NaN" if index == runs - 1 else 2.0 * (1 + index / 1000)}))
        made = config(name, baseline=index == 0, recipe=recipe("bf16" if index == 0 else format_), learning=index)
        write_run(folder / name, made, [*events, status("done", step=steps)])
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many(tmp_path_factory.mktemp("runs") / "sweep", 40)


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_the_best_and_the_worst_stand_out(folder: Path) -> None:
    runs = load_experiment_runs(folder)
    drawn = drawn_runs(runs, compare(runs))
    shown = [its.label for its in drawn if its.look is not REST]
    # The run that met NaN has no loss to compare, which is worst of all.
    assert shown == ["bf16", *(f"run-{i:03d}" for i in (1, 2, 3, 4, 5, 35, 36, 37, 38, 39))]
    assert len({its.look for its in drawn}) == 12


def test_every_run_is_there(page: Page) -> None:
    start = page.text.index("Every run", page.text.index("What the columns mean"))
    tiles = page.text[start : page.text.index("Over the steps", start)]
    found = [tiles.index(f"run-{i:03d}") for i in (39, 38, 37, 20, 1)]
    assert found == sorted(found)  # the worst first
    assert "+3.80 %" in tiles
    assert "done, loss NaN" in tiles
    assert "29 more in words" in page.text
    assert "29 more runs" in page.text
    header, *_ = rows(page.files["training-loss.csv"])
    assert len(header) == 1 + 40
    assert page.figures.count("training-loss") == 1
    assert len([key for key in page.figures if key.startswith("overflow-layers")]) == 6
    assert "The 6 of 39 runs that ended furthest from the baseline." in page.text
    assert page.text.count("fprop") == 8  # one picture a recipe


def test_settings_of_many_runs_are_rows(folder: Path, page: Page) -> None:
    assert "Settings: the same in all" in page.text
    text = (folder / "report.html").read_text(encoding="utf-8")
    table = text[text.index("Settings: what differs") :].partition("</table>")[0]
    assert '<thead><tr><th>run</th><th scope="col">learning</th></tr></thead>' in table
    assert '<tr><th scope="row">run-007</th><td>7</td></tr>' in table


def test_what_a_csv_leaves_out_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("altgrad_core.analysis.report.figure.MOST_VALUES", 400)
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert "The CSV holds one of 4 logged steps; altgrad export writes all." in page.text
    steps = [row[0] for row in rows(page.files["training-loss.csv"])[1:]]
    assert steps == ["1", "5", "9", "13", "17", "21", "25", "29", "33", "37"]


@pytest.mark.slow
def test_two_hundred_runs_make_a_page_of_sensible_size(tmp_path: Path) -> None:
    text = write_report(many(tmp_path, 200, steps=100)).read_text(encoding="utf-8")
    assert len(text) < 6_000_000
    assert len(Page(text).figures) < 30
