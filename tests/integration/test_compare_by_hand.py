"""``altgrad compare`` of trained runs, against its numbers computed again from the lines of ``events.jsonl`` alone."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from helpers import MakeExperiment, altgrad_here

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


def test_the_table_by_hand(make_experiment: MakeExperiment, tmp_path: Path) -> None:
    code, said = altgrad_here("run", make_experiment(RUNS))
    assert code == 0, said
    folder = tmp_path / "runs" / "small"
    code, answer = altgrad_here("compare", folder, "--json", "--loss-target", "5.2")
    assert code == 0
    read = json.loads(answer)
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in read["runs"]}
    hand = {name: ByHand(folder / name) for name in ("bf16", "e5m2-42", "e5m2-43")}
    assert set(rows) == set(hand)
    base = hand["bf16"]
    for name, its in hand.items():
        row, val = rows[name], its.metrics["val/loss"]
        assert row["final_loss"] == its.last("val/loss")
        assert row["best_loss"] == min(val.values())
        assert row["steps_to_target"] == min((step for step in val if step > 0 and val[step] <= 5.2), default=None)
        assert row["grad_cos_sim"] == pytest.approx(its.mean("grad_cos_sim"))
        assert row["grad_snr_db"] == its.median("shadow_grad_snr_db")
        assert row["bit_stall_percent"] == pytest.approx(100 * its.mean("bit_stall_rate"))
        assert row["tokens_per_s"] == statistics.median(its.metrics["train/tokens_per_s"].values())
        assert row["nan_steps"] == its.last("train/skipped_updates")
        alerts = [event for event in its.events if event["event"] == "alert"]
        assert row["alerts"] == len(alerts)
        assert row["first_alert_step"] == min((event["step"] for event in alerts), default=None)
        if name != "bf16":
            assert row["difference_percent"] == pytest.approx(100 * (its.last("val/loss") / base.last("val/loss") - 1))
            assert row["overflow_percent"] == pytest.approx(100 * its.mean("overflow_rate"))
            assert row["underflow_percent"] == pytest.approx(100 * its.mean("underflow_rate"))
            speed = row["tokens_per_s"] / rows["bf16"]["tokens_per_s"]
            assert row["speed_ratio"] == pytest.approx(speed)
    (group,) = read["groups"]
    losses = [hand[name].last("val/loss") for name in ("e5m2-42", "e5m2-43")]
    assert (group["name"], group["seeds"]) == ("e5m2", [42, 43])
    assert group["loss_mean"] == pytest.approx(sum(losses) / 2)
    assert group["loss_sd"] == pytest.approx(abs(losses[0] - losses[1]) / math.sqrt(2))
    largest = max(abs(rows[name]["difference_percent"]) for name in ("e5m2-42", "e5m2-43"))
    assert altgrad_here("compare", folder, "--assert-within", f"{largest * 1.01}%")[0] == 0
    assert altgrad_here("compare", folder, "--assert-within", f"{largest * 0.99}%")[0] == 1
