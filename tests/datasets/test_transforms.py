"""Transforms of whole batches: shapes, bounds, repeatable draws, and labels and normals that follow their points."""

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets import transforms
from datasets.transforms import apply_all, default_pool, take
from extensions import ops
from utils.errors import UserError
from utils.random import BatchRandom

# Every class of the file, with the options it cannot do without; a new one is tested without being listed.
NEEDED = {"RandomPoints": {"num_points": 16}, "FarthestPoints": {"num_points": 16}, "Resample": {"num_points": 16}}
ALL: dict[str, Any] = {
    name: entry(**NEEDED.get(name, {}))
    for name, entry in inspect.getmembers(transforms, inspect.isclass)
    if entry.__module__ == transforms.__name__
}
KEEPING_POSITIONS = ("RandomPoints", "FarthestPoints", "Resample")  # points are chosen, not moved


def batch(size: int = 6, num_points: int = 40) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {
        "points": torch.randn(size, num_points, 3, generator=generator),
        "normals": F.normalize(torch.randn(size, num_points, 3, generator=generator), dim=-1),
        "seg": torch.arange(num_points).repeat(size, 1),
        "label": torch.arange(size),
    }


@pytest.mark.parametrize("name", ALL)
def test_shapes_and_inputs_left_alone(name: str) -> None:
    given = batch()
    out = ALL[name](given, BatchRandom(0))
    size = NEEDED.get(name, {"num_points": 40})["num_points"]
    assert {key: value.shape for key, value in out.items()} == {
        "points": (6, size, 3),
        "normals": (6, size, 3),
        "seg": (6, size),
        "label": (6,),
    }
    assert {key: value.dtype for key, value in out.items()} == {key: value.dtype for key, value in given.items()}
    assert all(torch.equal(value, batch()[key]) for key, value in given.items())
    torch.testing.assert_close(out["normals"].norm(dim=-1), torch.ones(6, size))


