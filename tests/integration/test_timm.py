"""Vision models of timm, freshly drawn: every kind of layers but embeddings, converted, trained, reverted."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import altgrad_core as altgrad


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "convnext_atto"])
def test_a_vision_model_learns_and_is_given_back(name: str) -> None:
    timm = pytest.importorskip("timm", reason="needs timm, and the torchvision that belongs to this torch")
    torch.manual_seed(0)
    options = {"img_size": 32} if name.startswith("vit") else {}
    model = timm.create_model(name, pretrained=False, num_classes=5, **options)
    classes = {name: type(module) for name, module in model.named_modules()}
    model, summary = altgrad.convert(model, {"base": "hybrid", "layers": ["linear", "conv", "attention", "norm"]})
    assert summary.skipped == {}
    assert len(summary.converted) > 30
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8) % 5
    losses = []
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    altgrad.revert(model)
    assert {name: type(module) for name, module in model.named_modules()} == classes
