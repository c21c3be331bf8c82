"""observe(): the probes' own numbers in a loop of one's own, and nothing of the training changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import altgrad_core as altgrad
from altgrad_core.plugins import installed
from altgrad_core.recipes.control import casts_off, control_of
from altgrad_core.recipes.recipe import Recipe
from altgrad_core.training.metrics import Measurements
from altgrad_core.training.probes import StepContext


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.drop, self.down = (
            nn.Linear(16, 32),
            nn.BatchNorm1d(32),
            nn.Dropout(0.2),
            nn.Linear(32, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.drop(F.gelu(self.norm(self.up(x)))))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(12, 16, generator=generator), torch.randint(0, 4, (12,), generator=generator)


def model_of(recipe: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Net()
    if recipe is not None:
        altgrad.convert(model, recipe)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, seen: Any = None, steps: int = 5, clip: bool = False
) -> None:
    for step in range(1, steps + 1):
        x, y = batch(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        if seen is not None:
            seen.shadow(lambda x=x, y=y: F.cross_entropy(model(x).float(), y), loss)
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.eval()(x)  # an evaluation is no step
            model.train()


@pytest.mark.parametrize("recipe", [None, "e5m2", {"base": "e4m3fn", "rounding": "stochastic", "scaling": "delayed"}])
def test_a_training_that_is_observed_is_the_same_training(recipe: Any) -> None:
    expected, optimizer = model_of(recipe)
    train(expected, optimizer, clip=True)
    after = torch.get_rng_state()
    model, optimizer = model_of(recipe)
    with altgrad.observe(model, optimizer, every=2) as seen:
        train(model, optimizer, seen, clip=True)
    assert torch.equal(torch.get_rng_state(), after)
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert seen.steps == 5
    assert seen.measured == 4
    for module in (model, optimizer):
        assert not [v for k, v in vars(module).items() if k.endswith("_hooks") and v]
    if recipe is not None:
        assert not control_of(model).collecting


def test_the_numbers_are_those_of_the_probes() -> None:
    """The moments of a step done by hand, against the same loop observed."""
    recipe = {"base": "hybrid", "scaling": "delayed"}
    model, optimizer = model_of(recipe)
    probes = {}
    for name in ("gradients", "stability", "updates", "shadow"):
        extension = installed().get("probe", name)
        probes[name] = extension.value(extension.options(every=1))
    x, y = batch(1)

    def backward(compute: str) -> Tensor:
        loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        return loss.detach()

    measurements = Measurements()
    context = StepContext(
        step=1,
        model=model,
        recipe=Recipe(name="hybrid", compute="bf16"),
        parameters=dict(model.named_parameters()),
        batches=[],
        controls=[control_of(model)],
        backward=backward,
        measurements=measurements,
    )
    for probe in probes.values():
        probe.before_forward(context)
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(x).float(), y)
    loss.backward()
    context.loss = loss.detach()
    for name in ("gradients", "stability", "shadow"):
        probes[name].after_backward(context)
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    for moment in ("before_update", "after_update"):
        for probe in probes.values():
            getattr(probe, moment)(context)
        optimizer.step() if moment == "before_update" else None
    expected = measurements.read() | {"train/loss": pytest.approx(loss.item())}

    model, optimizer = model_of(recipe)
    with altgrad.observe(model, optimizer, every=1) as seen:
        train(model, optimizer, seen, steps=1, clip=True)
    assert seen.metrics == expected
    assert {name.partition("/")[0] for name in seen.metrics} >= {
        "grad_cos_sim", "shadow_grad_snr_db", "shadow_loss_diff", "overflow_rate", "sqnr_db", "scale_log2", "bit_stall_rate",
        "zero_update_frac", "grad_norm_l2", "dead_neuron_frac", "train",
    }  # fmt: skip
    table = str(seen).splitlines()
    assert table[0] == "step 1"
    assert [line for line in table if not line] == [""] * 2  # above each of the two parts
    assert table[2].split() == ["cast", "overflow_rate", "underflow_rate", "sqnr_db", "scale_log2"]
    assert [line.split()[0] for line in table[3:6]] == ["mean", "up.input", "up.weight"]
    row = next(line.split() for line in table if line.startswith("down.weight "))
    assert float(row[3]) == pytest.approx(seen.metrics["sqnr_db/down.weight"], rel=1e-3)


def test_with_step_casts_an_update_is_over_when_its_casts_are() -> None:
    """Stored weights are compared as the next step reads them, and the casts of the optimizer's state are counted."""
    recipe = {"base": "e5m2", "weight_storage": "e5m2", "optimizer_state": "bf16"}
    torch.manual_seed(0)
    model, _ = altgrad.convert(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4)), recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    casts = altgrad.StepCasts(model, optimizer, recipe, seed=0)
    with altgrad.observe(model, optimizer, every=1) as seen:
        for step in (1, 2):
            casts.begin_step(step)
            before = model[0].weight.detach().clone()
            F.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
            casts.after_backward()
            optimizer.step()
            assert seen.measured == step - 1
            casts.after_update()
            assert seen.measured == step
            optimizer.zero_grad()
            same = (model[0].weight == before).double().mean().item()
            assert seen.metrics["zero_update_frac/0.weight"] == pytest.approx(same)
            assert same > 0.5
            assert {"overflow_rate/0.weight.exp_avg", "overflow_rate/0.weight.weight_storage"} <= seen.metrics.keys()
    assert control_of(model).updated == []


