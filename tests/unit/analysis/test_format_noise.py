"""SQNR of formats, the signals it is measured on, and tensors from files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from altgrad_core.analysis.formats import signals, sqnr
from altgrad_core.errors import AltgradError
from altgrad_core.numerics import get_format
from altgrad_core.numerics.cast import quantize


def measured(name: str, x: torch.Tensor, **options) -> float | None:
    signal = signals.Signal(name="x", meaning="", values=x)
    (row,) = sqnr.measure([get_format(name)], [signal], **options)
    return row.sqnr_db[0]


def test_the_distributions_are_what_they_are_called() -> None:
    found = {signal.name: signal.values.double() for signal in signals.distributions(1 << 18, seed=1)}
    assert list(found) == ["normal", "Laplace", "uniform", "Student t", "log-normal"]
    for values in found.values():
        assert values.shape == (256, 1024)
        assert abs(values.median().item()) < 0.02
    assert found["normal"].std().item() == pytest.approx(1, rel=0.01)
    assert found["Laplace"].std().item() == pytest.approx(math.sqrt(2), rel=0.02)
    assert found["uniform"].abs().max().item() <= 1
    assert found["uniform"].std().item() == pytest.approx(1 / math.sqrt(3), rel=0.01)
    # P(|t| > 3.182) = 0.05 with 3 degrees of freedom
    assert (found["Student t"].abs() > 3.182446).double().mean().item() == pytest.approx(0.05, rel=0.05)
    assert found["log-normal"].abs().log().std().item() == pytest.approx(2, rel=0.01)


def test_the_same_seed_draws_the_same_numbers() -> None:
    first, again, other = (signals.distributions(2048, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(a.values, b.values) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a.values, b.values) for a, b in zip(first, other, strict=True))


def test_sqnr_of_an_even_grid_is_six_decibels_a_bit() -> None:
    x = torch.linspace(-1, 1, 100_001, dtype=torch.float64).clamp(-127 / 128, 127 / 128)
    assert measured("e0m7f", x) == pytest.approx(8 * 20 * math.log10(2), abs=0.1)  # the sign is a bit, too
    assert measured("e0m5f", x.clamp(-31 / 32, 31 / 32)) == pytest.approx(6 * 20 * math.log10(2), abs=0.2)


def test_sqnr_by_hand() -> None:
    x = torch.tensor([1.0, 2.5, -5.0])  # 1, 2, -4 in e2m1fn
    by_hand = 10 * math.log10((1 + 6.25 + 25) / (0.25 + 1))
    assert measured("e2m1fn", x, scaling="none") == pytest.approx(by_hand)
    assert measured("e2m1fn", x * 64, scaling="current") == pytest.approx(by_hand)
    assert measured("e2m1fn", torch.tensor([1.0, 2.0]), scaling="none") == math.inf
    assert measured("e2m1fn", torch.zeros(3)) is None
    assert measured("e5m2", torch.tensor([1e6]), scaling="none", saturation="none") == -math.inf
    assert measured("e8m0fnu", x) is None
    assert measured("e8m0fnu", x.abs()) is not None


@pytest.mark.parametrize("name", ["e0m7f", "e2m1fn", "posit8", "nf4"])
def test_the_best_scale_is_never_worse_than_the_current_one(name: str) -> None:
    x = signals.distributions(1 << 14, seed=0)[3].values
    best, current = measured(name, x, scaling="best"), measured(name, x, scaling="current")
    assert best >= current
    assert name != "posit8" or best < current + 3  # its values crowd around 1, which is where current scaling goes
    candidates = [sqnr.sqnr_db(x, quantize(x, name, scale=2.0**e)) for e in range(-30, 30)]
    assert best == pytest.approx(max(candidates))


def test_block_formats_have_their_own_scales() -> None:
    x = signals.distributions(1 << 14, seed=0)[0].values
    alone = measured("mxfp4", x)
    assert alone == measured("mxfp4", x * 2.0**40, scaling="none") == measured("mxfp4", x, scaling="best")
    outlier = x.clone()
    outlier[0, 0] = 1e4
    assert sqnr.sqnr_db(x[1:], quantize(outlier, "mxfp4")[1:]) > 10
    assert sqnr.sqnr_db(x[1:], quantize(outlier, "e2m1fn", scale=2.0**11)[1:]) == 0


def test_the_curve_has_a_plateau_between_two_slopes() -> None:
    amplitudes, decibels = sqnr.curve(get_format("e4m3fn"))
    plateau = [db for a, db in zip(amplitudes, decibels, strict=True) if 0.5 <= a <= 64]
    assert max(plateau) - min(plateau) < 0.5
    assert 0 <= decibels[0] < 0.001
    assert decibels[-1] < 3
    assert 31 < max(decibels) < 32
    values = sqnr.normal_quantiles(1001)
    assert sorted(values)[500] == 0
    assert abs(sum(values)) < 1e-9


def test_stochastic_rounding_is_noisier() -> None:
    x = signals.distributions(1 << 14, seed=0)[0].values
    nearest, stochastic = measured("e4m3fn", x), measured("e4m3fn", x, rounding="stochastic")
    assert nearest - 4 < stochastic < nearest - 2  # twice the error power: 3 dB


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Return a folder with a tensor in every kind of file."""
    tensors = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(3, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "two.safetensors")
    np.save(tmp_path / "one.npy", np.arange(4, dtype=np.float64))
    torch.save({"model": tensors, "step": 3}, tmp_path / "nested.pt")
    torch.save(torch.tensor([1.0, math.nan, math.inf]), tmp_path / "bare.pt")
    np.save(tmp_path / "whole.npy", np.arange(4))
    np.save(tmp_path / "big_endian.npy", np.arange(6).reshape(2, 3).astype(">f4"))
    np.save(tmp_path / "columns.npy", np.asfortranarray(np.arange(6.0).reshape(3, 2)))
    np.save(tmp_path / "backwards.npy", np.arange(4, dtype=np.float16)[::-1])
    np.save(tmp_path / "number.npy", np.float32(1.5))
    np.save(tmp_path / "large.npy", np.array([1e300, 1.0]))
    np.save(tmp_path / "none.npy", np.zeros((0, 3)))
    np.save(tmp_path / "objects.npy", np.array([1.5, None], dtype=object), allow_pickle=True)
    np.save(tmp_path / "records.npy", np.zeros(4, dtype=[("a", "<f4"), ("b", "<i4")]))
    np.save(tmp_path / "long.npy", np.zeros(4, dtype=np.longdouble))
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    with (tmp_path / "archive.npy").open("wb") as file:
        np.savez(file, a=np.zeros(3))
    save_file({}, tmp_path / "empty.safetensors")
    torch.save(torch.eye(3).to_sparse(), tmp_path / "sparse.pt")
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    (tmp_path / "notes.txt").write_text("1 2 3")
    return tmp_path


