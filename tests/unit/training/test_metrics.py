from __future__ import annotations

import math

import numpy as np
import torch

from altgrad_core.training.metrics import Measurements


def test_layers_and_their_mean_without_nan() -> None:
    m = Measurements()
    m.add_layers("cos", ["a", "b", "c"], torch.tensor([1.0, math.nan, 0.5]))
    m.add("loss", torch.tensor(2.0))
    m.add("lr", 0.1)
    values = m.read()
    assert values["cos"] == 0.75
    assert math.isnan(values["cos/b"])
    assert values["loss"] == 2.0
    assert values["lr"] == 0.1


def test_all_nan_is_nan_and_float32_survives_rounding() -> None:
    m = Measurements()
    m.add_layers("x", ["a"], torch.tensor([math.nan]))
    exact = torch.rand(1000) * torch.tensor(10.0) ** torch.randint(-30, 30, (1000,))
    m.add_layers("y", [str(i) for i in range(1000)], exact)
    values = m.read()
    assert math.isnan(values["x"])
    assert all(np.float32(values[f"y/{i}"]) == exact[i].item() for i in range(1000))
