"""The report: complete, self-contained, equal for equal input, and its data equal to the events."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import Page, rows
from run_folders import START, config, histograms, metrics, recipe, status, training, write_run

from altgrad_core.analysis.figures import styles
from altgrad_core.analysis.report import write_report
from altgrad_core.analysis.runs import load_run
from altgrad_core.analysis.series import Series, layers_by_step, smoothing_width
from altgrad_core.analysis.settings import recipe_rows
from altgrad_core.errors import AltgradError, RunFailed
from altgrad_core.recipes.resolve import recipe_table, resolve_recipe

OVER_STEPS = [
    "training-loss",
    "validation-loss",
    "difference",
    "ratio",
    "gradient-norm",
    "gradient-cosine",
    "gradient-snr",
    "overflow",
    "underflow",
    "bit-stall",
    "scale",
]
BY_LAYER = ("gradient-cosine", "gradient-snr", "overflow", "underflow", "bit-stall", "scale")


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


def test_all_figures_are_there(page: Page) -> None:
    layers = [f"{kind}-layers-{index}" for kind in BY_LAYER for index in (0, 1)]
    assert page.figures == [*OVER_STEPS, *layers, "alerts", "speed", "process-memory"]
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
    assert len(drawings) == 26
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
    assert float(body[3][2]) == pytest.approx((values[2] + values[3]) / 2, rel=1e-5)
    header, *body = rows(page.files["ratio.csv"])
    assert header == ["step", "e4m3fn training", "e5m2 training", "e4m3fn validation", "e5m2 validation"]
    base, other = (dict(zip(*runs[name].metrics("val/loss"), strict=True)) for name in ("bf16", "e5m2"))
    at_200 = next(row for row in body if row[0] == "200")
    assert at_200[1] == at_200[3] == ""
    assert float(at_200[4]) == pytest.approx(100 * (other[200] / base[200] - 1))
    _, *body = rows(page.files["difference.csv"])
    assert float(next(row for row in body if row[0] == "200")[4]) == pytest.approx(other[200] - base[200])
    header, *body = rows(page.files["alerts.csv"])
    assert [header, *body] == [["run", "step", "alert"], ["e4m3fn", "120", "bit_stall"], ["e5m2", "120", "bit_stall"]]
    header, first, *_ = rows(page.files["process-memory.csv"])
    assert header == ["minutes", "bf16", "e4m3fn", "e5m2"]
    assert [float(cell) for cell in first] == pytest.approx([1 / 6, *[1 + 10 / 1024] * 3])


def test_equal_input_gives_equal_bytes(folder: Path, page: Page) -> None:
    first = (folder / "report.html").read_bytes()
    assert write_report(folder).read_bytes() == first
    assert len(first) < 1_000_000
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
    over_steps = ["training-loss", "gradient-cosine", "overflow", "bit-stall"]
    assert page.figures == [*over_steps, "gradient-cosine-layers-0", "alerts"]
    assert "<script>alert(1)</script>" in page.text
    assert "größer als <b>ok</b>" in page.text
    assert "No overflow in d." in page.text
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


def test_the_operands_of_each_product(page: Page) -> None:
    """fprop, dgrad, wgrad, each with its operands' formats: bf16 keeps all, the others cast all."""
    start = page.text.index("The three matrix products")
    words = page.text[start : page.text.index("Settings and environment", start)].split()
    first = words.index("fprop")
    kept = "fprop input bf16 not cast × weight bf16 not cast → output bf16"
    assert words[first : first + len(kept.split())] == kept.split()
    assert words.count("wgrad") == words.count("dgrad") == 3
    cast = " ".join(words)
    assert "dgrad grad output e5m2 current × weight e5m2 current → gradient of input bf16" in cast
    assert "wgrad grad output e4m3fn current × input e4m3fn current → gradient of weight bf16" in cast


