"""The comparison against numbers worked out by hand, and its sentences against what may be claimed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import attrs
import pytest
from rich.console import Console
from run_folders import START, config, metrics, recipe, status, training, write_run

from altgrad_core.analysis.compare import Comparison, blocks, compare, table
from altgrad_core.analysis.runs import Run, load_experiment_runs, load_run
from altgrad_core.analysis.table import duration, number, percent, signed_percent
from altgrad_core.errors import AltgradError


def run(
    folder: Path,
    name: str,
    losses: dict[int, Any],
    *,
    val: dict[int, Any] | None = None,
    end: str | None = "done",
    reason: str = "",
    extra: dict[int, dict[str, Any]] | None = None,
    **changes: Any,
) -> Run:
    """A run with the training ``losses`` and validation losses by step, that ends as ``end``."""
    events = [status("running")]
    for step, loss in losses.items():
        events.append(metrics(step, {"train/loss": loss, **(extra or {}).get(step, {})}))
        if val and step in val:
            events.append(metrics(step, {"val/loss": val[step]}))
    if end is not None:
        events.append(status(end, time=START + 90, reason=reason))
    changes = {"train": {"steps": 4}, **changes}
    return load_run(write_run(folder / name, config(name, **changes), events))


def printed(comparison: Comparison, width: int) -> str:
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table(comparison, width))
    return capture.get()


def test_numbers_by_hand(tmp_path: Path) -> None:
    base_extra = {step: {"train/tokens_per_s": 1000.0} for step in (1, 2, 3, 4)}
    losses = {1: 4.0, 2: 3.0, 3: 2.5, 4: 2.0}
    base = run(tmp_path, "bf16", losses, val={2: 3.5, 4: 2.5}, extra=base_extra, baseline=True)
    extra = {
        1: {"train/tokens_per_s": 100.0, "grad_cos_sim": 0.98, "overflow_rate": 0.0, "underflow_rate": 0.4,
            "shadow_grad_snr_db": 12.5},
        3: {"train/tokens_per_s": 600.0, "grad_cos_sim": 1.0, "overflow_rate": 0.0002, "bit_stall_rate": 0.75,
            "underflow_rate": 0.6, "shadow_grad_snr_db": 13.5},
        2: {"shadow_grad_snr_db": 12.0, "bit_stall_rate": 0.75},
        4: {"train/tokens_per_s": 500.0, "grad_cos_sim": "NaN", "train/grad_norm": "Infinity"},
    }  # fmt: skip
    other = run(tmp_path, "e5m2", losses, val={2: 3.25, 4: 2.75}, extra=extra, recipe=recipe("e5m2"))
    comparison = compare([base, other])
    first, second = comparison.rows
    assert comparison.baseline is first
    assert first.difference_percent is None
    assert first.speed_ratio is None
    assert first.grad_cos_sim is None
    assert (first.final_loss, first.best_loss, first.loss_kind, first.nan_steps) == (2.5, 2.5, "validation", 0)
    assert (second.final_loss, second.best_loss, second.compared_step) == (2.75, 2.75, 4)
    assert second.difference_percent == pytest.approx(10.0)
    assert second.grad_cos_sim == pytest.approx(0.99)
    assert second.grad_snr_db == pytest.approx(12.5)
    assert (first.compared_with, second.compared_with) == (None, "bf16")
    assert comparison.loss_target == pytest.approx(2.525)  # 1 % above the baseline's last validation loss
    assert (first.steps_to_target, second.steps_to_target) == (4, None)
    assert second.overflow_percent == pytest.approx(0.01)
    assert second.underflow_percent == pytest.approx(50)
    assert second.bit_stall_percent == pytest.approx(75)
    assert (second.tokens_per_s, second.speed_ratio) == (500.0, 0.5)
    assert (second.nan_steps, second.alerts, second.wall_time_s, second.recipe) == (1, 0, 90.0, "e5m2")
    assert second.verdict == (
        "e5m2 had 1 step with NaN or infinity. e5m2 ends 10.00 % above bf16 (validation loss 2.750 against 2.500). Its "
        "gradients, where they are finite, point the same way as in FP32 (mean cosine 0.990, SNR 12.5 dB); 0.01 % overflow "
        "and 50.00 % underflow in its casts; a step leaves 75.00 % of the weights unmoved (bit stall)."
    )
    assert first.verdict == "bf16, the baseline, ends with a validation loss of 2.500."
    assert "Each run is a single training" in comparison.notes[0]


def test_speeds_of_other_machines_and_days(tmp_path: Path) -> None:
    """Of another machine there is no ratio; of another day there is one, and a note."""
    extra = {1: {"train/tokens_per_s": 1000.0}}
    runs = [
        run(tmp_path, name, {1: 4.0}, extra=extra, baseline=name == "bf16") for name in ("bf16", "near", "far", "late")
    ]
    runs[2] = attrs.evolve(runs[2], environment={**runs[2].environment, "device": "cuda", "device_name": "NVIDIA H100"})
    runs[3] = attrs.evolve(runs[3], started_s=START + 25 * 3600)
    comparison = compare(runs)
    assert [row.speed_ratio for row in comparison.rows] == [None, 1.0, None, 1.0]
    said = [note for note in comparison.notes if "'speed'" in note]
    assert said == [
        "No 'speed' for far: trained on another machine than what it is compared with.",
        "'speed' of late: begun more than a day apart from what it is compared with, when the machine may have had other work.",
    ]
    assert not [note for note in compare(runs[:2]).notes if "speed" in note]


def test_unfinished_runs_are_compared_where_both_have_a_loss(tmp_path: Path) -> None:
    losses = {step: 5.0 - step for step in (1, 2, 3, 4)}
    base = run(tmp_path, "bf16", losses, val={1: 4.0, 2: 3.0, 4: 1.0}, baseline=True)
    part = {1: 4.0, 2: 3.0, 3: 2.0}
    other = run(tmp_path, "slow", part, val={1: 4.0, 2: 2.4, 3: 2.0}, end="interrupted", reason="Ctrl-C")
    row = compare([base, other]).rows[1]
    assert (row.compared_step, row.difference_percent) == (2, pytest.approx(-20.0))
    assert row.verdict == (
        "slow is unfinished: it was interrupted at step 3 of 4 (Ctrl-C). At step 2, the last at which both have a "
        "loss, slow is 20.00 % below bf16 (validation loss 2.400 against 3.000)."
    )


def test_a_longer_run_is_not_said_to_end_ahead(tmp_path: Path) -> None:
    base = run(tmp_path, "bf16", {1: 3.0, 2: 2.0}, val={2: 2.0}, baseline=True)
    longer = run(tmp_path, "long", {1: 3.0, 2: 2.0, 3: 1.0}, val={2: 2.0, 3: 1.0}, train={"steps": 3})
    row = compare([base, longer]).rows[1]
    assert row.verdict.startswith("At step 2, the last at which both have a loss, long is level with bf16")
    assert row.verdict.endswith("Not the format alone: it also differs from bf16 in train.steps.")


def test_what_differs_beside_the_format_is_said(tmp_path: Path) -> None:
    base = run(tmp_path, "bf16", {1: 3.0}, baseline=True)
    other = run(
        tmp_path, "other", {1: 3.0}, seed=7, recipe=recipe("e5m2"), probes={"shadow": False}, data={"kind": "text"}
    )
    row = compare([base, other]).rows[1]
    assert row.differs_in == ("seed", "data.kind", "data.tokenizer", "data.val_fraction")


def test_without_validation_the_mean_of_the_last_ten_training_losses(tmp_path: Path) -> None:
    losses = {step: float(step) for step in range(1, 13)}
    base = run(tmp_path, "bf16", losses, baseline=True, train={"steps": 12})
    other = run(tmp_path, "e5m2", {s: 2 * v for s, v in losses.items()}, train={"steps": 12})
    comparison = compare([base, other])
    row = comparison.rows[1]
    assert (row.loss_kind, row.final_loss, row.best_loss) == (
        "training",
        15.0,
        11.0,
    )  # 2 * mean(3..12), 2 * mean(1..10)
    assert row.difference_percent == pytest.approx(100)
    assert "(mean of the last training losses 15.000 against 7.500)" in row.verdict
    assert any("mean of the last 10 training losses" in note for note in comparison.notes)
    assert "15.0000 train" in printed(comparison, 200)


def test_training_and_validation_losses_are_not_mixed(tmp_path: Path) -> None:
    base = run(tmp_path, "bf16", {1: 3.0, 2: 2.0}, val={2: 2.0}, baseline=True)
    other = run(tmp_path, "e5m2", {1: 3.0, 2: 2.0})
    comparison = compare([base, other])
    assert comparison.rows[1].difference_percent is None
    assert comparison.rows[1].final_loss == 2.5  # of the two steps there are
    assert "bf16 has none at the same step to compare it with" in comparison.rows[1].verdict
    assert "Training and validation losses are not compared with each other." in comparison.notes


def test_skipped_updates_between_logged_steps_count(tmp_path: Path) -> None:
    extra = {1: {"train/skipped_updates": 0}, 10: {"train/skipped_updates": 4}, 20: {"train/skipped_updates": 7}}
    row = compare([run(tmp_path, "x", {1: 3.0, 10: "NaN", 20: 2.0}, extra=extra)]).rows[0]
    assert row.nan_steps == 7


def test_a_run_stopped_by_nan(tmp_path: Path) -> None:
    base = run(tmp_path, "bf16", {1: 3.0, 2: 2.0, 3: 1.5}, val={1: 3.0, 3: 1.5}, baseline=True)
    nan = run(
        tmp_path, "e3m4", {1: 3.0, 2: "NaN", 3: "NaN"}, val={1: 3.0, 3: "NaN"}, end="stopped", reason="10 in a row"
    )
    row = compare([base, nan]).rows[1]
    assert math.isnan(row.final_loss or 0)
    assert (row.best_loss, row.nan_steps, row.difference_percent) == (3.0, 2, None)
    assert row.verdict == (
        "e3m4 was stopped at step 3 of 4 after 2 steps with NaN or infinity: 10 in a row. "
        "The loss of e3m4 is not a finite number at step 3 (validation loss NaN against 1.500)."
    )
    assert " NaN " in printed(compare([base, nan]), 200)


@pytest.mark.parametrize("width", [50, 80, 100, 200])
def test_a_run_that_went_nan_at_once_does_not_look_well(tmp_path: Path, width: int) -> None:
    """Its only validation loss, and its only cosine, are from before the first NaN."""
    losses = {step: 5.0 - step for step in (1, 2, 3, 4)}
    base = run(tmp_path, "bf16", losses, val={4: 1.0}, baseline=True, extra={1: {"grad_cos_sim": 1.0}})
    nan = run(
        tmp_path,
        "e3m4",
        {1: 5.0, 2: "NaN"},
        end="stopped",
        reason="2 in a row",
        extra={1: {"grad_cos_sim": 0.997, "bit_stall_rate": 0.25}},
    )
    start = metrics(0, {"val/loss": 5.48})
    for one in (base, nan):
        with (one.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(start) + "\n")
    comparison = compare([load_run(base.folder), load_run(nan.folder)])
    row = comparison.rows[1]
    assert (row.final_loss, row.final_step, row.steps, row.difference_percent) == (5.48, 0, 2, None)
    assert row.verdict == (
        "e3m4 was stopped at step 2 of 4 after 1 step with NaN or infinity: 2 in a row. Its only validation loss of 5.480 "
        "is from step 0, before it was trained. Measured at step 1 only: gradients, bit stall."
    )
    text = printed(comparison, width)
    header, *lines = text.splitlines()
    assert {"steps", "NaN"} <= set(header.split())
    assert max(len(line.rstrip()) for line in lines) <= width
    assert "2/4" in text
    assert "0.00 %" not in text
    if width >= 80:
        assert "5.4800 at step 0" in lines[1]


def test_the_step_of_a_loss_that_is_not_the_last(tmp_path: Path) -> None:
    losses = {step: 5.0 - step for step in (1, 2, 3, 4)}
    base = run(tmp_path, "bf16", losses, val={2: 3.0, 4: 1.0}, baseline=True)
    part = run(tmp_path, "part", {1: 4.0, 2: 3.0, 3: 2.0}, val={2: 3.3}, end="interrupted")
    odd = run(tmp_path, "odd", {1: 4.0, 2: 3.0, 3: 2.0}, val={2: 3.3, 3: 2.0}, end="failed")
    _, first, second, third, *_ = printed(compare([base, part, odd]), 200).splitlines()
    assert "at step" not in first
    assert "3.3000 at step 2" in second
    assert "+10.00 %  " in second, "the loss beside it says the step"
    assert "2.0000  " in third
    assert "+10.00 % at step 2" in third


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("failed", "x failed at step 1 of 4 (out of memory)."),
        ("stopped", "x was stopped at step 1 of 4: out of memory."),
        (None, "x is unfinished: it was interrupted at step 1 of 4 (its process ended without a word)."),
    ],
)
def test_ends_are_named(tmp_path: Path, end: str | None, expected: str) -> None:
    row = compare([run(tmp_path, "x", {1: 3.0}, end=end, reason="out of memory")]).rows[0]
    assert (
        row.verdict
        == f"{expected} x has a mean of the last training losses of 3.000; there is no baseline to compare it with."
    )


def test_a_single_run_a_pending_one_and_no_baseline(tmp_path: Path) -> None:
    pending = load_run(write_run(tmp_path / "p", config("p"), None))
    comparison = compare([run(tmp_path, "a", {1: 3.0}), pending])
    assert comparison.baseline is None
    assert comparison.rows[1].verdict == "p has not logged a step yet (status: pending)."
    assert comparison.rows[1].wall_time_s is None
    assert comparison.rows[1].nan_steps is None
    assert comparison.notes[0] == "No run is the baseline, so no differences are given."
    cells = next(line for line in printed(comparison, 200).splitlines() if line.startswith("p ")).split()
    assert cells == ["p", "pending", "-", "-", "-", "-", "-", "0"]
    assert compare([pending]).notes == ()
    with pytest.raises(AltgradError, match="Expected at least one run"):
        compare([])


def test_choosing_the_baseline(tmp_path: Path) -> None:
    a, b = run(tmp_path, "a", {1: 3.0}, baseline=True), run(tmp_path, "b", {1: 3.3}, baseline=True)
    assert compare([a, b]).rows[1].difference_percent == pytest.approx(10)
    assert "Several runs are marked as baseline (a, b)" in compare([a, b]).notes[0]
    for chosen in ("b", b):
        other = compare([a, b], chosen)
        assert other.baseline is other.rows[1]
        assert other.rows[0].difference_percent == pytest.approx(100 * (3.0 / 3.3 - 1))
    with pytest.raises(AltgradError, match=r"Unknown baseline 'bb'.*Known: a, b"):
        compare([a, b], "bb")
    with pytest.raises(AltgradError, match="Expected the baseline among the runs compared"):
        compare([a], b)
    with pytest.raises(AltgradError, match="more than once"):
        compare([a, a])


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [run(tmp_path / e, "bf16", {1: 3.0}, experiment=e) for e in ("one", "two")]
    assert [row.name for row in compare(runs).rows] == ["one/bf16", "two/bf16"]
    with pytest.raises(AltgradError, match="'bf16' names 2 of the runs"):
        compare(runs, "bf16")
    same = [run(tmp_path / e, "bf16", {1: 3.0}) for e in ("three", "four")]
    assert [row.name for row in compare(same).rows] == [str(tmp_path / e / "bf16") for e in ("three", "four")]


def test_as_dict_is_json_and_keeps_missing_apart_from_nan(tmp_path: Path) -> None:
    comparison = compare([run(tmp_path, "a", {1: "NaN"}, baseline=True), run(tmp_path, "b", {1: 2.0})])
    read = json.loads(json.dumps(comparison.as_dict(), allow_nan=False))
    assert read["baseline"] == "a"
    assert read["runs"][0]["final_loss"] == "NaN"
    assert read["runs"][0]["overflow_percent"] is None
    assert read["runs"][1]["final_loss"] == 2.0
    assert read["runs"][1]["differs_in"] == []


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 300])
def test_the_table_fits(tmp_path: Path, width: int) -> None:
    for index in range(12):
        name = "bf16" if index == 0 else f"e4m3fn-delayed-with-a-long-name-{index}"
        events = training("bf16" if index == 0 else "e5m2", steps=20, planned=20, seed=index)
        write_run(tmp_path / name, config(name, baseline=index == 0, train={"steps": 20}), events)
    comparison = compare(load_experiment_runs(tmp_path))
    text = printed(comparison, width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    header = text.splitlines()[0].split()
    assert header[:2] == ["run", "status"]
    assert {"loss", "diff"} <= set(header)
    assert ("Left out at this width" in " ".join(text.split())) == ("best" not in header)  # the first to go
    assert "..." not in text
    assert "…" not in text
    for index in range(1, 12):
        assert f"{index}" in text


@pytest.mark.parametrize("width", [40, 80, 120, 300])
def test_in_blocks_nothing_is_left_out(tmp_path: Path, width: int) -> None:
    for index, name in enumerate(("bf16", "e5m2", "e4m3fn-delayed-with-a-long-name")):
        events = training("bf16" if index == 0 else "e5m2", steps=200, planned=200, seed=index)
        write_run(tmp_path / name, config(name, baseline=index == 0, train={"steps": 200}), events)
    comparison = compare(load_experiment_runs(tmp_path))
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        for block in blocks(comparison, width):
            console.print(block)
    text = capture.get()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "Left out" not in text
    headers = [line.split() for line in text.splitlines() if line.startswith("run ")]
    assert len(headers) == {40: 9, 80: 3, 120: 2, 300: 1}[width]
    words = [word for header in headers for word in header if word != "run"]
    wanted = "status steps val loss best diff to target cosine SNR overflow underflow bit stall tokens/s speed time NaN"
    assert sorted(words) == sorted([*wanted.split(), "alerts", "first", "alert"])
    assert text.count("* the baseline.") == 1
    assert "bit stall at 120" in " ".join(text.split())


def test_steps_to_a_target(tmp_path: Path) -> None:
    losses = {step: 5.0 - step for step in (1, 2, 3, 4)}
    base = run(tmp_path, "bf16", losses, val={1: 4.0, 2: 3.0, 3: 2.02, 4: 2.0}, baseline=True)
    other = run(tmp_path, "e5m2", losses, val={1: "NaN", 2: 3.5, 3: 2.5, 4: 2.03})
    comparison = compare([base, other])
    assert comparison.loss_target == pytest.approx(2.02)
    assert [row.steps_to_target for row in comparison.rows] == [3, None]
    assert any("at most 2.0200, 1 % above the final loss of bf16" in note for note in comparison.notes)
    asked = compare([base, other], loss_target=3.5)
    assert [row.steps_to_target for row in asked.rows] == [2, 2]
    assert any("at most 3.5000, as asked for" in note for note in asked.notes)
    assert compare([other], loss_target=0.5).rows[0].steps_to_target is None
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(AltgradError, match="Expected a target loss above 0"):
            compare([base], loss_target=wrong)


def test_a_fork_is_judged_by_what_it_trained(tmp_path: Path) -> None:
    """What it began with is the other run's: its loss, and the count of steps that were skipped."""
    base = run(tmp_path, "bf16", {1: 4.0, 2: 2.0, 3: 2.5, 4: 2.2}, val={1: 4.0, 2: 2.0, 4: 2.2}, baseline=True)
    fork = {"run": "e/bf16", "step": 2, "checkpoint": "step-000002", "state_hash": "0"}
    extra = {3: {"train/skipped_updates": 7}, 4: {"train/skipped_updates": 8}}
    start = metrics(2, {"val/loss": 2.0})
    folders = [
        run(tmp_path, "lost", {3: 9.0, 4: "NaN"}, fork=fork, end="interrupted", extra=extra).folder,
        run(tmp_path, "worse", {3: 3.0, 4: 3.0}, val={3: 3.0, 4: 3.3}, fork=fork).folder,
        run(tmp_path, "again", {3: "NaN", 4: 3.0}, fork=fork, seed=43, extra=extra, end="interrupted").folder,
    ]
    for folder in folders:
        with (folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(start) + "\n")
    comparison = compare([base, *map(load_run, folders)])
    lost, worse, again = comparison.rows[1:]
    assert (lost.compared_step, lost.difference_percent, lost.best_loss, lost.steps_to_target) == (
        None,
        None,
        None,
        None,
    )
    assert (lost.nan_steps, again.nan_steps) == (1, 2)
    assert "Its only validation loss of 2.000 is from step 2, before it was trained." in lost.verdict
    assert (worse.best_loss, worse.steps_to_target, worse.compared_step) == (3.0, None, 4)
    assert worse.verdict.endswith("Its means are of the steps after 2, those of bf16 of all after 0, so that they "
                                  "differ also where the runs do not.")  # fmt: skip
    assert [(group.runs, group.loss_step) for group in comparison.groups] == [(("lost", "again"), None)]


