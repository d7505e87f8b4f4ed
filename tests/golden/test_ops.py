"""The operations against recorded values: every fixture of the folder `ops`, and the grouping of Point-MAE."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from extensions import ops

GOLDEN = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parents[2] / "../shared/golden"))


class Fixture(dict[str, Tensor]):
    """The arrays of one fixture by key, and what its JSON says about them."""

    about: dict[str, Any]

    def cases(self, *keys: str) -> list[str]:
        """Names of the parts ("equal", "ties", ...) that have all these keys."""
        names = dict.fromkeys(key.split("/")[0] for key in self if "/" in key)
        return [name for name in names if all(f"{name}/{key}" in self for key in keys)]

    def part(self, name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}/"): value for key, value in self.items() if key.startswith(f"{name}/")}


def load(folder: str, name: str) -> Fixture:
    path = GOLDEN / folder / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"no fixture {path}; set GOLDEN_DIR to the folder of fixtures")
    with np.load(path) as arrays:
        fixture = Fixture({key: torch.from_numpy(arrays[key]) for key in arrays.files})
    fixture.about = json.loads(path.with_suffix(".json").read_text())
    return fixture


def close(actual: Tensor, expected: Tensor, rtol: float, atol: float) -> None:
    torch.testing.assert_close(actual.detach().double(), expected.double(), rtol=rtol, atol=atol)


def same(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.int64
    assert torch.equal(actual, expected.long())


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


def test_farthest_point_sample() -> None:
    fixture = load("ops", "ops_fps")
    tested = 0
    for name in fixture.cases("points"):
        part = fixture.part(name)
        for key, skip in (("idx", False), ("idx_plain", False), ("idx_lowest", False), ("idx_skip", True)):
            if key in part:
                index = ops.farthest_point_sample(part["points"], part[key].shape[1], skip_near_origin=skip)
                same(index, part[key])
                tested += 1
    assert tested


def test_knn() -> None:
    fixture = load("ops", "ops_knn")
    names = fixture.cases("ref")
    assert names
    for name in names:
        part = fixture.part(name)
        expected = part["idx"] if "idx" in part else part["idx_stable"]
        distance, index = ops.knn(part.get("query", part["ref"]), part["ref"], expected.shape[2])
        same(index, expected)
        if "sqdist" in part:
            close(distance, part["sqdist"], rtol=1e-5, atol=1e-6)


def test_ball_query_and_gradients_of_grouping() -> None:
    fixture = load("ops", "ops_ball_group")
    part = fixture.part("generic")
    for key, index in part.items():
        if key.startswith("idx_r"):
            found, count = ops.ball_query_count(part["query"], part["xyz"], float(key[5:]), index.shape[2])
            same(found, index)
            same(count, part["cnt_r" + key[5:]])
    edge = fixture.part("edge")
    same(ops.ball_query(edge["query"], edge["xyz"], 0.5, edge["idx_strict"].shape[2]), edge["idx_strict"])

    features = fixture["group/features"].mT  # recorded channels first
    grouping = next(i for k, i in part.items() if k.startswith("idx_r") and i.shape[1:] == fixture["group/out"].shape[2:])
    for name, index in (("group", grouping), ("gather", fixture["gather/idx"])):
        (leaf,) = leaves(features)
        out = ops.gather_points(leaf, index)
        assert torch.equal(out, fixture[f"{name}/out"].movedim(1, -1))
        out.backward(fixture[f"{name}/grad_out"].movedim(1, -1))
        assert leaf.grad is not None
        close(leaf.grad, fixture[f"{name}/grad_features"].mT, rtol=1e-6, atol=1e-5)
