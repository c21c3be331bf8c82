"""Each probe against its definition, recomputed slowly in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
from altgrad_adamw.plugin import AdamWOptions
from altgrad_adamw.plugin import build as build_adamw
from altgrad_gpt.plugin import GPTOptions
from altgrad_gpt.plugin import build as build_gpt
from altgrad_probes.gradients import GradientsProbe
from altgrad_probes.shadow import ShadowProbe
from altgrad_probes.stability import StabilityProbe
from altgrad_probes.updates import UpdatesProbe
from torch import Tensor, nn
from torch.nn import functional as F

import altgrad_core as altgrad
from altgrad_core.numerics.blockwise import expand
from altgrad_core.numerics.sums import moments, products
from altgrad_core.recipes.control import casts_off, control_of
from altgrad_core.recipes.resolve import resolve_recipe
from altgrad_core.training import tree
from altgrad_core.training.metrics import Measurements
from altgrad_core.training.probes import Probe, StepContext

OPTIONS = GPTOptions(n_layer=1, n_head=2, n_embd=16, block_size=8, dropout=0.2)


class Stage:
    """One training step of a small GPT with a probe watching."""

    def __init__(self, recipe: str | dict, compute: str = "bf16") -> None:
        torch.manual_seed(1)
        self.recipe = resolve_recipe(recipe)
        self.model, _ = altgrad.convert(build_gpt(OPTIONS, 31), self.recipe)
        self.compute = compute
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = build_adamw(AdamWOptions(), self.model, 1e-3, 0.1)
        self.batches = [tuple(torch.randint(0, 31, (2, 3, 8))) for _ in range(2)]
        control = control_of(self.model)
        self.context = StepContext(
            step=1, model=self.model, recipe=self.recipe, parameters=self.parameters, batches=self.batches,
            controls=[control] if control else [], backward=self.backward, measurements=Measurements(),
        )  # fmt: skip

    def backward(self, compute: str) -> Tensor:
        total = torch.zeros(())
        for inputs, targets in self.batches:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=compute == "bf16"):
                logits = self.model(inputs)
            loss = F.cross_entropy(logits.float().view(-1, 31), targets.reshape(-1)) / len(self.batches)
            loss.backward()
            total += loss.detach()
        return total

    def watch(self, probe: Probe, between: Callable[[], None] = lambda: None) -> dict[str, float]:
        probe.before_forward(self.context)
        self.context.loss = self.backward(self.compute)
        probe.after_backward(self.context)
        probe.before_update(self.context)
        between()
        self.optimizer.step()
        probe.after_update(self.context)
        return self.context.measurements.read()


def test_gradients_against_their_definitions() -> None:
    stage = Stage("bf16")
    dead = stage.parameters["blocks.0.mlp.up.weight"]
    dead.register_hook(lambda grad: grad.index_fill(0, torch.tensor([0, 5, 6]), 0.0))
    values = stage.watch(GradientsProbe(1))
    for name, parameter in stage.parameters.items():
        g = parameter.grad.double()
        assert values[f"grad_norm_l2/{name}"] == pytest.approx(g.square().sum().sqrt().item(), rel=1e-5)
        assert values[f"grad_norm_linf/{name}"] == pytest.approx(g.abs().max().item(), rel=1e-6)
        snr = (g.mean().abs() / g.std(correction=0)).item()
        assert values[f"grad_snr/{name}"] == pytest.approx(snr, rel=1e-3, abs=1e-6), name
    assert values["dead_neuron_frac/blocks.0.mlp.up.weight"] == pytest.approx(3 / 64)


@pytest.mark.parametrize("resumed_after", [None, 1, 2, 3, 4, 5])
def test_a_neuron_counts_as_dead_when_it_was_in_each_measurement_of_the_window(resumed_after: int | None) -> None:
    """Rows without a gradient per measurement, against the intersection of the last three; resumed at any of them."""
    dead = [{1, 2, 3}, {1, 2}, {2, 3, 9}, {2, 3}, {1, 2, 3}, {3}]
    name = "blocks.0.mlp.up.weight"
    probe, found = GradientsProbe(1, window=3), []
    for index, rows in enumerate(dead, 1):
        stage = Stage("bf16")
        stage.parameters[name].register_hook(lambda g, r=rows: g.index_fill(0, torch.tensor(sorted(r)), 0.0))
        values = stage.watch(probe)
        found.append(values.get(f"dead_neuron_window_frac/{name}"))
        assert ("dead_neuron_window_frac" in values) == (index >= 3)
        if index == resumed_after:
            tensors, skeleton = tree.split({"probe": probe.state_dict()})
            assert set(tensors) == {f"probe/dead_for/{n}" for n, p in stage.parameters.items() if p.dim() == 2
                                    and n != "position_embedding.weight"}  # fmt: skip
            probe = GradientsProbe(1, window=3)
            probe.load_state_dict(tree.join(tensors, json.loads(json.dumps(skeleton)))["probe"])
    expected = [len(set.intersection(*dead[index - 3 : index])) / 64 for index in range(3, 7)]
    assert expected == [1 / 64, 1 / 64, 2 / 64, 1 / 64]
    assert found == [None, None, *(float(f"{value:.9g}") for value in expected)]


def test_a_row_of_nan_is_not_dead() -> None:
    stage, probe = Stage("bf16"), GradientsProbe(1, window=1)
    name = "blocks.0.mlp.up.weight"
    stage.parameters[name].register_hook(
        lambda g: g.index_fill(0, torch.tensor([0, 5]), 0.0).index_fill(0, torch.tensor([5]), math.nan)
    )
    values = stage.watch(probe)
    assert values[f"dead_neuron_window_frac/{name}"] == values[f"dead_neuron_frac/{name}"] == 1 / 64


def test_stability_counts_every_micro_batch_and_switches_itself_off() -> None:
    stage = Stage({"base": "e2m1fn", "scaling": {"kind": "static", "scale": 0.05}})
    layer = stage.model.blocks[0].mlp.up
    seen: list[Tensor] = []
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().float().flatten()))
    values = stage.watch(StabilityProbe(1))
    x = torch.cat(seen)
    assert x.numel() == 2 * 3 * 8 * 16
    y = x / 0.05
    q = altgrad.quantize(y, "e2m1fn")
    overflow = (y.abs() > 7).double().mean().item()  # 7 is half-way to the value after 6
    underflow = ((x != 0) & (q == 0)).double().mean().item()
    error = (q.double() * 0.05 - x.double()).square().sum()
    sqnr = 10 * math.log10(x.double().square().sum() / error)
    key = "blocks.0.mlp.up.input"
    assert overflow > 0
    assert underflow > 0
    assert values[f"overflow_rate/{key}"] == pytest.approx(overflow)
    assert values[f"underflow_rate/{key}"] == pytest.approx(underflow)
    assert values[f"nan_count/{key}"] == values[f"inf_count/{key}"] == 0
    assert values[f"sqnr_db/{key}"] == pytest.approx(sqnr, rel=1e-4)
    dynamic = 20 * math.log10(x.abs().max() / x[x != 0].abs().min())
    assert values[f"dynamic_range_db/{key}"] == pytest.approx(dynamic, rel=1e-5)
    assert not control_of(stage.model).collecting


def test_scales_are_those_that_the_casts_used() -> None:
    """Under delayed scaling the second step's scale is that of the first step's largest magnitude."""
    delayed = {"kind": "delayed", "history": 4, "power_of_two": False, "margin": 0}
    stage = Stage({"base": "e4m3fn", "scaling": delayed})
    largest: list[float] = []
    stage.model.blocks[0].mlp.up.register_forward_pre_hook(
        lambda _, inputs: largest.append(inputs[0].abs().max().item())
    )
    key = "scale_log2/blocks.0.mlp.up.input"
    stage.watch(StabilityProbe(1))
    stage.context.measurements = Measurements()
    values = stage.watch(StabilityProbe(1))
    assert len(largest) == 4  # two micro-batches a step; the scale is that of the last cast, which knew three
    assert values[key] == pytest.approx(math.log2(max(largest[:3]) / 448), rel=1e-5)
    scales = [value for name, value in values.items() if name.startswith("scale_log2/")]
    assert len(scales) == 3 * 5
    assert values["scale_log2"] == pytest.approx(sum(scales) / len(scales))


def test_the_scale_of_blocks_is_their_mean_in_octaves() -> None:
    stage = Stage({"base": "mxfp8_e4m3"})
    weight = stage.model.blocks[0].mlp.up.weight.detach().clone()  # [64, 16]: a block of 16 in each row
    values = stage.watch(StabilityProbe(1))
    exponents = (weight.abs().amax(dim=1) / 448).log2().ceil()  # rceil: the smallest power of two that clamps nothing
    assert values["scale_log2/blocks.0.mlp.up.weight"] == pytest.approx(exponents.mean().item(), abs=1e-6)


def test_stability_of_a_run_without_casts_says_nothing() -> None:
    assert Stage("bf16").watch(StabilityProbe(1)) == {}


@pytest.mark.parametrize("recipe", ["e5m2", "bf16"])
def test_shadow_is_the_fp32_gradient_at_the_same_weights_and_masks(recipe: str) -> None:
    stage = Stage(recipe)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    values = stage.watch(ShadowProbe(1))
    after = torch.get_rng_state()
    got = {name: p.grad.clone() for name, p in stage.parameters.items()}

    again = Stage(recipe)
    torch.set_rng_state(before)
    again.backward("bf16")
    assert torch.equal(after, torch.get_rng_state()), "the shadow must not move the generators"
    for name, parameter in again.parameters.items():
        assert torch.equal(got[name], parameter.grad), "the shadow must leave the gradients alone"
        parameter.grad = None
    torch.set_rng_state(before)
    with casts_off(again.model):
        loss = again.backward("fp32")
    for name, parameter in again.parameters.items():
        g, s = got[name].double().flatten(), parameter.grad.double().flatten()
        assert values[f"grad_cos_sim/{name}"] == pytest.approx((g @ s / (g.norm() * s.norm())).item(), abs=1e-6)
        snr = 20 * math.log10(s.norm() / (g - s).norm())
        assert values[f"shadow_grad_snr_db/{name}"] == pytest.approx(snr, rel=1e-3, abs=1e-3)
    assert values["shadow_loss"] == pytest.approx(loss.item())
    assert abs(values["shadow_loss_diff"]) < 0.2


@pytest.mark.parametrize("shrink", [1.0, 1e-3, 1e-7, 1e-18, 1e-25])
def test_sums_are_right_for_large_and_for_vanishing_gradients(shrink: float) -> None:
    torch.manual_seed(0)
    s = torch.randn(3_000_000) + 0.01
    g = s * shrink
    gg, ss, gs, ee = products(g, s).tolist()
    wide, reference = g.double(), s.double()
    assert gs / math.sqrt(gg * ss) == pytest.approx(1.0, abs=1e-6)
    assert gg == pytest.approx(float(wide @ wide), rel=1e-12)
    assert ss == pytest.approx(float(reference @ reference), rel=1e-12)
    assert ee == pytest.approx(float((wide - reference).square().sum()), rel=1e-9, abs=1e-9)
    total, square, _, _ = moments(g + 1.0).tolist()
    shifted = (g + 1.0).double()
    assert total == pytest.approx(float(shifted.sum()), rel=1e-12)
    assert square == pytest.approx(float(shifted.square().sum()), rel=1e-12)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_destroyed_gradient_counts_as_a_lost_direction(value: float) -> None:
    """It must not drop out of the mean over layers, or a format that kills half of them looks fine."""
    stage = Stage("bf16")
    name = "blocks.0.mlp.up.weight"
    hook = stage.parameters[name].register_hook(lambda grad: torch.full_like(grad, value))
    probe = ShadowProbe(1)
    probe.before_forward(stage.context)
    stage.context.loss = stage.backward("bf16")
    hook.remove()
    probe.after_backward(stage.context)
    values = stage.context.measurements.read()
    assert values[f"grad_cos_sim/{name}"] == 0.0
    others = [v for n, v in values.items() if n.startswith("grad_cos_sim/") and n != f"grad_cos_sim/{name}"]
    assert values["grad_cos_sim"] == pytest.approx(sum(others) / (len(others) + 1), rel=1e-6)


def test_the_weight_is_measured_on_the_grid_that_the_gemm_read() -> None:
    """A delayed policy has moved on by the time of the update."""
    stage = Stage({"base": "e5m2", "scaling": {"kind": "delayed", "history": 2}})
    layer = stage.model.blocks[0].mlp.up
    scales = []
    layer.weight_cast.scaling.register_forward_hook(lambda module, inputs, scale: scales.append(float(scale)))
    with torch.no_grad():
        layer.weight *= 16
    seen: dict[str, Tensor] = {}
    probe = UpdatesProbe(1)
    stage.watch(probe, between=lambda: seen.update(scale=probe._readings["blocks.0.mlp.up.weight"].scale))
    assert float(seen["scale"]) == scales[-1]


@pytest.mark.parametrize("scaling", ["mx", "nvfp4", "rowwise", {"kind": "blockwise", "rows": 8, "columns": 8}])
def test_updates_under_scales_of_blocks(scaling: str | dict) -> None:
    stage = Stage({"base": "e2m1fn", "scaling": scaling})
    layer, name = stage.model.blocks[0].mlp.up, "blocks.0.mlp.up.weight"
    old = layer.weight.detach().clone()
    values = stage.watch(UpdatesProbe(1))
    quantizer = layer.weight_cast
    assert quantizer.last_scale.dim() == 2
    scale = expand(quantizer.last_scale, old.shape, quantizer.last_block)
    q = [altgrad.quantize(w * (1 / scale), "e2m1fn") for w in (old, layer.weight.detach())]
    assert values[f"bit_flip_rate/{name}"] == pytest.approx((q[0] != q[1]).double().mean().item())
    size = (old / scale).abs()
    ulp = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0)) * scale
    moved = ((layer.weight.detach() - old).abs() / ulp).double().mean().item()
    assert values[f"update_ulps/{name}"] == pytest.approx(moved, rel=1e-5)


def test_layers_that_a_step_does_not_use_are_left_out() -> None:
    stage = Stage("e5m2")
    stage.model.unused = nn.Linear(4, 4)
    stage.context.parameters["unused.weight"] = stage.model.unused.weight
    for probe in (GradientsProbe(1), StabilityProbe(1), ShadowProbe(1), UpdatesProbe(1)):
        values = stage.watch(probe)
        assert not [n for n in values if n.startswith(("bit_stall_rate/unused", "grad_cos_sim/unused"))]


def test_rows_of_an_embedding_are_no_neurons() -> None:
    stage = Stage("bf16")
    values = stage.watch(GradientsProbe(1))
    assert "dead_neuron_frac/position_embedding.weight" not in values
    assert "dead_neuron_frac/token_embedding.weight" in values  # tied: it is the head's weight as well


def test_shadow_of_an_fp32_run_is_the_run_itself() -> None:
    stage = Stage("fp32", compute="fp32")
    values = stage.watch(ShadowProbe(1))
    assert values["grad_cos_sim"] == 1.0
    assert values["shadow_grad_snr_db"] == math.inf
    assert values["shadow_loss_diff"] == 0.0


def test_updates_against_their_definitions() -> None:
    stage = Stage("e5m2")
    old = {name: p.detach().clone() for name, p in stage.parameters.items()}
    values = stage.watch(UpdatesProbe(1))
    name = "blocks.0.mlp.up.weight"
    w0, w1 = old[name], stage.parameters[name].detach()
    scale = 2.0 ** math.ceil(math.log2(w0.abs().max().item() / 57344))
    q0, q1 = (altgrad.quantize(w, "e5m2", scale=scale) for w in (w0, w1))
    moved = stage.parameters[name].grad != 0
    stall = ((q0 == q1) & moved).sum() / moved.sum()
    assert values[f"bit_stall_rate/{name}"] == pytest.approx(stall.item())
    assert values[f"bit_flip_rate/{name}"] == pytest.approx((q0 != q1).double().mean().item())
    assert 0.3 < stall < 0.7
    exponent = torch.floor(torch.log2(w0.double().abs() / scale)).clamp_min(-14)
    ulps = ((w1 - w0).double().abs() / (scale * 2 ** (exponent - 2))).mean()
    assert values[f"update_ulps/{name}"] == pytest.approx(ulps.item(), rel=1e-4)
    for parameter, before in old.items():
        same = (stage.parameters[parameter] == before).double().mean().item()
        assert values[f"zero_update_frac/{parameter}"] == pytest.approx(same)


def test_stall_and_zero_updates_of_a_frozen_step() -> None:
    """A learning rate of zero moves nothing: all stalls, no flips."""
    stage = Stage("hybrid")
    for group in stage.optimizer.param_groups:
        group["lr"] = 0.0
    values = stage.watch(UpdatesProbe(1))
    assert values["bit_stall_rate"] == 1.0
    assert values["bit_flip_rate"] == 0.0
    assert values["zero_update_frac"] == 1.0
    assert values["update_ulps"] == 0.0


def test_a_drifting_amax_is_no_flip() -> None:
    """The largest weight grows past a power of two: the others keep their values under the scale before the step."""
    stage = Stage("e5m2")
    for group in stage.optimizer.param_groups:
        group["lr"] = 0.0

    def grow() -> None:
        with torch.no_grad():
            stage.parameters["blocks.0.mlp.up.weight"].view(-1)[0] = 1000.0

    values = stage.watch(UpdatesProbe(1), between=grow)
    assert values["bit_flip_rate/blocks.0.mlp.up.weight"] == pytest.approx(1 / 1024)


def test_due_at_the_first_step_and_every_multiple() -> None:
    probe = GradientsProbe(5)
    assert [step for step in range(1, 12) if probe.due(step)] == [1, 5, 10]


def test_a_plain_linear_reads_its_weight_in_the_compute_precision() -> None:
    stage = Stage("bf16")
    assert "lm_head.weight" not in stage.parameters  # tied: it stands under the embedding's name
    before = {name: p.detach().clone() for name, p in stage.parameters.items()}
    values = stage.watch(UpdatesProbe(1))
    name = "token_embedding.weight"
    w0, w1 = before[name], stage.parameters[name].detach()
    moved = stage.parameters[name].grad != 0
    same = w0.bfloat16() == w1.bfloat16()
    assert values[f"bit_stall_rate/{name}"] == pytest.approx(((same & moved).sum() / moved.sum()).item())
    assert isinstance(stage.model.lm_head, nn.Linear)


def test_native_layers_show_every_probe_the_numbers_of_emulated_ones() -> None:
    """In FP32, where the stand-in's sums are the emulated ones; the counts are the same to the last one."""
    for make in (StabilityProbe, UpdatesProbe, GradientsProbe, ShadowProbe):
        emulated, native = (
            Stage({"base": "hybrid", "compute": "fp32", "backend": backend}, "fp32").watch(make(1))
            for backend in ("emulated", "native")
        )
        assert emulated.keys() == native.keys()
        for name, value in emulated.items():
            assert native[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
