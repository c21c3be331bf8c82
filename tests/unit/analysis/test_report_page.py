"""The report: complete, self-contained, equal for equal input, and its data equal to the events."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from run_folders import START, config, metrics, recipe, status, training, write_run

from altgrad_core.analysis.figures import styles
from altgrad_core.analysis.report import write_report
from altgrad_core.analysis.runs import load_run
from altgrad_core.analysis.series import Series, layers_by_step, smoothing_width
from altgrad_core.analysis.settings import recipe_rows
from altgrad_core.errors import AltgradError, RunFailed
from altgrad_core.recipes.resolve import recipe_table, resolve_recipe

VOID = {"meta", "link", "br", "hr", "img", "input", "col"}
OVER_STEPS = [
    "training-loss",
    "validation-loss",
    "difference",
    "gradient-norm",
    "gradient-cosine",
    "overflow",
    "underflow",
    "bit-stall",
]


class Page(HTMLParser):
    """Checks nesting and ids while it parses; keeps links, figures, text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.files: dict[str, str] = {}
        self.figures: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        its = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if its.get("id"):
            self.ids.append(its["id"] or "")
        if tag == "figure":
            self.figures.append(its["id"] or "")
        for name in ("href", "src", "action", "data"):
            if name in its:
                self.loads.append(its[name] or "")
        if its.get("download"):
            self.files[its["download"] or ""] = unquote((its["href"] or "").partition(",")[2])
        assert tag not in ("script", "link", "iframe", "object", "embed")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment of a baseline, a run that overflows, and an unfinished one."""
    folder = tmp_path_factory.mktemp("runs") / "e5m2-vs-bf16"
    for name, steps in (("bf16", 200), ("e5m2", 200), ("e4m3fn", 120)):
        made = config(name, baseline=name == "bf16", recipe=recipe(name), train={"steps": 200})
        write_run(folder / name, made, training(name, steps=steps, planned=200))
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    """Its report."""
    return Page(write_report(folder).read_text(encoding="utf-8"))


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_all_figures_are_there(page: Page) -> None:
    layers = [f"{kind}-layers-{index}" for kind in ("gradient-cosine", "bit-stall", "overflow") for index in (0, 1)]
    assert page.figures == OVER_STEPS + layers
    assert set(page.files) == {f"{key}.csv" for key in page.figures}


def test_it_needs_nothing_else(folder: Path, page: Page) -> None:
    for link in page.loads:
        assert link.startswith(("data:text/csv", "data:image/png;base64", "#")), link[:80]
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []


def test_ids_are_unique_and_references_resolve(folder: Path, page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    text = (folder / "report.html").read_text(encoding="utf-8")
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    assert used <= set(page.ids)


def test_figures_take_their_colours_from_the_page(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    drawings = re.findall(r'<div class="drawing".*?</div>', text, flags=re.DOTALL)
    assert len(drawings) == 14
    for drawing in drawings:
        assert "currentColor" in drawing
        assert re.findall(r"#0(?:10203|10204|10205|a0b\d\d)", drawing) == []  # no placeholder is left
        assert "<text" in drawing  # text that can be selected, not outlines
    for variable in set(re.findall(r"var\((--[a-z0-9-]+)\)", text)):
        assert text.count(f"{variable}: #") == 2, variable  # light and dark


def test_words_and_numbers(page: Page) -> None:
    assert "e5m2 ends" in page.text
    assert "above bf16 (validation loss" in page.text
    assert "e4m3fn is unfinished" in page.text
    assert "3 runs · baseline bf16 · started 2026-09-21 14:13 UTC · 2 of 3 done" in page.text
    assert "bit stall 0.66 is above 0.5" in page.text
    assert "nearest even" in page.text
    assert "Layers lm_head: bf16 (nothing cast)." in page.text
    assert "824,448" in page.text
    assert "2.13.0" in page.text
    assert "mean over 7 logged steps" in page.text
    assert "training loss at the same step on the same batch" in page.text
    assert "no overflow, as in the 47 other casts at every step" in page.text


def test_the_data_equals_the_events(folder: Path, page: Page) -> None:
    runs = {name: load_run(folder / name) for name in ("bf16", "e4m3fn", "e5m2")}
    for key, metric in (
        ("training-loss", "train/loss"),
        ("validation-loss", "val/loss"),
        ("overflow", "overflow_rate"),
    ):
        header, *body = rows(page.files[f"{key}.csv"])
        for column, name in enumerate(header[1:], start=1):
            found = {int(row[0]): float(row[column]) for row in body if row[column]}
            assert found == pytest.approx(dict(zip(*runs[name].metrics(metric), strict=True)), rel=1e-8)
    header, *body = rows(page.files["gradient-cosine-layers-1.csv"])
    assert [row[0] for row in body] == runs["e5m2"].layers("grad_cos_sim")
    _, values = runs["e5m2"].metrics(f"grad_cos_sim/{body[3][0]}")
    assert header[1:3] == ["1", "3"]  # 200 logged steps in columns of two
    assert float(body[3][2]) == pytest.approx((values[2] + values[3]) / 2, rel=1e-8)
    header, *body = rows(page.files["difference.csv"])
    assert header == ["step", "e4m3fn training", "e5m2 training", "e4m3fn validation", "e5m2 validation"]
    base, other = (dict(zip(*runs[name].metrics("val/loss"), strict=True)) for name in ("bf16", "e5m2"))
    at_200 = next(row for row in body if row[0] == "200")
    assert at_200[1] == at_200[3] == ""
    assert float(at_200[4]) == pytest.approx(100 * (other[200] / base[200] - 1))


def test_equal_input_gives_equal_bytes(folder: Path, page: Page) -> None:
    first = (folder / "report.html").read_bytes()
    assert write_report(folder).read_bytes() == first
    assert len(first) < 400_000
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["report.html"]  # no draft is left


def test_a_users_matplotlib_settings_do_not_matter(folder: Path, page: Page) -> None:
    import matplotlib as mpl

    first = (folder / "report.html").read_bytes()
    with mpl.rc_context({"font.size": 30, "axes.grid": False}):
        assert write_report(folder).read_bytes() == first
        assert mpl.rcParams["font.size"] == 30  # nor are they changed


def test_nothing_opens_a_window(folder: Path, page: Page) -> None:
    import sys

    assert "matplotlib.pyplot" not in sys.modules


def test_a_failed_write_leaves_the_old_report(folder: Path, page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    before = (folder / "report.html").read_bytes()
    with pytest.raises(RunFailed, match="disk full"):
        write_report(folder)
    assert (folder / "report.html").read_bytes() == before
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["report.html"]


def test_runs_at_their_edges(tmp_path: Path) -> None:
    """A pending run, one of a single step, one that is all NaN, hostile and wide names, no baseline, no validation."""
    write_run(tmp_path / "a", config("a"), None)
    one = [status("running"), metrics(1, {"train/loss": 3.0, "grad_cos_sim": 1.0, "grad_cos_sim/w.weight": 1.0})]
    write_run(tmp_path / "b", config("<script>alert(1)</script>"), one)
    values = {"train/loss": "NaN", "overflow_rate": "NaN", "overflow_rate/w.input": "NaN", "bit_stall_rate": 0.0}
    lost = [status("running"), *(metrics(step, values) for step in range(1, 50))]
    lost.append({"time": START, "event": "alert", "step": 3, "alert": "nan", "message": "größer als <b>ok</b>"})
    write_run(tmp_path / "c", config('größe, "8" bit & 100%' + "x" * 80), lost)
    still = [status("running"), metrics(1, {"train/loss": 3.0, "overflow_rate": 0.0, "overflow_rate/w.input": 0.0})]
    write_run(tmp_path / "d", config("d"), [*still, status("done")])
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.figures == ["training-loss", "gradient-cosine", "overflow", "bit-stall", "gradient-cosine-layers-0"]
    assert "<script>alert(1)</script>" in page.text
    assert "größer als <b>ok</b>" in page.text
    assert "Nothing overflowed in d." in page.text
    header, first, *_ = rows(page.files["training-loss.csv"])
    assert header == ["step", "<script>alert(1)</script>", "d", 'größe, "8" bit & 100%' + "x" * 80]
    assert first == ["1", "3", "3", "nan"]


def test_runs_on_other_batches_are_not_called_paired(tmp_path: Path) -> None:
    for index, seed in enumerate((1, 2)):
        made = config(f"r{index}", seed=seed, baseline=index == 0)
        write_run(tmp_path / f"r{index}", made, training("bf16", steps=5, planned=5))
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "training loss at the same step. Dots" in page.text


def test_nothing_has_started(tmp_path: Path) -> None:
    write_run(tmp_path / "a", config("a", baseline=True), None)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.figures == []
    assert "No run has logged a step yet." in page.text
    assert "1 run · baseline a · 0 of 1 done" in page.text


def test_many_alerts_are_counted(tmp_path: Path) -> None:
    alerts = [{"time": START, "event": "alert", "step": step, "alert": "nan", "message": "m"} for step in range(150)]
    write_run(tmp_path / "a", config("a"), [status("running"), *alerts, status("done")])
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "The first 100 of 150" in page.text


def test_twelve_runs_can_be_told_apart() -> None:
    looks = styles([True] + [False] * 11)
    assert looks[0].color == "currentColor"
    assert len({(look.color, str(look.dashes)) for look in looks}) == 12
    assert len({look.color for look in looks[1:6]}) == 5


def test_no_runs(tmp_path: Path) -> None:
    with pytest.raises(AltgradError, match="found none in"):
        write_report(tmp_path)


def test_smoothing_and_thinning() -> None:
    nan = float("nan")
    line = Series("a", [1, 2, 3, 4, 5], [1.0, 2.0, nan, 4.0, 9.0])
    assert line.smooth(3).values == [1.5, 1.5, 3.0, 6.5, 6.5]
    assert line.smooth(1).finite().values == [1.0, 2.0, 4.0, 9.0]
    assert [smoothing_width(n) for n in (0, 29, 30, 60, 300, 2000)] == [1, 1, 1, 3, 11, 67]
    spiky = Series("b", list(range(10_000)), [1e6 if step == 7777 else float(step % 3) for step in range(10_000)])
    thin = spiky.thin(500)
    assert len(thin.steps) <= 500
    assert (thin.steps[0], max(thin.values)) == (0, 1e6)
    assert thin.steps == sorted(thin.steps)
    assert line.thin(500) is line


def test_layers_are_merged_by_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from altgrad_core.analysis import series

    monkeypatch.setattr(series, "MOST_COLUMNS", 2)
    events = [status("running")]
    for step, value in ((10, 1.0), (20, 3.0), (30, "NaN"), (40, 5.0)):
        backward = {"m/b.grad_output": 1.0, "m/a.grad_output": value}
        events.append(metrics(step, {"m/a.input": 0.0, "m/b.input": 0.0, **backward}))
    layers = layers_by_step(load_run(write_run(tmp_path / "a", config("a"), events)), "a", "m")
    assert layers.rows == ["a.input", "b.input", "a.grad_output", "b.grad_output"]
    assert (layers.steps, layers.steps_per_column) == ([10, 30], 2)
    assert layers.values == [[0.0, 0.0], [0.0, 0.0], [2.0, 5.0], [1.0, 1.0]]
    assert layers.above_zero().rows == ["a.grad_output", "b.grad_output"]


def test_the_recipe_in_the_forms_it_may_have() -> None:
    scaling = {"kind": "delayed", "history": 16, "power_of_two": True, "x": False}
    made = recipe_rows({
        "name": "hybrid",
        "compute": "bf16",
        "input": {"format": "e4m3fn", "scaling": scaling, "rounding": "nearest_even"},
        "weight": "e5m2",
        "overrides": [{"match": "lm_head", "recipe": {"name": "x", "input": {"format": "e3m4"}}}],
    })  # fmt: skip
    assert made["rows"][0] == ("input", "e4m3fn", "delayed (history 16, power of two, no x)", "nearest even", "")
    assert made["rows"][1] == ("weight", "e5m2", "", "", "")
    assert made["rows"][2] == ("grad_output", "bf16, not cast", "", "", "")
    assert [row[0] for row in made["rows"]] == ["input", "weight", "grad_output"]  # a gradient only where it is cast
    assert made["overrides"] == [("lm_head", "x (input e3m4)")]


def test_the_rows_of_what_a_step_leaves_behind() -> None:
    long = recipe_table(resolve_recipe("e5m2-pure"))
    rows = {row[0]: row[1:] for row in recipe_rows(long)["rows"]}
    assert rows["weight_storage"] == ("e5m2", "current (power of two, margin 0)", "stochastic", "finite")
    assert list(rows)[3:] == ["gradient", "weight_storage", "optimizer_state", "saved_activations"]
    apart = recipe_table(resolve_recipe({"optimizer_state": {"exp_avg": "bf16", "exp_avg_sq": "fp16"}}))
    rows = {row[0]: row[1] for row in recipe_rows(apart)["rows"]}
    assert (rows["optimizer_state.exp_avg"], rows["optimizer_state.exp_avg_sq"]) == ("bf16", "fp16")
    assert "optimizer_state" not in rows
