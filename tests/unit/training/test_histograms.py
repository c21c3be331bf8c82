"""The probe ``histograms`` against the tensors that were cast, counted slowly; and its event, there and back."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import torch
from altgrad_probes.histograms import HistogramsProbe
from altgrad_probes.stability import StabilityProbe
from test_probes import Stage

from altgrad_core.numerics import get_format
from altgrad_core.numerics.blockwise import expand
from altgrad_core.numerics.cast import quantize
from altgrad_core.recipes.linear import CastLinear
from altgrad_core.recipes.quantizer import Observed, Quantizer
from altgrad_core.training.histograms import CastHistogram, FormatRange, histograms_of, to_event

RECIPES = {
    "tensor": "e5m2",
    "hybrid": "hybrid",
    "blocks": {"base": "e4m3fn", "scaling": "blockwise"},
    "directional": "mxfp4",
    "stochastic": {"base": "e3m4", "rounding": "stochastic"},
    "wide": {"base": "e5m10", "scaling": {"kind": "static", "scale": 1e-3}},
    "table": "nf4",
}


def watch(stage: Stage, *probes: HistogramsProbe | StabilityProbe) -> dict[str, CastHistogram]:
    for probe in probes:
        probe.before_forward(stage.context)
    stage.context.loss = stage.backward("bf16")
    for probe in probes:
        probe.after_backward(stage.context)
    return stage.context.measurements.histograms()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_element_is_counted_once_where_it_lies(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each quantizer was given is kept by a second watcher; its first cast in each micro-batch is counted by hand."""
    stage = Stage(recipe)
    seen: dict[str, list[tuple[Quantizer, Observed]]] = {}
    count = HistogramsProbe._count

    def spy(self: HistogramsProbe, name: str, quantizer: Quantizer, cast: Observed) -> None:
        seen.setdefault(name, []).append((quantizer, cast))
        count(self, name, quantizer, cast)

    monkeypatch.setattr(HistogramsProbe, "_count", spy)
    found = watch(stage, HistogramsProbe(1))
    layers = [layer for layer in stage.model.modules() if isinstance(layer, CastLinear)]
    assert set(found) == {f"{layer.cast_name}.{o}" for layer in layers for o in ("input", "weight", "grad_output")}
    for name, its in found.items():
        casts = [(q, c) for q, c in seen[name] if c.axis == -1]
        assert len(casts) == 2  # micro-batches
        binades: Counter[int] = Counter()
        results: Counter[float] = Counter()
        zeros = under = 0
        for quantizer, c in casts:
            scale = c.scale if c.block is None else expand(c.scale, c.x.shape, c.block)
            y = (c.x.float() / scale).flatten().tolist()
            binades.update(math.frexp(value)[1] - 1 for value in y if value)
            how = quantizer.operand
            q = quantize(
                c.x.float(), quantizer.format, scale=c.scale, block=c.block, rounding=how.rounding,
                saturation=how.saturation, draw=c.draw, random_bits=how.random_bits,
            )  # fmt: skip
            results.update((q.double() / scale.double()).flatten().tolist())
            zeros += int((c.x == 0).sum())
            under += int(((q == 0) & (c.x != 0)).sum())
        assert dict(zip(its.edges, its.counts)) | {} == {e: binades.get(e, 0) for e in its.edges[:-1]}
        assert 0 not in (its.counts[0], its.counts[-1])
        assert (its.zeros, its.underflow) == (zeros, under), name
        assert its.elements == sum(its.counts) + zeros == sum(c.x.numel() for _, c in casts)
        assert its.lost == (its.underflow + its.overflow) / its.elements
        if its.codes is not None:
            signed_zero = int(get_format(its.format).has_negative_zero)
            assert its.codes in (len(results), len(results) + signed_zero), name  # +0 and -0 are equal numbers
            assert its.range.codes is not None
            assert its.codes <= its.range.codes
        else:
            assert get_format(its.format).bits > 8


def test_a_step_that_is_watched_is_the_same_step() -> None:
    """The same gradients to the bit, no statistics left behind, nobody watching afterwards."""
    plain = Stage("hybrid")
    plain.backward("bf16")
    watched = Stage("hybrid")  # seeds anew, for the same dropout
    found = watch(watched, HistogramsProbe(1))
    assert found
    for name, parameter in plain.parameters.items():
        assert torch.equal(parameter.grad, watched.parameters[name].grad), name
    assert watched.context.controls[0].take() == {}
    assert all(m.watcher is None for m in watched.model.modules() if isinstance(m, Quantizer))


def test_it_counts_what_the_statistics_count() -> None:
    stage = Stage({"base": "e2m1fn", "scaling": {"kind": "static", "scale": 0.05}})
    found = watch(stage, StabilityProbe(1), HistogramsProbe(1))
    values = stage.context.measurements.read()
    rates = {name: its.overflow / its.elements for name, its in found.items()}
    assert rates == pytest.approx(
        {n.split("/")[1]: v for n, v in values.items() if n.startswith("overflow_rate/")}, rel=1e-8
    )
    assert any(rates.values())


def test_a_recipe_without_casts_has_none() -> None:
    stage = Stage("bf16")
    assert watch(stage, HistogramsProbe(1)) == {}


def test_the_event_there_and_back() -> None:
    found = watch(Stage("hybrid"), HistogramsProbe(1))
    event = json.loads(json.dumps(to_event(7, found)))
    assert histograms_of(event) == found
    assert (event["event"], event["step"], sorted(event["formats"])) == ("histograms", 7, ["e4m3fn", "e5m2"])
    assert histograms_of({"event": "metrics", "step": 7, "values": {}}) == {}
    e5m2 = FormatRange(min_positive=2.0**-16, min_normal=2.0**-14, max_finite=57344.0, codes=248)
    assert next(its.range for its in found.values() if its.format == "e5m2") == e5m2