def test_three_lines_and_no_more() -> None:
    """No word from the loop: what the optimizer finds, micro-batches together; each measurement is told."""
    model, optimizer = model_of("e5m2")
    told: dict[int, dict[str, float]] = {}
    with altgrad.observe(model, optimizer, every=3, tell=told.__setitem__) as seen:
        for step in range(1, 7):
            for micro in range(2):
                x, y = batch(10 * step + micro)
                (F.cross_entropy(model(x), y) / 2).backward()
            if step == 6:
                norm = model.up.weight.grad.double().norm().item()
                elements = 2 * 12 * 16
            optimizer.step()
            optimizer.zero_grad()
    assert list(told) == [1, 3, 6]
    assert seen.metrics == told[6]
    assert seen.metrics["grad_norm_l2/up.weight"] == pytest.approx(norm, rel=1e-6)
    assert seen.metrics["underflow_rate/up.input"] * elements == pytest.approx(
        round(seen.metrics["underflow_rate/up.input"] * elements)
    )
    assert "grad_cos_sim" not in seen.metrics


def test_without_an_optimizer_step_ends_a_step() -> None:
    model, _ = model_of("e5m2")
    with altgrad.observe(model, every=1, probes=["gradients", "stability"]) as seen:
        for step in (1, 2):
            x, y = batch(step)
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
            seen.step()
            assert seen.measured == step
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
    assert seen.measured == 3  # the end of the context ends the step
    assert "grad_norm_l2" in seen.metrics
    assert "bit_stall_rate" not in seen.metrics


def test_an_update_left_out_ends_the_step() -> None:
    model, optimizer = model_of("e5m2")
    with altgrad.observe(model, optimizer, every=1) as seen:
        for step in (1, 2, 3):
            x, y = batch(step)
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            seen.after_backward(loss)
            if step != 2:
                optimizer.step()
            elif seen.steps == 2:
                assert seen.measured == 1
            optimizer.zero_grad()
            if step == 2:
                continue
            assert "bit_stall_rate" in seen.metrics
        assert (seen.steps, seen.measured) == (3, 3)


def test_several_optimizers_are_one_update() -> None:
    model, _ = model_of("e5m2")
    both = [torch.optim.SGD(model.up.parameters(), lr=0.1), torch.optim.SGD(model.down.parameters(), lr=0.1)]
    with altgrad.observe(model, both, every=1) as seen:
        x, y = batch(1)
        F.cross_entropy(model(x), y).backward()
        both[0].step()
        assert seen.measured == 0
        both[1].step()
        assert seen.measured == 1
    assert seen.metrics["zero_update_frac/up.weight"] < 1
    assert seen.metrics["zero_update_frac/down.weight"] < 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_repetition_of_a_checkpoint_is_no_step(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=reentrant)

    model, _ = altgrad.convert(Checkpointed(), "e5m2")
    optimizer = torch.optim.SGD(model.parameters())
    with altgrad.observe(model, optimizer, every=1) as seen:
        for step in (1, 2):
            x = batch(step)[0].requires_grad_()
            loss = model(x).square().mean()
            loss.backward()
            seen.shadow(lambda x=x: model(x).square().mean(), loss)
            optimizer.step()
            optimizer.zero_grad()
    assert seen.steps == 2
    assert seen.metrics["grad_cos_sim/inner.weight"] > 0.9