def test_the_best_loss_is_one_of_the_training(tmp_path: Path) -> None:
    base = run(tmp_path, "bf16", {1: 5.0, 2: 2.0}, val={2: 2.0}, baseline=True)
    made = run(tmp_path, "worse", {0: 5.5, 1: 7.0, 2: 7.5}, val={0: 5.5, 1: 7.0, 2: 7.5})
    row = compare([base, made]).rows[1]
    assert (row.best_loss, row.final_loss) == (7.0, 7.5)
    assert "5.5" not in row.verdict


def test_the_target_is_for_losses_of_its_kind(tmp_path: Path) -> None:
    losses = {step: 1.0 for step in range(1, 12)}
    base = run(tmp_path, "bf16", {1: 3.0, 2: 2.0}, val={1: 3.0, 2: 2.0}, baseline=True, end="interrupted")
    other = run(tmp_path, "e5m2", losses)
    comparison = compare([base, other])
    assert [row.steps_to_target for row in comparison.rows] == [2, None]
    assert any("at most 2.0200, 1 % above the loss at step 2 of bf16." in note for note in comparison.notes)
    assert [row.steps_to_target for row in compare([base, other], loss_target=2.5).rows] == [2, 10]


def test_a_run_of_the_seed_that_has_no_loss_is_no_partner(tmp_path: Path) -> None:
    base = run(tmp_path, "bf16-42", {1: 3.0}, val={1: 2.0}, baseline=True)
    pending = load_run(write_run(tmp_path / "bf16-43", config("bf16-43", seed=43, train={"steps": 4}), None))
    other = run(tmp_path, "e5m2-43", {1: 3.0}, val={1: 2.2}, seed=43, recipe=recipe("e5m2"))
    row = compare([base, pending, other]).rows[2]
    assert (row.compared_with, row.difference_percent) == ("bf16-42", pytest.approx(10.0))
    assert "seed" in row.differs_in


