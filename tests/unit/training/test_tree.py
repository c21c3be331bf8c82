from __future__ import annotations

import gc
import json
import math
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from altgrad_core.training.tree import join, split

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
keys = st.text(max_size=4) | st.integers(0, 9)
trees = st.dictionaries(
    st.text(min_size=1, max_size=4),
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


def same(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b


@given(trees)
def test_plain_values_survive_json(tree: dict[str, object]) -> None:
    tensors, skeleton = split(tree)
    assert tensors == {}
    assert same(join({}, json.loads(json.dumps(skeleton, allow_nan=False))), tree)


def test_tensors_survive_and_shared_ones_are_stored_once() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    tree = {"model": {"a": weight, "tied": weight, "t": weight.t(), "empty": torch.empty(0), "e2": torch.empty(0)},
            "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}}  # fmt: skip
    tensors, skeleton = split(tree)
    assert set(tensors) == {"model/a", "model/t", "model/empty", "model/e2", "optimizer/state/0/step"}
    back = join(tensors, json.loads(json.dumps(skeleton)))
    assert back["model"]["tied"] is back["model"]["a"]
    assert torch.equal(back["model"]["t"], weight.t())
    assert back["optimizer"]["state"][0]["step"] == 3


def test_other_objects_are_refused_by_path() -> None:
    with pytest.raises(TypeError, match="probes/x/1"):
        split({"probes": {"x": [1, object()]}})


def test_paths_that_would_be_the_same_are_told_apart() -> None:
    tree = {
        "s": {0: torch.tensor(1.0), "0": torch.tensor(2.0)},
        "a": {"b/c": torch.tensor(3.0), "b": {"c": torch.tensor(4.0)}},
    }
    tensors, skeleton = split(tree)
    back = join(tensors, json.loads(json.dumps(skeleton)))
    assert [float(back["s"][0]), float(back["s"]["0"]), float(back["a"]["b/c"]), float(back["a"]["b"]["c"])] == [
        1,
        2,
        3,
        4,
    ]


def test_the_skeleton_shares_nothing_with_the_tree() -> None:
    tree = {"probe": {"window": [1, 2]}}
    _, skeleton = split(tree)
    tree["probe"]["window"].append(3)
    assert skeleton == {"probe": {"window": [1, 2]}}


def test_nothing_is_kept_alive() -> None:
    """Without waiting for the collector of cycles: a checkpoint may be the larger part of the memory."""
    weight = torch.zeros(3)
    watched = weakref.ref(weight)
    gc.disable()
    try:
        tensors, skeleton = split({"model": {"w": weight}})
        kept = weakref.ref(tensors["model/w"])
        joined = join(tensors, skeleton)
        del weight, tensors, joined
        assert watched() is None
        assert kept() is None
    finally:
        gc.enable()