@pytest.mark.parametrize(
    ("where", "name", "shape", "meaning"),
    [
        ("two.safetensors:layer.weight", "layer.weight", (2, 3), "2 x 3, float32"),
        ("two.safetensors:layer.bias", "layer.bias", (3,), "3, bfloat16"),
        ("one.npy", "one", (4,), "4, float64"),
        ("nested.pt:model.layer.weight", "model.layer.weight", (2, 3), "2 x 3, float32"),
        ("bare.pt", "bare", (3,), "3, float32; 2 that are NaN, Inf or beyond float32 count as 0"),
        ("large.npy", "large", (2,), "2, float64; 1 that are NaN, Inf or beyond float32 count as 0"),
        ("big_endian.npy", "big_endian", (2, 3), "2 x 3, float32"),
        ("columns.npy", "columns", (3, 2), "3 x 2, float64"),
        ("backwards.npy", "backwards", (4,), "4, float16"),
        ("number.npy", "number", (), "a number, float32"),
    ],
)
def test_tensors_from_files(where: str, name: str, shape: tuple[int, ...], meaning: str, files: Path) -> None:
    signal = signals.from_file(str(files / where))
    assert signal.name == name
    assert signal.values.shape == shape
    assert signal.values.dtype is torch.float32
    assert signal.values.isfinite().all()
    assert signal.meaning.endswith(f", {meaning}")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nothing.npy", "there is no file"),
        ("two.safetensors", "Say which tensor of"),
        ("two.safetensors:layer.weights", "Did you mean 'layer.weight'? It holds 2: layer.bias, layer.weight. Write"),
        (
            "whole.npy",
            "has dtype int64 and shape [4]; a tensor of floating-point numbers of at most 64 bits, one or more",
        ),
        (
            "none.npy",
            "has dtype float64 and shape [0, 3]; a tensor of floating-point numbers of at most 64 bits, one or",
        ),
        ("objects.npy", "cannot be read as .npy: Object arrays cannot be loaded"),
        ("records.npy", "has dtype [('a', '<f4'), ('b', '<i4')] and shape [4]; a tensor of floating-point numbers"),
        ("long.npy", " and shape [4]; a tensor of floating-point numbers of at most 64 bits"),
        ("words.npy", "has dtype <U1 and shape [2]; a tensor of"),
        ("archive.npy", "is an archive of arrays (.npz); save the one you mean with numpy.save"),
        ("empty.safetensors", "empty.safetensors holds no tensor."),
        ("sparse.pt", "'sparse' is a sparse_coo tensor; one with all its elements in the file is needed"),
        ("list.pt", "list.pt holds no tensor."),
        ("x" * 300 + ".npy", "cannot be read: File name too long."),
        ("broken.safetensors", "cannot be read as .safetensors"),
        ("notes.txt", "reads .safetensors, .npy, .pt, .pth, .bin files"),
        ("", "reads .safetensors"),
    ],
)
def test_mistakes_with_files(where: str, message: str, files: Path) -> None:
    with pytest.raises(AltgradError) as caught:
        signals.from_file(str(files / where))
    assert message in str(caught.value)


def test_numbers_of_a_file_are_its_numbers(files: Path) -> None:
    assert signals.from_file(str(files / "big_endian.npy")).values.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert signals.from_file(str(files / "columns.npy")).values.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert signals.from_file(str(files / "backwards.npy")).values.tolist() == [3, 2, 1, 0]
    assert signals.from_file(str(files / "large.npy")).values.tolist() == [0, 1]
    (row,) = sqnr.measure([get_format("mxfp4")], [signals.from_file(str(files / "number.npy"))])
    assert row.sqnr_db == (math.inf,)


def test_no_code_is_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save(Evil(), tmp_path / "evil.pt")
    with pytest.raises(AltgradError, match=r"cannot be read as \.pt"):
        signals.from_file(str(tmp_path / "evil.pt"))
    assert not (tmp_path / "ran").exists()
