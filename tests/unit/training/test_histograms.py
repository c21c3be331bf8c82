"""The probe ``histograms`` against the tensors that were cast, counted slowly; and its event, there and back."""

from __future__ import annotations

import json
import math
from collections import Counter

import attrs
import pytest
import torch
from altgrad_layers.attention import CastAttention
from altgrad_probes.histograms import HistogramsProbe
from altgrad_probes.stability import StabilityProbe
from test_probes import Stage
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import altgrad_core as altgrad
from altgrad_core.numerics import get_format
from altgrad_core.numerics.blockwise import expand
from altgrad_core.numerics.cast import quantize
from altgrad_core.recipes.control import controls_of
from altgrad_core.recipes.linear import CastLinear
from altgrad_core.recipes.quantizer import Observed, Quantizer
from altgrad_core.training.histograms import CastHistogram, FormatRange, histograms_of, to_event
from altgrad_core.training.metrics import Measurements

RECIPES = {
    "tensor": "e5m2",
    "hybrid": "hybrid",
    "blocks": {"base": "e4m3fn", "scaling": "blockwise"},
    "directional": "mxfp4",
    "stochastic": {"base": "e3m4", "rounding": "stochastic"},
    "wide": {"base": "e5m10", "scaling": {"kind": "static", "scale": 1e-3}},
    "table": "nf4",
}
ODD_SCALES = [
    {"base": "e4m3fn", "scaling": {"kind": kind, "power_of_two": False}} for kind in ("current", "rowwise", "blockwise")
] + ["nvfp4"]  # whose parts go into the values, or into the product


def watch(stage: Stage, *probes: HistogramsProbe | StabilityProbe) -> dict[str, CastHistogram]:
    for probe in probes:
        probe.before_forward(stage.context)
    stage.context.loss = stage.backward(stage.compute)
    for probe in probes:
        probe.after_backward(stage.context)
    return stage.context.measurements.histograms()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_element_is_counted_once_where_it_lies(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each quantizer was given is kept by a second watcher, and counted by hand."""
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
        casts = seen[name]
        assert len(casts) == 2  # micro-batches: where each GEMM has a cast of its own, the first one is seen
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


@pytest.mark.parametrize("recipe", [*RECIPES.values(), *ODD_SCALES], ids=str)
@pytest.mark.parametrize("compute", ["bf16", "fp32"])
def test_a_step_that_is_watched_is_the_same_step(recipe, compute: str) -> None:
    """The same gradients to the bit, no statistics left behind, nobody watching afterwards."""
    plain = Stage(recipe, compute)
    plain.backward(compute)
    watched = Stage(recipe, compute)  # seeds anew, for the same dropout
    found = watch(watched, HistogramsProbe(1))
    assert found
    for name, parameter in plain.parameters.items():
        assert torch.equal(parameter.grad, watched.parameters[name].grad), name
    assert watched.context.controls[0].take() == {}
    assert all(m.watcher is None for m in watched.model.modules() if isinstance(m, Quantizer))


class _Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*x.split(32, -1))


class _Kinds(nn.Module):
    """A layer of every kind, some computed twice where ``reentrant`` is not None."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.embedding, self.norm, self.conv = nn.Embedding(9, 32), nn.LayerNorm(32), nn.Conv1d(32, 96, 3, padding=1)
        self.attention, self.head = _Attention(), nn.Linear(32, 9)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        twice = self.reentrant is not None
        return self.head(checkpoint(self.mixed, x, use_reentrant=self.reentrant) if twice else self.mixed(x))

    def mixed(self, x: Tensor) -> Tensor:
        return self.attention(self.conv(self.norm(x).mT).mT)


@pytest.mark.parametrize("base", ["e5m2", "mxfp8"])
def test_layers_of_every_kind_are_counted_once(base: str) -> None:
    """Each element as often as the statistics count it, and all the same when activation checkpointing casts it twice."""
    found = {}
    for reentrant in (None, False, True):
        torch.manual_seed(0)
        recipe = {"base": base, "layers": ["linear", "conv", "attention", "embedding", "norm"]}
        model, _ = altgrad.convert(_Kinds(reentrant), recipe)
        (control,) = controls_of(model)
        elements: Counter[str] = Counter()
        control.listener = lambda name, vector, to=elements: to.update({name: int(vector[0])})
        context = attrs.evolve(Stage("bf16").context, model=model, controls=[control], measurements=Measurements())
        probes = [HistogramsProbe(1), StabilityProbe(1)]
        for probe in probes:
            probe.before_forward(context)
        tokens = torch.randint(0, 9, (2, 32), generator=torch.Generator().manual_seed(0))
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        for probe in probes:
            probe.after_backward(context)
        found[reentrant] = context.measurements.histograms()
        assert {name: its.elements for name, its in found[reentrant].items()} == elements
        operands = {name.rpartition(".")[2] for name in elements}
        assert operands == {"input", "weight", "grad_output", "output", *CastAttention.operands}
    assert found[None] == found[False] == found[True]


def test_native_codes_are_the_same_histogram() -> None:
    """Of one layer, as sums differ; its operands' codes do not."""
    found = []
    for backend in ("emulated", "native"):
        torch.manual_seed(0)
        recipe = {"base": "hybrid", "backend": backend, "scaling": {"kind": "delayed", "power_of_two": False}}
        model, summary = altgrad.convert(nn.Sequential(nn.Linear(32, 48)), recipe)
        assert [text.partition(":")[0] for text in summary.backends] == [backend]
        context = attrs.evolve(Stage("bf16").context, model=model, controls=[], measurements=Measurements())
        probe = HistogramsProbe(1)
        probe.before_forward(context)
        for _ in range(2):
            model(torch.randn(64, 32)).backward(torch.randn(64, 48) * 1e-3)
        probe.after_backward(context)
        found.append(context.measurements.histograms())
    assert found[0] == found[1]
    assert all(its.codes and its.counts for its in found[0].values())
    assert len(found[0]) == 3


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