def test_one_run_by_two_spellings_is_there_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(tmp_path, "a", {1: 3.0}).folder
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AltgradError, match=r"Expected different runs, got .*a more than once"):
        compare([load_run(folder), load_run(Path("a"))])


def test_the_first_alert_is_named(tmp_path: Path) -> None:
    events = [
        status("running"),
        *(metrics(step, {"train/loss": 3.0}) for step in (1, 2, 3)),
        {"time": START, "event": "alert", "step": 3, "alert": "bit_stall", "message": "m"},
        {"time": START, "event": "alert", "step": 2, "alert": "loss_spike", "message": "m"},
    ]
    row = compare([load_run(write_run(tmp_path / "a", config("a"), events))]).rows[0]
    assert (row.first_alert, row.first_alert_step, row.alerts) == ("loss_spike", 2, 2)
    assert row.verdict.endswith("Alert at step 2: loss spike, the first of 2.")


def test_gradients_that_are_fp32s_own_have_an_infinite_snr(tmp_path: Path) -> None:
    extra = {1: {"shadow_grad_snr_db": "Infinity"}, 2: {"shadow_grad_snr_db": "Infinity"}}
    comparison = compare([run(tmp_path, "fp32", {1: 3.0, 2: 2.0}, extra=extra)])
    assert comparison.rows[0].grad_snr_db == math.inf
    assert comparison.as_dict()["runs"][0]["grad_snr_db"] == "Infinity"
    assert "inf dB" in printed(comparison, 200)


