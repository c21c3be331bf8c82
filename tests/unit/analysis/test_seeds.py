"""Runs that differ only in their seed, against means and deviations worked out by hand; and the question of yes or no."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from run_folders import config, metrics, recipe, status, write_run

from altgrad_core.analysis.compare import compare, seeds_table
from altgrad_core.analysis.runs import Run, load_run
from altgrad_core.analysis.seeds import same_but_seed
from altgrad_core.analysis.within import beyond, parse_limit
from altgrad_core.errors import AltgradError


def run(folder: Path, name: str, seed: int, val: dict[int, Any], *, end: str = "done", **changes: Any) -> Run:
    events = [status("running")]
    for step, loss in val.items():
        events += [metrics(step, {"train/loss": loss}), metrics(step, {"val/loss": loss})]
    made = config(name, seed=seed, **{"train": {"steps": 2}, **changes})
    return load_run(write_run(folder / f"{name}-{seed}", made, [*events, status(end)]))


def printed(runs: list[Run]) -> str:
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(seeds_table(compare(runs)))
    return capture.get()


@pytest.fixture
def six(tmp_path: Path) -> list[Run]:
    """A baseline with seeds 1 and 2, a format with 1, 2 and 3, and one single training."""
    e5m2 = recipe("e5m2")
    return [
        run(tmp_path, "bf16-1", 1, {1: 3.0, 2: 2.0}, baseline=True),
        run(tmp_path, "bf16-2", 2, {1: 3.0, 2: 2.2}, baseline=True),
        run(tmp_path, "e5m2-1", 1, {1: 3.0, 2: 2.1}, recipe=e5m2),
        run(tmp_path, "e5m2-2", 2, {1: 3.0, 2: 2.2}, recipe=e5m2),
        run(tmp_path, "e5m2-3", 3, {1: 3.0, 2: 2.0}, recipe=e5m2),
        run(tmp_path, "e3m4", 1, {1: 3.0, 2: 2.4}, recipe=recipe("e3m4")),
    ]


def test_each_run_is_compared_with_the_baseline_of_its_seed(six: list[Run]) -> None:
    comparison = compare(six)
    partners = [row.compared_with for row in comparison.rows]
    # Seed 3 has no baseline of its own, and the baseline's other seed shows what a seed does.
    assert partners == [None, "bf16-1", "bf16-1", "bf16-2", "bf16-1", "bf16-1"]
    differences = [row.difference_percent for row in comparison.rows]
    assert differences[0] is None
    assert differences[1:] == pytest.approx([10.0, 5.0, 0.0, 0.0, 20.0])
    assert comparison.rows[3].differs_in == ()
    assert comparison.rows[4].differs_in == ("seed",)
    assert comparison.rows[1].verdict.endswith("The recipe is that of bf16-1: this is what another seed does.")
    assert comparison.rows[4].verdict.endswith("Not the format alone: it also differs from bf16-1 in seed.")
    assert comparison.baseline is comparison.rows[0]


def test_mean_and_deviation_by_hand(six: list[Run]) -> None:
    comparison = compare(six)
    base, e5m2 = comparison.groups
    assert (base.name, base.runs, base.seeds, base.baseline) == ("bf16", ("bf16-1", "bf16-2"), (1, 2), True)
    assert (base.loss_step, base.finite) == (2, 2)
    assert base.loss_mean == pytest.approx(2.1)
    assert base.loss_sd == pytest.approx(math.sqrt(0.02))  # (0.1^2 + 0.1^2) / 1
    assert base.difference_percent is None
    assert (e5m2.name, e5m2.seeds, e5m2.baseline, e5m2.finite) == ("e5m2", (1, 2, 3), False, 3)
    assert e5m2.loss_mean == pytest.approx(2.1)
    assert e5m2.loss_sd == pytest.approx(0.1)
    # 5 % and 0 % of the pairs; seed 3, which is compared with seed 1, would bring in what a seed does.
    assert (e5m2.compared, e5m2.compared_step, e5m2.paired) == (2, 2, True)
    assert e5m2.difference_percent == pytest.approx(2.5)
    assert e5m2.difference_sd == pytest.approx(math.sqrt(2 * 2.5**2))
    assert (e5m2.reached, e5m2.steps_to_target_mean) == (1, 2.0)  # the target is 2.02
    assert (
        base.sentence
        == "bf16 over 2 seeds (1, 2): validation loss 2.100 ± 0.141 at step 2 (mean ± standard deviation)."
    )
    assert "; 2.50 ± 3.54 % above the baseline of the same seed, over 2 of the 3 runs (mean" in e5m2.sentence
    assert comparison.verdicts[:2] == (base.sentence, e5m2.sentence)
    assert any(note.startswith("e3m4 is a single training") for note in comparison.notes)
    assert not any("marked as baseline" in note for note in comparison.notes)


def test_pairs_of_seeds(six: list[Run]) -> None:
    group = compare(six[:4]).groups[1]
    assert group.paired
    assert group.difference_percent == pytest.approx(2.5)
    assert "2.50 ± 3.54 % above the baseline of the same seed" in group.sentence


def test_the_table_of_seeds(six: list[Run]) -> None:
    header, base, e5m2 = printed(six).splitlines()
    assert header.split() == ["over", "seeds", "n", "val", "loss", "diff", "to", "target", "seeds"]
    assert base.split() == ["bf16", "*", "2", "2.1000", "±", "0.1414", "-", "2", "(1", "of", "2)", "1,", "2"]
    assert " +2.50 ± 3.54 % (2 of 3) " in e5m2


def test_a_run_that_went_nan_is_not_averaged_away(tmp_path: Path) -> None:
    base = run(tmp_path, "bf16", 1, {2: 2.0}, baseline=True)
    pair = [run(tmp_path, "e5m2", seed, {2: loss}, recipe=recipe("e5m2")) for seed, loss in ((1, 2.2), (2, "NaN"))]
    (group,) = compare([base, *pair]).groups
    assert (group.finite, group.loss_mean, group.loss_sd) == (1, 2.2, None)
    assert "without 1 that has no finite loss there" in group.sentence
    lost = [run(tmp_path / "x", "e5m2", seed, {2: "NaN"}, recipe=recipe("e5m2")) for seed in (1, 2)]
    (group,) = compare(lost).groups
    assert group.loss_mean is None
    assert "has no finite loss at one step" in group.sentence
    json.dumps(compare(lost).as_dict(), allow_nan=False)


def test_losses_are_averaged_at_a_step_that_all_have(tmp_path: Path) -> None:
    ends = [(1, {1: 3.0, 2: 2.0}), (2, {1: 4.0})]
    pair = [run(tmp_path, "r", seed, val, end="interrupted") for seed, val in ends]
    (group,) = compare(pair).groups
    assert (group.loss_step, group.finite, group.loss_mean) == (1, 2, 3.5)
    assert "3.5000 ± 0.7071 at step 1" in printed(pair)


@pytest.mark.parametrize("end", ["interrupted", "stopped", "running", "failed"])
@pytest.mark.parametrize("val", [{1: 2.6}, {}])
def test_a_seed_that_died_early_does_not_make_the_mean_that_of_an_early_step(
    tmp_path: Path, end: str, val: dict[int, float]
) -> None:
    base = run(tmp_path, "bf16", 1, {1: 2.5, 2: 2.0}, baseline=True)
    e5m2 = recipe("e5m2")
    done = [run(tmp_path, "e5m2", seed, {1: 2.6, 2: loss}, recipe=e5m2) for seed, loss in ((1, 2.02), (2, 2.04))]
    lost = run(tmp_path, "e5m2", 3, val, end=end, recipe=e5m2)
    (group,) = compare([base, *done, lost]).groups
    assert (group.loss_step, group.finite, group.loss_mean) == (2, 2, pytest.approx(2.03))
    assert (group.compared, group.compared_step) == (2, 2)
    assert "at step 2, without 1 that has no finite loss there" in group.sentence
    assert " 2/3  2.0300 ± 0.0141  +1.50 ± 0.71 %  " in printed([base, *done, lost])


def test_a_difference_says_its_step_and_how_many_runs_it_is_over(tmp_path: Path) -> None:
    base = run(tmp_path, "bf16", 1, {1: 3.0}, baseline=True, end="interrupted")
    e5m2 = recipe("e5m2")
    pair = [run(tmp_path, "e5m2", seed, {1: 3.3, 2: 2.0}, recipe=e5m2) for seed in (1, 2)]
    (group,) = compare([base, *pair]).groups
    assert (group.loss_step, group.compared_step, group.compared) == (2, 1, 2)
    assert "at step 2; 10.00 ± 0.00 % above the baseline at step 1 (mean" in group.sentence
    assert "+10.00 ± 0.00 % at step 1" in printed([base, *pair])

    losses = ((1, 2.0, 2.0), (2, "NaN", 3.0), (3, 2.0, 2.02))
    family = [run(tmp_path / "x", "bf16", seed, {2: loss}, baseline=seed == 1) for seed, loss, _ in losses]
    three = [run(tmp_path / "x", "e5m2", seed, {2: loss}, recipe=e5m2) for seed, _, loss in losses]
    comparison = compare([*family, *three])
    assert (comparison.groups[1].finite, comparison.groups[1].compared) == (3, 2)
    assert "0.50 ± 0.71 % above the baseline of the same seed, over 2 of the 3 runs" in comparison.groups[1].sentence
    assert "+0.50 ± 0.71 % (2 of 3)" in printed([*family, *three])
    assert comparison.as_dict()["groups"][1]["compared"] == 2


def test_pairs_and_other_differences_are_not_averaged_together(tmp_path: Path) -> None:
    e5m2 = recipe("e5m2")
    family = [run(tmp_path, "bf16", seed, {2: loss}, baseline=seed == 1) for seed, loss in ((1, 2.0), (2, 2.2))]
    made = [
        run(tmp_path, "e5m2", seed, {2: loss}, recipe=e5m2) for seed, loss in ((1, 2.0), (2, 2.2), (3, 2.2), (4, 2.2))
    ]
    group = compare([*family, *made[:3]]).groups[1]
    assert (group.difference_percent, group.compared, group.paired) == (pytest.approx(0.0, abs=1e-9), 2, True)
    group = compare([*family, *made[1:]]).groups[1]  # one pair: what two seeds have in common is the baseline
    assert (group.difference_percent, group.compared, group.paired) == (pytest.approx(10.0), 2, False)


def test_what_makes_a_group(tmp_path: Path) -> None:
    made = [
        run(tmp_path, "a", 1, {2: 2.0}),
        run(tmp_path, "b", 2, {2: 2.0}, probes={}, checkpoint={"every": 7}, sink=[{"kind": "csv"}]),
        run(tmp_path, "c", 3, {2: 2.0}, train={"steps": 3}),
        run(tmp_path, "d", 4, {2: 2.0}, recipe=recipe("e5m2")),
        run(tmp_path, "e", 2, {2: 2.0}),  # the same training as b again
        run(tmp_path, "f", 5, {2: 2.0}, fork={"run": "e/a", "step": 1, "checkpoint": "step-000001", "state_hash": "0"}),
    ]
    assert same_but_seed(made) == [[0, 1], [2], [3], [4], [5]]
    assert compare(made).groups[0].name == "a"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("e5m2-7", "e5m2-8"), "e5m2"),
        (("e5m2-seed7", "e5m2-seed8"), "e5m2"),
        (("s7_e5m2", "s8_e5m2"), "e5m2"),
        (("e5m7", "e5m8"), "e5m7"),  # the format's own number
        (("7", "8"), "7"),
    ],
)
def test_names_of_groups(tmp_path: Path, names: tuple[str, str], expected: str) -> None:
    pair = [run(tmp_path, name, seed, {2: 2.0}) for name, seed in zip(names, (7, 8), strict=True)]
    assert compare(pair).groups[0].name == expected


def test_within(six: list[Run]) -> None:
    comparison = compare(six)
    assert beyond(comparison, 20.0) == []
    assert beyond(comparison, 5.0) == [
        "e3m4 is not within 5 %: validation loss 2.4000 against 2.0000 of bf16-1 at step 2, +20.00 %."
    ]
    assert len(beyond(comparison, 4.9)) == 2  # the baseline's second seed, 10 % above the first, is not asked


def test_what_is_not_done_or_not_a_number_is_not_within(tmp_path: Path) -> None:
    base = run(tmp_path, "bf16", 1, {1: 3.0, 2: 2.0}, baseline=True)
    made = [
        run(tmp_path, "stopped", 1, {1: 3.0}, end="stopped", recipe=recipe("e5m2")),
        run(tmp_path, "lost", 1, {1: 3.0, 2: "NaN"}, recipe=recipe("e4m3fn")),
        run(tmp_path, "elsewhere", 1, {7: 2.0}, recipe=recipe("e3m4")),
        load_run(write_run(tmp_path / "pending", config("pending"), None)),
    ]
    assert beyond(compare([base, *made]), 1000.0) == [
        "stopped is not within 1000 %: stopped is stopped, at step 1 of 2.",
        "lost is not within 1000 %: its validation loss at its end, step 2, is NaN.",
        "elsewhere is not within 1000 %: it has no loss at a step at which bf16 has one of the same kind.",
        "pending is not within 1000 %: pending is pending, before its first step.",
    ]
    broken = run(tmp_path / "x", "bf16", 1, {1: 3.0}, end="failed", baseline=True)
    good = run(tmp_path / "x", "good", 1, {1: 3.0}, recipe=recipe("e5m2"))
    assert beyond(compare([broken, good]), 1.0) == ["good is not within 1 %: bf16 is failed, at step 1 of 2."]


def test_only_the_ends_are_within(tmp_path: Path) -> None:
    base = run(tmp_path, "bf16", 1, {150: 2.5, 300: 2.0}, baseline=True)
    made = [
        run(tmp_path, "lost", 1, {150: 2.5, 290: "NaN"}, recipe=recipe("e5m2")),
        run(tmp_path, "short", 1, {150: 2.5}, recipe=recipe("e4m3fn")),
        run(tmp_path, "long", 1, {150: 2.5, 300: 2.0, 400: 1.9}, recipe=recipe("e3m4")),
    ]
    assert beyond(compare([base, *made]), 1.0) == [
        "lost is not within 1 %: its validation loss at its end, step 290, is NaN.",
        "short is not within 1 %: it ends at step 150 and bf16 at step 300, so their ends cannot be compared.",
        "long is not within 1 %: it ends at step 400 and bf16 at step 300, so their ends cannot be compared.",
    ]
    nan = run(tmp_path / "x", "bf16", 1, {150: 2.5, 300: "NaN"}, baseline=True)
    good = run(tmp_path / "x", "good", 1, {150: 2.5, 300: 2.0}, recipe=recipe("e5m2"))
    assert "which cannot be compared" in beyond(compare([nan, good]), 1.0)[0]


def test_nothing_to_compare_is_no_yes(tmp_path: Path, six: list[Run]) -> None:
    with pytest.raises(AltgradError, match="none of the runs is one"):
        beyond(compare(six[5:]), 1.0)
    with pytest.raises(AltgradError, match="bf16-1 is all there is"):
        beyond(compare(six[:2]), 1.0)


def test_limits() -> None:
    assert [parse_limit(text) for text in ("10%", " 0.5 % ", ".5%", "1e-3%")] == [10.0, 0.5, 0.5, 0.001]
    for wrong in ("", "%", "-1%", "ten", "nan", "inf%", "10%%", "1,5%", "3", "0.01"):
        with pytest.raises(
            AltgradError, match=r"a percentage with its sign, such as 1% .* 2\.02 where the baseline's is 2\.00"
        ):
            parse_limit(wrong)
