"""PCT: its three forms, its layers against plain formulas, what it refuses."""

import pytest
import torch
from torch import Tensor, nn

from extensions import ops
from models.layers.offset_attention import ColumnAttention, NeighborEmbedding, SelfAttention, groups
from models.pct import PCTClassifier, PCTSegmenter
from models.sortnet import SortNetClassifier
from utils.errors import UserError

SMALL = {"dim": 16, "depth": 2, "num_neighbors": 4, "fuse_dim": 32}


def cloud(batch: int = 2, num_points: int = 40) -> Tensor:
    return torch.randn(batch, num_points, 3)


@pytest.mark.parametrize("tied", [True, False])
def test_column_attention_is_its_formula(tied: bool) -> None:
    layer, x = ColumnAttention(8, tied), 3 * torch.randn(2, 12, 8)
    query, key = layer.query_and_key(x)
    weights = (query @ key.mT).softmax(dim=-1)
    weights = weights / (1e-9 + weights.sum(dim=1, keepdim=True))
    torch.testing.assert_close(layer(x), (layer.value(x).mT @ weights).mT)
    assert (layer.key is None) == tied


def test_plain_attention_is_its_formula() -> None:
    layer, x = SelfAttention(8), torch.randn(2, 12, 8)
    query = layer.query(x)
    torch.testing.assert_close(layer(x), (query @ query.mT / 2**0.5).softmax(-1) @ layer.value(x))


def test_neighbor_embedding_equals_concatenation() -> None:
    layer, points, x = NeighborEmbedding(5, 6).eval(), cloud(), torch.randn(2, 40, 5)
    centers = ops.farthest_point_sample(points, 9)
    neighbors = groups(points, centers, 4)
    around, center = ops.gather_points(x, neighbors), ops.gather_points(x, centers)[:, :, None]
    joined = torch.cat([around - center, center.expand_as(around)], dim=-1)
    expected = layer.mlp(joined.flatten(0, 2)).unflatten(0, joined.shape[:3]).amax(2)
    torch.testing.assert_close(layer(x, centers, neighbors), expected)


@pytest.mark.parametrize("attention", ["naive", "offset"])
@pytest.mark.parametrize("embedding", ["point", "neighbor"])
def test_every_form_learns_and_segments(attention, embedding) -> None:
    options = {**SMALL, "attention": attention, "embedding": embedding}
    logits = PCTClassifier(3, num_groups=[16, 8], **options)(cloud())
    assert logits.shape == (2, 3)
    model = PCTSegmenter(5, 2, label_dim=8, head_dims=[16, 16], **options)
    model(cloud(2, 33), torch.tensor([0, 1])).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_another_attention_takes_the_place() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(dim=1, keepdim=True).expand_as(x)

    model = PCTClassifier(3, num_groups=[16, 8], **SMALL).eval()  # type: ignore[arg-type]
    before, points = model, cloud()
    expected = before(points)
    for layer in model.encoder.layers:
        layer.attention = Mean()
    assert model(points).shape == expected.shape and not torch.allclose(model(points), expected)


def test_order_of_points_does_not_matter() -> None:
    model, points = PCTSegmenter(5, head_dims=[16, 16], **SMALL).eval(), cloud()  # type: ignore[arg-type]
    order = torch.randperm(40)
    torch.testing.assert_close(model(points[:, order]), model(points)[:, order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("points", [torch.zeros(2, 40, 3), cloud(1, 10).repeat(2, 4, 1)])
def test_duplicates(points: Tensor) -> None:
    assert PCTClassifier(3, num_groups=[16, 8], **SMALL).eval()(points).isfinite().all()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options, number, message",
    [
        ({}, 300, "512 centres are more than the 300 points"),
        ({"num_groups": [16, 8], "num_neighbors": 20}, 40, "num_neighbors: 20 is more than the 16 points"),
        ({"num_groups": [8, 16]}, 40, "two numbers of centres"),
        ({"dim": 18}, 40, "multiple of 4"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(options, number, message) -> None:
    with pytest.raises(UserError, match=message) as told:
        PCTClassifier(3, **{"dim": 16, **options})(cloud(1, number))
    assert "\n" not in str(told.value)


def test_sortnet_tells_what_does_not_fit() -> None:
    with pytest.raises(UserError, match="num_kept: 64 is more than the 40 points"):
        SortNetClassifier(3)(cloud(1, 40))
    with pytest.raises(UserError, match="more than the 4 channels"):
        SortNetClassifier(3, local_dim=4, num_heads=2, cross_heads=2)