def test_runs_of_one_recipe_share_a_picture(tmp_path: Path) -> None:
    for seed in (1, 2):
        made = config(f"e5m2-{seed}", seed=seed, recipe=recipe("e5m2"), train={"steps": 5})
        write_run(tmp_path / f"e5m2-{seed}", made, training("e5m2", steps=5, planned=5, seed=seed))
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.text.count("fprop") == 1
    assert "e5m2 over 2 seeds (1, 2)" in page.text
    assert "e5m2 (2 seeds)" in page.text  # one look in the legends
    assert looks_of(tmp_path) == 1


def test_a_recipe_says_what_multiplied(tmp_path: Path) -> None:
    """Each backend and its reason once, of all the runs that have the recipe."""
    told = [{"emulated: the CPU has no FP8 units": ["a", "b"]}, {"native": ["a"], "emulated: 'b' has blocks": ["b"]}]
    for name, backends in zip("xyz", (*told, told[0])):
        events = training("e5m2", steps=5, planned=5)
        events.insert(1, {"time": 0.0, "event": "init", "what": "recipe", "facts": {"backends": backends}})
        write_run(tmp_path / name, config(name, recipe=recipe("e5m2"), train={"steps": 5}), events)
    text = " ".join(Page(write_report(tmp_path).read_text(encoding="utf-8")).text.split())
    assert (
        "Backend of 2 layers: emulated: the CPU has no FP8 units. Backend of 1 layer: native. "
        "Backend of 1 layer: emulated: 'b' has blocks." in text
    )
    assert text.count("Backend of 2 layers") == 1


def test_a_recipe_that_leaves_linear_layers_alone_has_no_picture_of_them(tmp_path: Path) -> None:
    made = {**recipe("e5m2"), "name": "e5m2, layers norm", "layers": ["norm"]}
    write_run(tmp_path / "a", config("a", recipe=made), training("e5m2", steps=5, planned=5))
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "fprop" not in text
    assert text.count("layers norm") == 1


def looks_of(folder: Path) -> int:
    from altgrad_core.analysis.compare import compare
    from altgrad_core.analysis.report.many import drawn_runs
    from altgrad_core.analysis.runs import load_experiment_runs

    runs = load_experiment_runs(folder)
    return len({its.look for its in drawn_runs(runs, compare(runs))})


def test_forks_hang_from_their_parents(tmp_path: Path) -> None:
    def fork(parent: str, step: int) -> dict[str, object]:
        return {"run": f"e5m2-vs-bf16/{parent}", "step": step, "checkpoint": f"step-{step:06d}", "state_hash": "0"}

    write_run(tmp_path / "a", config("a", baseline=True), training("bf16", steps=10, planned=10))
    write_run(tmp_path / "b", config("b", fork=fork("a", 4)), training("bf16", steps=10, planned=10))
    write_run(tmp_path / "c", config("c", fork=fork("b", 6)), training("bf16", steps=7, planned=10))
    write_run(tmp_path / "d", config("d", fork=fork("gone", 2)), None)
    write_run(tmp_path / "e", config("e"), training("bf16", steps=3, planned=3))
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert rows(page.files["lineage.csv"]) == [
        ["run", "parent", "after step", "last step"],
        ["a", "", "", "10"],
        ["b", "e5m2-vs-bf16/a", "4", "10"],
        ["c", "e5m2-vs-bf16/b", "6", "7"],
        ["d", "e5m2-vs-bf16/gone", "2", ""],
    ]
    assert "Not in this experiment any more: e5m2-vs-bf16/gone." in page.text


