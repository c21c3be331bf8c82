"""The reference experiment on real EU law, its first steps. Needs the EURLEX57K sample and the GPT-2 vocabulary."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import altgrad_core as altgrad

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("ALTGRAD_TEST_DATA", ROOT.parent / "shared" / "data"))


@pytest.mark.slow
@pytest.mark.skipif(
    not (DATA / "eurlex57k_sample").is_dir(), reason=f"no EURLEX57K sample in {DATA}; set ALTGRAD_TEST_DATA"
)
def test_the_reference_model_starts_where_a_gpt_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh GPT knows nothing: its loss is that of a guess among 50,257 tokens, log(50257) = 10.82."""
    shutil.copytree(DATA / "tiktoken_cache", tmp_path / "tiktoken")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    monkeypatch.setenv("ALTGRAD_CACHE", str(tmp_path / "cache"))
    overrides = [
        f"data.path={str(DATA / 'eurlex57k_sample')!r}",
        *("train.steps=2", "train.eval_batches=1", 'checkpoint.backend="local"'),
    ]
    runs = altgrad.run(ROOT / "examples" / "eurlex.toml", overrides=overrides, runs=tmp_path / "runs")
    for run in runs:
        assert run.status == "done"
        assert run.facts["model"]["parameters"] == 30_044_544
        assert run.facts["data"]["train_tokens"] == 3_365_275
        assert 10.7 < run.metrics("train/loss")[1][0] < 11.0
    e5m2 = runs[1]
    assert min(e5m2.metrics("grad_cos_sim")[1]) > 0.9
    assert max(e5m2.metrics("overflow_rate")[1]) < 0.01
