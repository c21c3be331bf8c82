"""Models of Hugging Face transformers from small random configurations: converted, trained, saved, loaded, reverted.

The band: what the last ten of 50 steps lose against the same model unconverted is at most 1 % of what that one learns.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_model
from torch import Tensor, nn

import altgrad_core as altgrad

os.environ["HF_HUB_OFFLINE"] = "1"
VOCABULARY = 64
STEPS = 50
BAND = 0.01
RECIPES: dict[str, Any] = {
    "e5m2": "e5m2",
    "hybrid": "hybrid",
    "delayed": {"base": "hybrid", "scaling": "delayed"},
    "mxfp8": "mxfp8",
    "everything": {"base": "hybrid", "layers": ["linear", "attention", "embedding", "norm"]},
}


@pytest.fixture(autouse=True)
def transformers() -> Any:
    """The library; what it warns of while it is imported is its own affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("transformers", reason="needs transformers, which altgrad[test] brings")
        library.logging.set_verbosity_error()
    return library


def build(kind: str) -> nn.Module:
    """A model of two layers with freshly drawn weights, the same each time; nothing is downloaded."""
    import transformers as hf

    torch.manual_seed(0)
    size = {"vocab_size": VOCABULARY, "pad_token_id": 0}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    llama = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 32}
    if kind == "gpt2":
        off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return hf.GPT2LMHeadModel(hf.GPT2Config(n_positions=32, n_embd=64, n_layer=2, n_head=2, **size, **ends, **off))
    if kind == "llama":
        return hf.LlamaForCausalLM(
            hf.LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **llama, **size, **ends)
        )
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return hf.BertForMaskedLM(hf.BertConfig(num_attention_heads=2, **llama, **size, **off))


def batch(step: int) -> Tensor:
    """Counting up in steps of 1 to 3, which each of the models learns: int64 [8, 32]."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(0, VOCABULARY, (8, 1), generator=generator)
    stride = torch.randint(1, 4, (8, 1), generator=generator)
    return (start + stride * torch.arange(32)) % VOCABULARY


def train(model: nn.Module, *, bf16: bool, steps: int = STEPS, start: int = 0) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(start, start + steps):
        tokens = batch(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@cache
def plain(kind: str, bf16: bool) -> tuple[float, float]:
    """What the model loses at first, and in the last ten steps, unconverted."""
    losses = train(build(kind), bf16=bf16)
    return losses[0], sum(losses[-10:]) / 10


FRESH = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import altgrad_core as altgrad
from safetensors.torch import load_model
from test_huggingface import RECIPES, batch, build
kind, recipe, folder = sys.argv[2:]
model, _ = altgrad.convert(build(kind), RECIPES[recipe])
missing, unexpected = load_model(model, f"{folder}/model.safetensors")
assert not missing and not unexpected, (missing, unexpected)
expected = torch.load(f"{folder}/logits.pt", weights_only=True)
with torch.no_grad():
    assert torch.equal(model.eval()(input_ids=batch(1000)).logits, expected)
"""


def loads_in_a_fresh_process(model: nn.Module, kind: str, recipe: str, folder: Path) -> None:
    save_model(model, str(folder / "model.safetensors"))
    torch.save(model(input_ids=batch(1000)).logits.detach(), folder / "logits.pt")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(Path(__file__).parent), kind, recipe, str(folder)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def check(kind: str, recipe: str, bf16: bool, folder: Path) -> None:
    first, last = plain(kind, bf16)
    model = build(kind)
    classes = {name: type(module) for name, module in model.named_modules()}
    keys = list(model.state_dict())
    model, summary = altgrad.convert(model, RECIPES[recipe])
    assert not summary.skipped
    losses = train(model, bf16=bf16)
    assert abs(sum(losses[-10:]) / 10 - last) < BAND * (first - last)
    if not bf16:  # what is loaded does not depend on autocast
        loads_in_a_fresh_process(model.eval(), kind, recipe, folder)
    altgrad.revert(model)
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert list(model.state_dict()) == keys
    assert train(model.train(), bf16=bf16, steps=2, start=STEPS)[-1] < first


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_trained_saved_loaded_reverted(kind: str, recipe: str, bf16: bool, tmp_path: Path) -> None:
    check(kind, recipe, bf16, tmp_path)


def test_gpt2_is_converted_and_observed() -> None:
    """Every projection of GPT-2 is a Conv1D; its head is tied to the embedding."""
    model = build("gpt2")
    model, summary = altgrad.convert(model, "hybrid")
    assert len(summary.converted) == 9
    assert summary.tied == (("transformer.wte.weight", "lm_head.weight"),)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    with altgrad.observe(model, optimizer, every=10) as seen:
        for step in range(20):
            tokens = batch(step)
            loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            seen.shadow(lambda tokens=tokens: model(input_ids=tokens, labels=tokens).loss, loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    weight = "transformer.h.0.mlp.c_fc.weight"
    assert 0.9 < seen.metrics[f"grad_cos_sim/{weight}"] < 1
    assert 0 < seen.metrics[f"bit_stall_rate/{weight}"] < 1
    assert f"dead_neuron_frac/{weight}" in seen.metrics
    assert f"scale_log2/{weight}" in seen.metrics
    altgrad.revert(model)
    assert type(model.transformer.h[0].mlp.c_fc).__name__ == "Conv1D"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_gradient_checkpointing_of_transformers(kind: str, reentrant: bool) -> None:
    recipe = {"base": "hybrid", "scaling": "delayed", "rounding": "stochastic"}
    expected, _ = altgrad.convert(build(kind), recipe)
    losses = train(expected, bf16=True, steps=4)
    model, _ = altgrad.convert(build(kind), recipe)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert train(model, bf16=True, steps=4) == losses
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.slow
@pytest.mark.parametrize("how", ["sdpa", "eager"])
def test_attention_of_transformers_is_seen(how: str) -> None:
    for kind in ("gpt2", "llama", "bert"):
        model = build(kind)
        model.set_attn_implementation(how)
        model, summary = altgrad.convert(model, {"base": "e4m3fn", "layers": ["attention"]})
        assert len(summary.converted) == 2
        with altgrad.observe(model, every=1, probes=["stability"]) as seen:
            model(input_ids=batch(0), labels=batch(0)).loss.backward()
        rates = [name for name in seen.metrics if name.startswith("overflow_rate/")]
        assert len(rates) == 2 * 6, rates


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_lora_of_peft() -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(build("llama"), config)
    override = {"match": "*.lora_*", "recipe": "bf16"}
    model, summary = altgrad.convert(model, {"base": "mxfp8", "overrides": [override]})
    assert sum(name.endswith("q_proj.base_layer") for name in summary.converted) == 2
    assert all("lora_" in name for name in summary.skipped)
    losses = train(model, bf16=False, steps=20)
    assert losses[-1] < losses[0]
    base = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer
    assert type(base).__name__ == "CastLinear"
    assert base.weight.grad is None
    altgrad.revert(model)
    assert type(base) is nn.Linear
