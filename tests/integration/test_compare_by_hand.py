"""``altgrad compare`` of trained runs, against its numbers computed again from the lines of ``events.jsonl`` alone."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
from helpers import MakeExperiment, altgrad_here

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("ALTGRAD_TEST_DATA", ROOT.parent / "shared" / "data"))
RUNS = """
[[run]]
name = "bf16"
baseline = true
recipe = "bf16"
[[run]]
name = "e5m2-{seed}"
recipe = "e5m2"
matrix = { seed = [42, 43] }
"""


class ByHand:
    """A run's numbers; the last value of a (step, metric) wins."""

    def __init__(self, folder: Path) -> None:
        self.events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        self.metrics: dict[str, dict[int, float]] = {}
        for event in self.events:
            for name, value in event.get("values", {}).items() if event["event"] == "metrics" else ():
                self.metrics.setdefault(name, {})[event["step"]] = float(value)

    def last(self, name: str) -> float:
        return self.metrics[name][max(self.metrics[name])]

    def mean(self, name: str) -> float:
        values = [value for value in self.metrics[name].values() if math.isfinite(value)]
        return sum(values) / len(values)

    def median(self, name: str) -> float:
        return statistics.median_high(value for value in self.metrics[name].values() if not math.isnan(value))


def assert_by_hand(folder: Path, target: float, *names: str) -> tuple[dict[str, Any], dict[str, ByHand]]:
    """Check every row of ``altgrad compare``, the baseline named first, and return what it said and the runs by hand."""
    code, answer = altgrad_here("compare", folder, "--json", "--loss-target", target)
    assert code == 0
    read = json.loads(answer)
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in read["runs"]}
    hand = {name: ByHand(folder / name) for name in names}
    assert set(rows) == set(hand)
    base = hand[names[0]]
    for name, its in hand.items():
        row, val = rows[name], its.metrics["val/loss"]
        assert row["final_loss"] == its.last("val/loss")
        assert row["best_loss"] == min(val.values())
        assert row["steps_to_target"] == min((step for step in val if step > 0 and val[step] <= target), default=None)
        assert row["grad_cos_sim"] == pytest.approx(its.mean("grad_cos_sim"))
        assert row["grad_snr_db"] == its.median("shadow_grad_snr_db")
        assert row["bit_stall_percent"] == pytest.approx(100 * its.mean("bit_stall_rate"))
        assert row["tokens_per_s"] == statistics.median(its.metrics["train/tokens_per_s"].values())
        assert row["nan_steps"] == its.last("train/skipped_updates")
        alerts = [event for event in its.events if event["event"] == "alert"]
        assert row["alerts"] == len(alerts)
        assert row["first_alert_step"] == min((event["step"] for event in alerts), default=None)
        if name != names[0]:
            assert row["difference_percent"] == pytest.approx(100 * (its.last("val/loss") / base.last("val/loss") - 1))
            assert row["overflow_percent"] == pytest.approx(100 * its.mean("overflow_rate"))
            assert row["underflow_percent"] == pytest.approx(100 * its.mean("underflow_rate"))
            speed = row["tokens_per_s"] / rows[names[0]]["tokens_per_s"]
            assert row["speed_ratio"] == pytest.approx(speed)
    return read, hand


def test_the_table_by_hand(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    code, said = altgrad_here("run", make_experiment(RUNS))
    assert code == 0, said
    folder = tmp_path / "runs" / "small"
    read, hand = assert_by_hand(folder, 5.2, "bf16", "e5m2-42", "e5m2-43")
    rows = {row["name"]: row for row in read["runs"]}
    (group,) = read["groups"]
    losses = [hand[name].last("val/loss") for name in ("e5m2-42", "e5m2-43")]
    assert (group["name"], group["seeds"]) == ("e5m2", [42, 43])
    assert group["loss_mean"] == pytest.approx(sum(losses) / 2)
    assert group["loss_sd"] == pytest.approx(abs(losses[0] - losses[1]) / math.sqrt(2))
    largest = max(abs(rows[name]["difference_percent"]) for name in ("e5m2-42", "e5m2-43"))
    assert altgrad_here("compare", folder, "--assert-within", f"{largest * 1.01}%")[0] == 0
    assert altgrad_here("compare", folder, "--assert-within", f"{largest * 0.99}%")[0] == 1


@pytest.mark.slow
@pytest.mark.skipif(
    not (DATA / "eurlex57k_sample").is_dir(), reason=f"no EURLEX57K sample in {DATA}; set ALTGRAD_TEST_DATA"
)
def test_the_reference_experiment_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``examples/eurlex.toml`` on real EU law, a small model and a few steps: the same numbers from the events alone."""
    shutil.copytree(DATA / "tiktoken_cache", tmp_path / "tiktoken")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    monkeypatch.setenv("ALTGRAD_CACHE", str(tmp_path / "cache"))
    settings = [
        f"data.path={str(DATA / 'eurlex57k_sample')!r}", 'launcher="inline"', "model.n_layer=1", "model.n_embd=48",
        "model.block_size=64", "train.batch_size=2", "train.steps=6", "train.eval_every=2", "train.eval_batches=1",
        "train.warmup_steps=1", "train.learning_rate=3e-3", "probes.stability.every=1", "probes.updates.every=2",
        "alerts.bit_stall=0.001",
    ]  # fmt: skip
    options = [option for setting in settings for option in ("--set", setting)]
    code, said = altgrad_here("run", ROOT / "examples" / "eurlex.toml", "--runs", tmp_path / "runs", *options)
    assert code == 0, said
    folder = tmp_path / "runs" / "eurlex"
    read, hand = assert_by_hand(folder, 10.75, "bf16", "e5m2")
    assert read["groups"] == []
    data = next(e["facts"] for e in hand["e5m2"].events if e["event"] == "init" and e["what"] == "data")
    assert data["train_tokens"] == 3_365_275
    row = next(row for row in read["runs"] if row["name"] == "e5m2")
    val = {name: its.metrics["val/loss"] for name, its in hand.items()}
    assert list(val["e5m2"]) == [0, 2, 4, 6]
    assert (
        f"{abs(100 * (val['e5m2'][6] / val['bf16'][6] - 1)):.2f} %" in row["verdict"] or "level with" in row["verdict"]
    )
    assert row["underflow_percent"] > 0
    assert row["alerts"] >= 1
