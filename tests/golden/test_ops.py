"""The operations against recorded values: every fixture of the folder `ops`, and the grouping of Point-MAE."""

import json
import os
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from extensions import ops
from extensions.chamfer_dist.chamfer import Norm
from extensions.reference import nearest
from tests.extensions.conftest import point_ops  # noqa: F401

pytestmark = pytest.mark.usefixtures("point_ops")

NORMS: tuple[Norm, ...] = get_args(Norm)
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
    grouping = next(
        i for k, i in part.items() if k.startswith("idx_r") and i.shape[1:] == fixture["group/out"].shape[2:]
    )
    for name, index in (("group", grouping), ("gather", fixture["gather/idx"])):
        (leaf,) = leaves(features)
        out = ops.gather_points(leaf, index)
        assert torch.equal(out, fixture[f"{name}/out"].movedim(1, -1))
        out.backward(fixture[f"{name}/grad_out"].movedim(1, -1))
        assert leaf.grad is not None
        close(leaf.grad, fixture[f"{name}/grad_features"].mT, rtol=1e-6, atol=1e-5)


def test_three_nn() -> None:
    fixture = load("ops", "ops_three_nn")
    distance, index = ops.three_nn(fixture["unknown"], fixture["known"])
    same(index, fixture["idx"])
    close(distance, fixture["sqdist"], rtol=1e-5, atol=1e-6)
    for key, kind in (("inv_dist", "inverse_distance"), ("inv_sqdist", "inverse_squared")):
        weights = ops.three_nn_weights(distance, kind)  # type: ignore[arg-type]
        close(weights, fixture[f"weight_{key}"], rtol=0, atol=1e-5)
        (features,) = leaves(fixture["known_feats"].mT)
        out = ops.three_interpolate(features, index, weights)
        close(out.mT, fixture[f"out_{key}"], rtol=0, atol=1e-5)
        out.backward(fixture["grad_out"].mT)
        assert features.grad is not None
        close(features.grad.mT, fixture[f"grad_known_feats_{key}"], rtol=0, atol=1e-4)

    two = fixture.part("two")
    distance, index = ops.three_nn(fixture["unknown"][:1], fixture["known"][:1, :2])
    same(index, two["idx"])
    close(distance, two["sqdist"], rtol=1e-5, atol=1e-6)
    weights = ops.three_nn_weights(distance, "inverse_distance")
    out = ops.three_interpolate(fixture["known_feats"][:1, :, :2].mT, index, weights)
    close(out.mT, two["out_inv_dist"], rtol=0, atol=1e-5)


def test_chamfer() -> None:
    fixture = load("ops", "ops_chamfer")
    names = fixture.cases("dist1", "dist2")
    assert names
    for name in names:
        part = fixture.part(name)
        x, y = leaves(part["xyz1"], part["xyz2"])
        dist1, dist2 = ops.chamfer_distance(x, y, reduction="none")
        close(dist1, part["dist1"], rtol=1e-5, atol=1e-7)
        close(dist2, part["dist2"], rtol=1e-5, atol=1e-7)
        for norm in NORMS:
            loss, key = ops.chamfer_distance(x, y, norm=norm), norm.upper()
            grads = torch.autograd.grad(loss, (x, y))
            if key in part:
                close(loss, part[key], rtol=1e-6, atol=1e-7)
            for suffix in ("", "_safe"):
                if f"{key}_grad_xyz1{suffix}" in part:
                    close(grads[0], part[f"{key}_grad_xyz1{suffix}"], rtol=1e-4, atol=1e-6)
                    close(grads[1], part[f"{key}_grad_xyz2{suffix}"], rtol=1e-4, atol=1e-6)
        if "L2_split" in part:
            close(torch.stack(ops.chamfer_distance(x, y, reduction="split")), part["L2_split"], rtol=1e-6, atol=1e-7)
        if "grad_xyz1" in part:
            grads = torch.autograd.grad((dist1, dist2), (x, y), (part["grad_dist1"], part["grad_dist2"]))
            close(grads[0], part["grad_xyz1"], rtol=1e-4, atol=1e-6)
            close(grads[1], part["grad_xyz2"], rtol=1e-4, atol=1e-6)


def test_nearest_indices_take_the_lowest_on_ties() -> None:
    fixture = load("ops", "ops_chamfer")
    for name in fixture.cases("xyz1"):
        part = fixture.part(name)
        for key in ("idx{}", "idx{}_lowest"):
            if key.format(1) in part:
                same(nearest(part["xyz1"], part["xyz2"])[1], part[key.format(1)])
                same(nearest(part["xyz2"], part["xyz1"])[1], part[key.format(2)])


def test_chamfer_ignores_padding() -> None:
    part = load("ops", "ops_chamfer").part("ignore_zeros")
    x, y = part["xyz1"], part["xyz2"]
    close(ops.chamfer_distance(x, y, ignore_zeros=True), part["L2_true_zeros_only"], rtol=1e-6, atol=0)
    close(ops.chamfer_distance(x, y, ignore_zeros="sum"), part["L2_upstream_rule"], rtol=1e-6, atol=0)


