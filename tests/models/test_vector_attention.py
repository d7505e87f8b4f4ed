"""The layers of Point Transformer against plain formulas, on clouds of any size."""

import pytest
import torch
from torch import Tensor

from extensions import ops
from models.layers.vector_attention import TransitionDown, TransitionUp, VectorAttention, build_levels
from models.point_transformer import PointTransformerClassifier, PointTransformerSegmenter
from utils.checkpoint import load_weights
from utils.errors import UserError


def cloud(batch: int = 2, num_points: int = 40) -> Tensor:
    return torch.randn(batch, num_points, 3)


def plain_attention(layer: VectorAttention, features: Tensor, xyz: Tensor, k: int) -> Tensor:
    """Point by point, as the formula is written."""
    x = layer.enter(features)
    out = torch.empty_like(x)
    for b in range(len(xyz)):
        for n in range(xyz.shape[1]):
            near = (xyz[b] - xyz[b, n]).square().sum(-1).argsort(stable=True)[:k]
            position = layer.position(xyz[b, n] - xyz[b, near])
            score = layer.weigh(layer.query(x[b, n]) - layer.key(x[b, near]) + position)
            weights = (score / x.shape[-1] ** 0.5).softmax(dim=0)
            out[b, n] = (weights * (layer.value(x[b, near]) + position)).sum(0)
    return layer.leave(out) + features


def test_vector_attention_is_its_formula() -> None:
    layer, xyz, features = VectorAttention(6, 8), cloud(2, 15), torch.randn(2, 15, 6)
    neighbors = ops.knn(xyz, xyz, 4)[1]
    torch.testing.assert_close(layer(features, xyz, neighbors), plain_attention(layer, features, xyz, 4))


def test_gradients_of_vector_attention() -> None:
    layer, xyz = VectorAttention(3, 4).double(), cloud(1, 6).double()
    neighbors = ops.knn(xyz, xyz, 3)[1]
    features = torch.randn(1, 6, 3, dtype=torch.float64)
    torch.autograd.gradcheck(lambda f, p: layer(f, p, neighbors), (features.requires_grad_(), xyz.requires_grad_()))


def test_transition_down_equals_concatenation() -> None:
    layer, points, features = TransitionDown(5, 7).eval(), cloud(), torch.randn(2, 40, 5)
    level = build_levels(points, 2, 6, 4)[0]
    center = ops.gather_points(points, level.chosen)
    neighbors = ops.knn(center, points, 6)[1]
    joined = torch.cat([ops.group_points(points, neighbors, center), ops.gather_points(features, neighbors)], dim=-1)
    expected = layer.mlp(joined.flatten(0, 2)).unflatten(0, joined.shape[:3]).amax(2)
    torch.testing.assert_close(layer(features, level), expected)


@pytest.mark.parametrize("points", [cloud(3, 101), torch.cat([cloud(2, 20)] * 3, dim=1), torch.zeros(1, 30, 3)])
def test_levels_are_samples_of_samples_and_their_neighbours(points: Tensor) -> None:
    levels, xyz = build_levels(points, 4, 5, 4), points
    for level in levels:
        torch.testing.assert_close(level.xyz, xyz, rtol=0, atol=0)
        near = ops.knn(xyz, xyz, min(5, xyz.shape[1]))[1]
        assert torch.equal(level.neighbors, near)
        number = level.chosen.shape[1]
        assert number == max(xyz.shape[1] // 4, 1) or level is levels[-1]
        xyz = ops.gather_points(xyz, ops.farthest_point_sample(xyz, number))


@pytest.mark.parametrize("coarse", [1, 2, 9])
def test_transition_up_from_few_points(coarse: int) -> None:
    layer, points = TransitionUp(6, 4).eval(), cloud()
    out = layer(torch.randn(2, coarse, 6), points[:, :coarse], torch.randn(2, 40, 4), points)
    assert out.shape == (2, 40, 4) and out.isfinite().all()


@pytest.mark.parametrize("num_points", [16, 17, 63, 100])
def test_any_number_of_points(num_points: int) -> None:
    options = {"embed_dim": 8, "attention_dim": None, "num_neighbors": 16}
    model = PointTransformerSegmenter(3, bottleneck_dim=8, **options).eval()  # type: ignore[arg-type]
    assert model(cloud(1, num_points)).shape == (1, num_points, 3)


def test_more_neighbours_than_points() -> None:
    with pytest.raises(UserError, match="num_neighbors: 16 is more than the 15 points"):
        PointTransformerClassifier(4, embed_dim=8, attention_dim=8)(cloud(1, 15))


def test_what_is_told_besides_coordinates() -> None:
    options = {"embed_dim": 8, "num_levels": 1, "attention_dim": 8, "num_neighbors": 4, "bottleneck_dim": 8}
    model = PointTransformerSegmenter(3, 2, 3, **options).eval()  # type: ignore[arg-type]
    points, normals, category = cloud(), cloud(), torch.tensor([0, 1])
    logits = model(points, category, normals)
    assert not torch.allclose(logits, model(points, category, -normals))
    assert not torch.allclose(logits, model(points, 1 - category, normals))
    told = torch.nn.functional.one_hot(category, 2).float()[:, None].expand(-1, 40, -1)
    joined = torch.cat([points, normals, told], dim=-1)
    torch.testing.assert_close(model.encoder.enter(points, normals, category), model.encoder.embed(joined))
    with pytest.raises(UserError, match="extra_channels: 3, but the points come with 0"):
        model(points, category)
    with pytest.raises(UserError, match="2 categories"):
        model(points, None, normals)


@pytest.mark.parametrize("wrong", [{"num_levels": 0}, {"stride": 1}])
def test_sizes_that_make_no_sense(wrong: dict) -> None:
    with pytest.raises(UserError, match="use at least"):
        PointTransformerClassifier(4, **wrong)


def test_a_classifier_starts_from_a_segmenter() -> None:
    options = {"embed_dim": 8, "num_levels": 1, "attention_dim": 8, "num_neighbors": 4}
    source = PointTransformerSegmenter(3, bottleneck_dim=8, **options)  # type: ignore[arg-type]
    model = PointTransformerClassifier(3, **options)  # type: ignore[arg-type]
    report = load_weights(model, source.state_dict(), "segmenter", model.key_map, may_differ=("head.",))
    assert {key for key in model.state_dict() if key.startswith("encoder.")} <= set(report.loaded)
    assert all(key.startswith("head.") for key in report.missing)