def test_gpus_are_taken_together(tmp_path: Path) -> None:
    samples = [
        {"rank": 0, "used_mib": 1024.0, "utilization": 50.0, "power_w": 300.0, "temperature_c": 60.0},
        {"rank": 1, "used_mib": 2048.0, "utilization": 70.0, "power_w": 400.0},
        {"rank": 2, "used_mib": 512.0},
    ]
    events = [
        status("running", time=START),
        {"time": START + 30, "event": "gpus", "samples": samples},
        metrics(1, {"train/loss": 3.0}, time=START + 60),
        status("interrupted", time=START + 60),
        status("running", time=START + 3600, resumed=True),
        {"time": START + 3630, "event": "gpus", "samples": samples[:1]},
        status("done", time=START + 3660),
    ]
    write_run(tmp_path / "a", config("a"), events)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    read = {key: rows(page.files[f"gpu-{key}.csv"])[1:] for key in ("memory", "utilization", "power", "temperature")}
    assert read["memory"] == [["0.5", "2"], ["1.5", "1"]]  # minutes of training: the hour between is not counted
    assert read["utilization"] == [["0.5", "60"], ["1.5", "50"]]
    assert read["power"] == [["0.5", "700"], ["1.5", "300"]]
    assert read["temperature"] == [["0.5", "60"], ["1.5", "60"]]
    assert "Time between an interruption and its resume is not counted." in page.text


@pytest.mark.slow
def test_three_runs_of_two_thousand_steps_stay_small(tmp_path: Path) -> None:
    """With every metric of every layer at every step."""
    for name in ("bf16", "e5m2", "e4m3fn"):
        made = config(name, baseline=name == "bf16", recipe=recipe(name), train={"steps": 2000})
        grids = [histograms(step, name) for step in range(100, 2001, 100) if name != "bf16"]
        write_run(tmp_path / name, made, [*training(name, steps=2000, planned=2000), *grids])
    size = write_report(tmp_path).stat().st_size
    print(f"the report has {size} bytes")
    assert size < 5_000_000


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


def test_maps_of_other_kinds_of_layers(tmp_path: Path) -> None:
    """A layer's operands stand together, in the order of the model; an exact cast is not drawn, said and in the data."""
    forward = {"norm.output": 30.0, "attn.qkv.input": "Infinity", "attn.query": 25.0, "head.input": 31.0}
    backward = {"head.grad_output": 20.0, "attn.grad_scores": 22.0, "attn.qkv.grad_output": "NaN"}
    values = {f"sqnr_db/{name}": value for name, value in (forward | backward).items()}
    events = [metrics(step, {"train/loss": 1.0, **values}) for step in (1, 2)]
    write_run(tmp_path / "a", config("a"), [status("running"), *events])
    layers = layers_by_step(load_run(tmp_path / "a"), "a", "sqnr_db")
    assert layers.rows == ["norm.output", "attn.qkv.input", "attn.qkv.grad_output", "attn.query", "attn.grad_scores",
                           "head.input", "head.grad_output"]  # fmt: skip
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "Empty: exact (infinitely many dB) or not a number." in page.text
    (data,) = [text for name, text in page.files.items() if "sqnr" in name]
    assert rows(data)[2:4] == [["attn.qkv.input", "inf", "inf"], ["attn.qkv.grad_output", "", ""]]


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


def test_a_single_step_is_a_point_on_an_axis_of_steps(tmp_path: Path) -> None:
    """One step, and a rate of zero: a tick at the step and no fractions of it; the point lies within the axes."""
    events = [status("running"), metrics(7, {"train/loss": 3.0, "overflow_rate": 0.0, "overflow_rate/a.input": 0.0})]
    write_run(tmp_path / "a", config("a"), events)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    for key in ("training-loss", "overflow"):
        figure = text[text.index(f'<figure id="{key}">') :].partition("</figure>")[0]
        ticks = re.findall(rf'id="{key}-xtick_\d+".*?<text[^>]*>([^<]+)</text>', figure, flags=re.DOTALL)
        assert ticks == ["7"]


def test_every_layer_of_a_heatmap_has_its_name(folder: Path, page: Page) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    figure = text[text.index('<figure id="gradient-cosine-layers-1">') :].partition("</figure>")[0]
    assert len(re.findall(r">blocks[\w.]+</text>", figure)) == 16