@pytest.mark.parametrize("optimized", [True, False])
def test_a_look_at_the_model_after_the_last_step_is_no_step(optimized: bool) -> None:
    model, optimizer = model_of("e5m2")
    with altgrad.observe(model, optimizer if optimized else (), every=1, probes=["gradients", "stability"]) as seen:
        for step in (1, 2):
            x, y = batch(step)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if not optimized:
                seen.step()
            metrics = seen.metrics
            optimizer.zero_grad()
        model(x)
    assert (seen.steps, seen.measured) == (2, 2)
    assert seen.metrics is metrics


def test_what_cannot_be_observed_is_told_of() -> None:
    model, optimizer = model_of("e5m2")
    x, y = batch(1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    with altgrad.observe(model, optimizer) as seen:
        with pytest.raises(altgrad.AltgradError, match=r"given a closure.* call seen\.step\(\)"):
            optimizer.step(closure)
        with pytest.raises(altgrad.AltgradError, match="given a closure"):
            optimizer.step(closure=closure)
        with pytest.raises(altgrad.AltgradError, match="observed already"), altgrad.observe(model, optimizer):
            pass
        closure()
        optimizer.step(None)
    assert seen.measured == 1
    with altgrad.observe(model, every=1) as seen:  # the way that the message names
        optimizer.step(closure)
        seen.step()
    assert (seen.measured, seen.steps) == (1, 1)
    assert "grad_norm_l2/up.weight" in seen.metrics


def test_mistakes_are_told_of() -> None:
    model, optimizer = model_of("e5m2")
    x, y = batch(1)
    with pytest.raises(altgrad.AltgradError, match=r"1 or more; got 0"):
        altgrad.observe(model, optimizer, every=0)
    with pytest.raises(altgrad.AltgradError, match=r"Unknown probe 'gradient'\. Did you mean 'gradients'"):
        altgrad.observe(model, optimizer, probes=["gradient"])
    with pytest.raises(altgrad.AltgradError, match="window"):
        altgrad.observe(model, optimizer, probes={"gradients": {"window": 0}})
    with altgrad.observe(model, optimizer) as seen:
        assert str(seen) == "nothing measured"
        with pytest.raises(altgrad.AltgradError, match=r"seen.after_backward\(\) belongs between a forward pass"):
            seen.after_backward()
        loss = F.cross_entropy(model(x), y)
        loss.backward()

        def with_autocast() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return F.cross_entropy(model(x).float(), y)

        with pytest.raises(altgrad.AltgradError, match=r"leave torch\.autocast out of it"):
            seen.shadow(with_autocast, loss)
        seen.after_backward(loss)
        with pytest.raises(altgrad.AltgradError, match="measured already"):
            seen.after_backward(loss)
    with pytest.raises(RuntimeError, match="shapes"), altgrad.observe(model, optimizer, every=1):
        model(x.t())
    assert not control_of(model).collecting
    assert not model._forward_pre_hooks


def test_the_shadow_is_fp32_at_the_same_weights() -> None:
    model, optimizer = model_of("e2m1fn")
    twin = copy.deepcopy(model)
    with altgrad.observe(model, optimizer, every=1) as seen:
        train(model, optimizer, seen, steps=1)
    torch.manual_seed(0)
    Net()  # the generator as it was before the training
    x, y = batch(1)
    with casts_off(twin):
        loss = F.cross_entropy(twin(x), y)
    assert seen.metrics["shadow_loss"] == pytest.approx(loss.item(), rel=1e-6)