@pytest.mark.parametrize(
    ("logged", "expected"),
    [(["Infinity"] * 99 + [10.0], math.inf), ([10.0] * 99 + ["Infinity"], 10.0), (["NaN", 3.0, 4.0, 5.0], 4.0)],
)
def test_the_snr_is_a_median(tmp_path: Path, logged: list[Any], expected: float) -> None:
    """A mean of the finite steps alone would tell of one step in a hundred, one of all would be infinite."""
    extra = {step: {"shadow_grad_snr_db": value} for step, value in enumerate(logged, 1)}
    row = compare([run(tmp_path, "a", dict.fromkeys(extra, 3.0), extra=extra)]).rows[0]
    assert row.grad_snr_db == expected


def test_the_target_is_explained_where_its_column_is(tmp_path: Path) -> None:
    names = ("bf16", "e5m2")
    for index, name in enumerate(names):
        write_run(tmp_path / name, config(name, baseline=index == 0), training(name, seed=index))
    comparison = compare(load_experiment_runs(tmp_path))
    narrow, wide = (" ".join(printed(comparison, width).split()) for width in (80, 300))
    assert "to target" in narrow.partition("Left out at this width: ")[2].partition("(")[0]
    assert "'to target' is the first step" not in narrow
    assert "'to target' is the first step" in wide
    assert comparison.target_note in comparison.notes