@pytest.mark.parametrize("name", ALL)
def test_draws_repeat_and_do_not_touch_global_state(name: str) -> None:
    state = torch.get_rng_state()
    first, second = (ALL[name](batch(), BatchRandom(3))["points"] for _ in range(2))
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "name", [name for name in ALL if name not in ("FarthestPoints", "Normalize", "Center", "UnitCube")]
)
def test_other_seeds_give_other_draws(name: str) -> None:
    first, second = (ALL[name](batch(), BatchRandom(seed))["points"] for seed in (1, 2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ALL)
def test_one_process_or_three(name: str) -> None:
    whole = ALL[name](batch(), BatchRandom(5, rank=0, world=1))
    for rank in range(3):
        own = {key: value[2 * rank : 2 * rank + 2] for key, value in batch().items()}
        share = ALL[name](own, BatchRandom(5, rank=rank, world=3))
        assert all(torch.equal(share[key], value[2 * rank : 2 * rank + 2]) for key, value in whole.items())


@pytest.mark.parametrize("name", KEEPING_POSITIONS)
def test_what_belongs_to_a_point_stays_with_it(name: str) -> None:
    given, out = batch(), ALL[name](batch(), BatchRandom(0))
    for key in ("points", "normals"):
        assert torch.equal(out[key], ops.gather_points(given[key], out["seg"]))  # seg holds the index of the point
    assert all(len(set(row.tolist())) == 16 for row in out["seg"])


def test_dropped_points_take_everything_of_the_first() -> None:
    given, out = batch(), transforms.Dropout(1.0)(batch(), BatchRandom(0))
    assert (out["seg"] == 0).sum() > 6
    for key in ("points", "normals"):
        assert torch.equal(out[key], ops.gather_points(given[key], out["seg"]))
    assert torch.equal(transforms.Dropout(0.0)(batch(), BatchRandom(0))["points"], given["points"])


def test_a_draw_equal_to_the_ratio_drops() -> None:
    draws = torch.tensor([[0.6, 0.5, 0.7, 0.1]])
    assert transforms.drop_to_first(torch.tensor([0.5]), draws).tolist() == [[0, 0, 2, 0]]


def plane(num_points: int = 30) -> dict[str, Tensor]:
    """Points of tilted planes, whose normals are known."""
    generator = torch.Generator().manual_seed(8)
    normal = F.normalize(torch.randn(50, 1, 3, generator=generator), dim=-1)
    points = torch.randn(50, num_points, 3, generator=generator)
    points = points - (points * normal).sum(-1, keepdim=True) * normal
    return {"points": points, "normals": normal.repeat(1, num_points, 1)}


@pytest.mark.parametrize(
    "name", ["Scale", "Translate", "ScaleTranslate", "Rotate", "RotateFreely", "Flip", "Normalize", "Center", "Dropout"]
)
def test_normals_stay_upright_on_their_plane(name: str) -> None:
    out = ALL[name](plane(), BatchRandom(0))
    along = out["points"] - out["points"][:, :1]
    height = (along * out["normals"]).sum(-1)
    torch.testing.assert_close(height, torch.zeros_like(height), rtol=0, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rotation(axis: int) -> None:
    turn = turn_by(axis, torch.pi / 2)
    torch.testing.assert_close(turn, torch.linalg.matrix_power(turn, 5))
    for degrees in (90.0, 0.0):
        assert transforms.Rotate("xyz"[axis], degrees).limit == pytest.approx(degrees * torch.pi / 180)
    x = batch()["points"]
    out = transforms.rotate(x, torch.linspace(-3, 3, 6), axis)
    torch.testing.assert_close(out.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(out[..., axis], x[..., axis])
    torch.testing.assert_close(
        torch.linalg.det(out[:, :3] @ torch.linalg.inv(x[:, :3])), torch.ones(6), rtol=1e-3, atol=0
    )


def test_rotations_drawn_evenly() -> None:
    """Lengths and handedness stay; the angles of even rotations have density (1 - cos a) / pi."""
    given = {"points": torch.eye(3).repeat(4000, 1, 1)}
    turn = transforms.RotateFreely()(given, BatchRandom(0))["points"]
    torch.testing.assert_close(turn @ turn.mT, given["points"], rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.linalg.det(turn), torch.ones(4000))
    angle = ((turn.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1).acos()
    for share in (0.25, 0.5, 0.75):
        below = angle.quantile(share)
        assert float((below - below.sin()) / torch.pi) == pytest.approx(share, abs=0.03)


def turn_by(axis: int, angle: float) -> Tensor:
    return transforms.rotate(torch.eye(3)[None], torch.tensor([angle]), axis)[0]


def test_rotation_about_y_follows_its_formula() -> None:
    turn = turn_by(1, 0.3)
    cos, sin = torch.tensor(0.3).cos(), torch.tensor(0.3).sin()
    torch.testing.assert_close(turn, torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]))


def test_bounds() -> None:
    ones = {"points": torch.ones(2000, 1, 3)}
    scaled = transforms.Scale(0.5, 2.0)(ones, BatchRandom(0))["points"]
    shifted = transforms.Translate(0.2)(ones, BatchRandom(0))["points"] - 1
    jittered = transforms.Jitter(0.1, clip=0.15)(ones, BatchRandom(0))["points"] - 1
    for values, low, high in ((scaled, 0.5, 2.0), (shifted, -0.2, 0.2), (jittered, -0.15, 0.15)):
        assert values.min() == pytest.approx(low, abs=0.01) and values.max() == pytest.approx(high, abs=0.01)
        assert low - 1e-6 <= values.min() and values.max() <= high + 1e-6
        assert len(values.flatten(1).unique(dim=0)) > 1900  # each cloud has its own


def test_scale_translate_is_one_after_the_other() -> None:
    rng = BatchRandom(3)
    chain = apply_all([transforms.Scale(), transforms.Translate()], batch(), rng)
    assert torch.equal(transforms.ScaleTranslate()(batch(), BatchRandom(3))["points"], chain["points"])


def test_center() -> None:
    given = batch()
    moved = transforms.Center()(given, BatchRandom(0))["points"]
    torch.testing.assert_close(moved.mean(dim=1), torch.zeros(6, 3))
    torch.testing.assert_close(moved[:, 1:] - moved[:, :1], given["points"][:, 1:] - given["points"][:, :1])


def test_normalize() -> None:
    given = {"points": 5 + 3 * batch()["points"].double()}
    points = transforms.Normalize()(given, BatchRandom(0))["points"]
    assert points.dtype == torch.float64
    torch.testing.assert_close(points.mean(dim=1), torch.zeros(6, 3).double())
    torch.testing.assert_close(points.norm(dim=-1).amax(dim=1), torch.ones(6).double())
    flat = transforms.Normalize()({"points": torch.full((2, 5, 3), 7.0)}, BatchRandom(0))["points"]
    assert torch.equal(flat, torch.zeros(2, 5, 3))


def test_resample_shares_its_choice_between_clouds() -> None:
    given = batch(2)
    same = {key: value[:1].repeat(2, *[1] * (value.ndim - 1)) for key, value in given.items()}
    out = transforms.Resample(8, pool=12)(same, BatchRandom(0))
    assert torch.equal(out["seg"][0], out["seg"][1])
    pool = transforms.FarthestPoints(12)(same, BatchRandom(0))["seg"][0].tolist()
    assert set(out["seg"][0].tolist()) <= set(pool)


@pytest.mark.parametrize("number, pool", [(1024, 1200), (2048, 2400), (4096, 4800), (8192, 8192), (512, 600)])
def test_default_pool(number: int, pool: int) -> None:
    assert default_pool(number) == pool


@pytest.mark.parametrize("name", KEEPING_POSITIONS)
def test_more_points_than_there_are(name: str) -> None:
    with pytest.raises(UserError, match="num_points: 16 asked for, but the clouds hold 15 points"):
        ALL[name](batch(2, 15), BatchRandom(0))
    assert ALL[name](batch(2, 16), BatchRandom(0))["points"].shape == (2, 16, 3)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: transforms.Rotate("w"), "axis: 'w' is not one of x, y, z"),
        (lambda: transforms.Scale(2.0, 0.5), "low 2.0, high 0.5"),
        (lambda: transforms.ScaleTranslate(distance=-0.1), "distance: -0.1; use 0 or more"),
        (lambda: transforms.Jitter(clip=-1.0), "clip: -1.0; use 0 or more"),
        (lambda: transforms.Dropout(1.5), "max_ratio: 1.5"),
        (lambda: transforms.Resample(16, pool=8), "pool: 8 points cannot give num_points 16"),
    ],
)
def test_wrong_options(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


def test_take_reads_strided_points_and_repeats() -> None:
    given = batch()
    given["points"] = given["points"].mT.contiguous().mT
    indices = torch.zeros(6, 50, dtype=torch.int64)
    out = take(given, indices)
    assert torch.equal(out["points"], given["points"][:, :1].expand(-1, 50, -1))
    assert torch.equal(out["label"], given["label"])
