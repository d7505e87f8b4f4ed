"""Any2Point: what is trained, what is frozen, that clouds do not see each other, and its parts one by one."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import MODELS
from models.any2point.cells import CellNorm, cell_max, cell_mean, cells_of
from models.any2point.model import Any2Point
from models.any2point.projection import ImageProjection, LineProjection, rotations, voxels
from models.any2point.tokenizer import PointPN, wave_code
from tools.frozen import describe_parameters, frozen_at_random
from tools.optim import parameter_groups
from utils.errors import UserError

SIZES = {"embed_dim": 24, "depth": 2, "num_heads": 2}
TOWERS: dict[str, dict[str, Any]] = {
    "text": {"tower": {"name": "text", **SIZES}, "cell_size": 2, "positions": "both"},
    "vision": {"tower": {"name": "vision", **SIZES, "grid": [5, 4]}, "positions": "each", "cell_pooling": "mean_max"},
    "audio": {"tower": {"name": "audio", **SIZES}, "cell_size": 16, "positions": "once", "pooling": "cls_max"},
}
COMPAT = ["wrap", "scramble", "empty_cells"]


def build(name: str = "vision", **options: Any) -> Any2Point:
    small = {"num_classes": 5, "num_group": 8, "group_size": 4, "head_dim": 16}
    return MODELS.build({"name": "Any2Point", **small, **TOWERS[name], **options})


def cloud(batch: int = 3, num_points: int = 64) -> Tensor:
    return torch.randn(batch, num_points, 3) * 0.5


@pytest.mark.parametrize("compat", [[], COMPAT], ids=["ours", "published"])
@pytest.mark.parametrize("name", TOWERS)
def test_batch_mates_do_not_matter(name: str, compat: list[str]) -> None:
    model, points = build(name, compat=compat).eval(), cloud(4)
    points[2] *= 5  # a wider cloud would stretch the others' lines
    together = model(points)
    alone = torch.cat([model(points[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together[[0, 3]], model(points[[0, 3]]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", TOWERS)
def test_frozen_means_frozen(name: str) -> None:
    """After 20 steps every frozen tensor is bit-identical, every trained one has moved, nothing else has state."""
    model = build(name).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-2)
    points, label = cloud(6), torch.arange(6) % 5
    for _ in range(20):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(points), label).backward()
        optimizer.step()
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {key for key in before if key.startswith(("tower.blocks.", "tower.norm_pre."))}
    for key, value in model.state_dict().items():
        moved = not torch.equal(value, before[key])
        assert moved == (key not in frozen and key != "tower.position"), key
    with_state = {id(p) for p in optimizer.state}
    assert with_state == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("name", TOWERS)
def test_every_trained_parameter_has_a_gradient(name: str) -> None:
    model = build(name).train()
    model(cloud()).square().sum().backward()
    for key, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, key
        else:
            assert p.grad is None, key


def test_gradients_are_those_of_the_function() -> None:
    """Along a random direction in the trained parameters of an adapter, by finite differences in double precision."""
    model, points = build("vision", adapter_dropout=0.0, head_dropout=0.0).double().train(), cloud(2).double()
    for each in model.modules():
        if isinstance(each, nn.BatchNorm1d | CellNorm):
            each.momentum = 0.0
    parameters = [p for key, p in model.named_parameters() if key.startswith(("adapters.", "local."))]
    directions = [torch.randn_like(p) for p in parameters]
    grads = torch.autograd.grad(model(points).square().sum(), parameters)
    expected = sum((grad * direction).sum() for grad, direction in zip(grads, directions))
    step, values = 1e-6, []
    with torch.no_grad():
        for sign in (1, -2):
            for p, direction in zip(parameters, directions):
                p.add_(direction, alpha=sign * step)
            values.append(model(points).square().sum())
    torch.testing.assert_close((values[0] - values[1]) / (2 * step), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TOWERS)
def test_one_place_for_all_points(name: str) -> None:
    """Duplicates, and a cloud without extent: numbers stay numbers, in training too."""
    model, points = build(name).train(), cloud()
    points[0] = 0.3
    points[1, 32:] = points[1, :32]
    logits = model(points)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_bfloat16_leaves_geometry_alone() -> None:
    model, center = build("vision").eval(), cloud(2, 8)
    exact = model.projection.coordinates(center)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        places = model.projection.coordinates(center)
        assert torch.equal(places, exact) and places.dtype == torch.float32
        assert model.projection.codes(places, model.tower.codes).dtype == torch.float32


def test_wrong_options() -> None:
    for options, message in (
        ({"local_heads": 5}, "local_dim 12 is not a multiple of local_heads 5"),
        ({"tower": {"name": "vision", "embed_dim": 20, "depth": 1, "num_heads": 2}}, "width 20 cannot be halved 3"),
        ({"tower": {"name": "visoin"}}, "model.tower.name: unknown tower 'visoin'. Did you mean 'vision'"),
        ({"tower": {"name": "text", "grid": [3, 3]}}, "model.tower.grid: tower 'text' has no such option"),
        ({"compat": ["warp"]}, "model.compat: expected a list"),
        ({"positions": "twice"}, "model.positions: expected one of 'each', 'once', 'both'"),
        ({"cell_size": 0}, "model: cell_size: 0; use more than 0"),
        ({"voxel_size": -1.0}, "model: voxel_size: -1.0; use more than 0"),
    ):
        config = {"name": "Any2Point", "num_classes": 5, "num_group": 8, "group_size": 4, **TOWERS["vision"], **options}
        with pytest.raises(UserError, match=message):
            MODELS.build(config, "model")
    with pytest.raises(UserError, match=r"direction: .* is not a direction"):
        build("text", direction=[0, 0, 0])
    with pytest.raises(UserError, match="more than the 16 points"):
        build()(cloud(2, 16))


def test_a_random_tower_is_told() -> None:
    model = build()
    (line,) = frozen_at_random(model, [])
    assert "tower.blocks.0.norm1.weight" in line and "--ckpts" in line
    assert not frozen_at_random(model, list(model.state_dict()))
    count = sum(p.numel() for key, p in model.named_parameters() if p.requires_grad and not key.startswith("head."))
    assert f"({count:,} without the head)" in describe_parameters(model)
    model.filled = ("tower.",)
    assert not frozen_at_random(model, [])


# ---------------------------------------------------------------- projection


def test_views_are_rotations() -> None:
    turned = rotations().double()
    torch.testing.assert_close(turned @ turned.mT, torch.eye(3).double().expand(6, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(turned), torch.ones(6).double(), atol=1e-6, rtol=0)
    assert len({tuple(view.round(decimals=3).flatten().tolist()) for view in turned}) == 6


def test_lines() -> None:
    table, points = torch.randn(77, 4), cloud(2, 20)
    line = LineProjection(77, (-1, 0, 1), 2)
    places = line.coordinates(points)
    assert places.shape == (2, 6, 20) and places.min() == 0 and places.max() == 76
    assert line.cells(places).max() < line.num_cells == 39
    ends = torch.tensor([0.0, 76.0, 10.0, 10.25]).expand(1, 6, 4)
    expected = torch.stack([table[0], table[76], table[10], 0.75 * table[10] + 0.25 * table[11]])
    torch.testing.assert_close(line.codes(ends, table)[0], expected)


def test_published_lines_send_the_lowest_to_the_far_end() -> None:
    wrapped = LineProjection(77, (-1, 0, 1), 2, wrap=True)
    points = cloud(1, 20)
    ours = LineProjection(77, (-1, 0, 1), 2).coordinates(points)
    lowest = ours.argmin(dim=2, keepdim=True)
    assert (wrapped.coordinates(points).gather(2, lowest) == 76.5).all()


def test_codes_of_a_picture() -> None:
    """Corners of the picture have the codes of the corner patches; between two patches lies their mean."""
    image = ImageProjection((3, 5), 2, 1.8, 2)
    table = torch.randn(15, 4)
    places = torch.tensor([[0.0, 0.0], [9.0, 5.0], [9.0, 0.0], [9 / 8, 0.0]]).expand(1, 6, 4, 2)
    expected = torch.stack([table[0], table[14], table[4], (table[0] + table[1]) / 2])
    torch.testing.assert_close(image.codes(places, table)[0], expected, atol=1e-5, rtol=1e-5)


def test_points_behind_the_border_stay_at_it() -> None:
    image = ImageProjection((4, 4), 14, 1.8, 26)
    points = torch.tensor([[[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0], [0.1, 0.1, 0.1]]])
    places = image.coordinates(points)
    assert places.min() >= 0 and places.max() <= 55
    assert image.cells(places).max() < image.num_cells == 9
    wrapped = ImageProjection((4, 4), 14, 1.8, 26, wrap=True).coordinates(points)
    inside = (places > 0) & (places < 55)
    assert torch.equal(places[inside], wrapped[inside]) and not torch.equal(places, wrapped)


def test_voxels_of_a_grid() -> None:
    grid = torch.cartesian_prod(*(torch.arange(4.0),) * 3)[None] * 0.1
    same = cells_of(voxels(grid + 0.01, 0.199)).same[0]
    assert (same.sum(dim=1) == 8).all()
    far = torch.tensor([[[0.0, 0, 0], [1e4, 0, 0], [0, 1e4, 0], [0, 0, 1e4]]])
    assert len(set(voxels(far, 0.05)[0].tolist())) == 4


# ---------------------------------------------------------------- cells


def test_pooling_over_cells() -> None:
    ids, x = torch.tensor([[3, 3, 9, 3], [1, 2, 1, 2]]), torch.randn(2, 4, 5)
    cells = cells_of(ids)
    for b in range(2):
        for n in range(4):
            members = x[b, ids[b] == ids[b, n]]
            torch.testing.assert_close(cell_mean(x, cells)[b, n], members.mean(dim=0))
            assert torch.equal(cell_max(x, cells)[b, n], members.amax(dim=0))


@pytest.mark.parametrize("total", [None, 9])
def test_norm_counts_every_cell_once(total: int | None) -> None:
    """Equal to BatchNorm1d on one row a cell, with rows of zeros for empty cells where these count."""
    ids, norm, plain = torch.randint(0, 6, (3, 10)), CellNorm(4).train(), nn.BatchNorm1d(4).train()
    nn.init.normal_(norm.weight)
    plain.load_state_dict(norm.state_dict())
    cells = cells_of(ids)
    x = cell_mean(torch.randn(3, 10, 4), cells).requires_grad_()
    keys = [(b, n) for b in range(3) for n in range(10) if cells.first[b, n] == n]
    rows = torch.stack([x[b, n] for b, n in keys])
    if total is not None:
        rows = torch.cat([rows, torch.zeros(3 * total - len(keys), 4)])
    out, expected = norm(x, cells, total), plain(rows)
    for i, (b, n) in enumerate(keys):
        torch.testing.assert_close(out[b, n], expected[i])
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[key], value)
    torch.testing.assert_close(norm.eval()(x, cells, total)[0, 0], plain.eval()(x[:1, 0])[0])


def test_empty_cells_change_training_alone() -> None:
    ours, published, points = build(), build(compat=["empty_cells"]), cloud()
    published.load_state_dict(ours.state_dict())
    assert torch.equal(ours.eval()(points), published.eval()(points))
    assert not torch.equal(ours.train().forward_features(points), published.train().forward_features(points))


# ---------------------------------------------------------------- tokenizer


def test_sizes_of_the_tokenizer() -> None:
    tokenizer = PointPN(dim=48, num_group=5, group_size=3)
    center, tokens = tokenizer(cloud(2, 33))
    assert center.shape == (2, 5, 3) and tokens.shape == (2, 5, 48)
    assert sum(p.numel() for p in PointPN().parameters()) == 276_672


@pytest.mark.parametrize("scaling", ["axis", "cloud"])
def test_tokens_do_not_depend_on_the_order_of_points(scaling: Any) -> None:
    tokenizer, points = PointPN(24, 4, 5, scaling=scaling).eval(), cloud(2, 40)
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(39)])  # sampling starts at the first
    torch.testing.assert_close(tokenizer(points)[1], tokenizer(points[:, order])[1], atol=1e-5, rtol=1e-4)


def test_wave_code() -> None:
    offset = torch.randn(2, 3, 4, 3)
    code = wave_code(offset, 27)
    assert code.shape == (2, 3, 4, 27) and not code[..., 24:].any()
    angle = 100 * offset[..., 1] / 1000 ** (2 / 4)
    torch.testing.assert_close(code[..., 8 + 2], angle.sin())
    torch.testing.assert_close(code[..., 8 + 4 + 2], angle.cos())
    assert math.isclose(float(wave_code(torch.zeros(1, 3), 6).sum()), 3)