def test_a_sink_is_no_difference(tmp_path: Path) -> None:
    base = run(tmp_path, "bf16", {1: 3.0}, baseline=True)
    other = run(tmp_path, "e5m2", {1: 3.0}, sink=[{"kind": "csv"}])
    assert compare([base, other]).rows[1].differs_in == ()


def test_columns_that_nobody_measured_are_named_once(tmp_path: Path) -> None:
    text = printed(compare([run(tmp_path, "a", {1: 3.0})]), 200)
    assert "cosine" not in text.splitlines()[0]
    missing = "diff, to target, cosine, SNR, overflow, underflow, bit stall, tokens/s, speed, first alert"
    assert f"Not measured: {missing}." in " ".join(text.split())


def test_names_are_not_markup(tmp_path: Path) -> None:
    made = config("[red]a[/]", baseline=True)
    assert "[red]a[/] *" in printed(compare([load_run(write_run(tmp_path / "a", made, None))]), 200)


def test_formatting() -> None:
    assert [percent(v) for v in (None, 0.0, 0.004, 0.005, 0.3, 12.345)] == [
        "-", "0.00 %", "<0.01 %", "0.01 %", "0.30 %", "12.35 %",
    ]  # fmt: skip
    assert [signed_percent(v) for v in (None, -0.004, 0.0, 1.234, -56.7)] == [
        "-",
        "0.00 %",
        "0.00 %",
        "+1.23 %",
        "-56.70 %",
    ]
    assert [number(v, 1) for v in (None, math.nan, math.inf, -math.inf, 12345.67)] == [
        "-",
        "NaN",
        "inf",
        "-inf",
        "12,345.7",
    ]
    assert [duration(v) for v in (None, 0.0, 9.96, 59.4, 59.6, 185, 3599.7, 7620)] == [
        "-", "0.0 s", "10.0 s", "59 s", "1 min 00 s", "3 min 05 s", "1 h 00 min", "2 h 07 min",
    ]  # fmt: skip