def test_approxmatch() -> None:
    fixture = load("ops", "ops_emd")
    names = fixture.cases("match_top7")
    assert names
    for name in names:
        part = fixture.part(name)
        x, y = leaves(part["xyz1"], part["xyz2"])
        plan = ops.approx_match(x, y)
        close(plan, part["match_top7"], rtol=0, atol=1e-4)
        for key, squared in (("cost_sq", True), ("cost_dist", False)):
            cost = ops.match_cost(x, y, plan, squared=squared)
            close(cost, part[f"{key}_top7"], rtol=1e-4, atol=0)
            value = ops.earth_mover_distance(x, y, squared=squared)
            close(value, part[f"{key}_top7"].mean() / x.shape[1], rtol=1e-4, atol=0)
            grads = torch.autograd.grad(cost.sum(), (x, y))
            close(grads[0], part[f"{key}_grad_xyz1"], rtol=1e-3, atol=1e-3)
            close(grads[1], part[f"{key}_grad_xyz2"], rtol=1e-3, atol=1e-3)


def test_auction_finds_the_exact_assignment() -> None:
    fixture = load("ops", "ops_emd")
    for name in fixture.cases("exact_sq_total", "exact_dist_total"):
        part = fixture.part(name)
        x, y = leaves(part["xyz1"], part["xyz2"])
        if x.shape != y.shape:
            continue
        for key, squared in (("exact_sq", True), ("exact_dist", False)):
            same(ops.auction_match(x, y, squared=squared, eps=1e-7), part[f"{key}_assignment"].squeeze(2))
            value = ops.earth_mover_distance(x, y, method="auction", squared=squared, eps=1e-7, reduction="none")
            close(value * x.shape[1], part[f"{key}_total"], rtol=1e-5, atol=0)
            if f"{key}_grad_xyz1" in part:
                grads = torch.autograd.grad(value.sum() * x.shape[1], (x, y))
                close(grads[0], part[f"{key}_grad_xyz1"], rtol=1e-4, atol=1e-6)
                close(grads[1], part[f"{key}_grad_xyz2"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("eps", [1e-2, 1e-3])
def test_auction_bound_on_a_large_pair(eps: float) -> None:
    fixture = load("ops", "ops_emd_1024")
    for key, squared in (("exact_sq_mean", True), ("exact_dist_mean", False)):
        value = ops.earth_mover_distance(
            fixture["xyz1"], fixture["xyz2"], method="auction", squared=squared, eps=eps, reduction="none"
        )
        excess = value.double() - fixture[key]
        assert (excess > -1e-6).all() and (excess <= eps).all()


@pytest.mark.parametrize("name", ["group", "group_fps_quirk"])
def test_group(name: str) -> None:
    fixture = load("mae", name)
    points, args = fixture["in/points"], fixture.about["args"]
    neighborhood, center, index = ops.group(points, **args, skip_near_origin=True)
    same(index, fixture["out/knn_idx"])
    close(neighborhood, fixture["out/neighborhood"], rtol=0, atol=1e-6)
    close(center, fixture["out/center"], rtol=0, atol=1e-6)
    close(ops.knn(center, points, index.shape[2])[0].sqrt(), fixture["out/knn_dist"], rtol=0, atol=1e-6)
    if "out/fps_idx_without_origin_skip" in fixture:
        plain = fixture["out/fps_idx_without_origin_skip"]
        same(ops.farthest_point_sample(points, plain.shape[1]), plain)


def test_chamfer_modules() -> None:
    fixture = load("mae", "chamfer")
    x, y = leaves(fixture["in/xyz1"], fixture["in/xyz2"])
    for key, module in (("cdl1", ops.ChamferDistanceL1), ("cdl2", ops.ChamferDistanceL2)):
        value = module()(x, y)
        close(value, fixture[f"out/{key}"].squeeze(), rtol=0, atol=1e-6)
        grads = torch.autograd.grad(value, (x, y))
        close(grads[0], fixture[f"out/{key}_grad_xyz1"], rtol=0, atol=1e-6)
        close(grads[1], fixture[f"out/{key}_grad_xyz2"], rtol=0, atol=1e-6)
        padded = module(ignore_zeros="sum")(fixture["in/iz_xyz1"], fixture["in/iz_xyz2"])
        close(padded, fixture[f"out/iz_{key}"].squeeze(), rtol=0, atol=1e-6)
    split = torch.stack(ops.ChamferDistanceL2Split()(x, y))
    close(split, torch.cat([fixture["out/split1"], fixture["out/split2"]]), rtol=0, atol=1e-6)


def test_resampling_of_fine_tuning() -> None:
    fixture = load("mae", "finetune_resample")
    points = fixture["in/points"]
    index = ops.farthest_point_sample(points, fixture.about["args"]["point_all"], skip_near_origin=True)
    same(index, fixture["out/fps_idx"])
    close(ops.gather_points(points, index[:, fixture["in/choice"]]), fixture["out/points"], rtol=0, atol=0)


def test_farthest_point_sample_of_samplenet() -> None:
    fixture = load("sampling", "fps_pointnet2")
    for key, skip in (("out/index_with_origin_skip", True), ("out/index_plain", False)):
        index = ops.farthest_point_sample(fixture["in/points"], fixture[key].shape[1], skip_near_origin=skip)
        same(index, fixture[key])


def test_farthest_point_sample_from_the_mean() -> None:
    fixture = load("sampling", "sim_sampling")
    expected = fixture["out/fps_index"]
    same(ops.farthest_point_sample(fixture["in/points"], expected.shape[1], start="mean"), expected)
