"""Feature propagation against its definition, written down plainly."""

import torch

from extensions import ops
from models.layers.propagation import FeaturePropagation
from models.layers.rows import Rows


def plain(layer, points, centers, features, own):
    distances, indices = ops.three_nn(points, centers)
    carried = ops.three_interpolate(features, indices, ops.three_nn_weights(distances, "inverse_squared"))
    joined = carried if own is None else torch.cat([own, carried], dim=-1)
    return layer.mlp(joined.flatten(0, 1)).unflatten(0, points.shape[:2])


def test_equals_interpolating_first():
    points, centers, features = torch.rand(2, 40, 3), torch.rand(2, 9, 3), torch.randn(2, 9, 5)
    for own, width in ((points, 3), (None, 0)):
        layer = FeaturePropagation(5, (8, 6), own_channels=width).eval()
        out = layer(points, centers, features, own)
        assert out.shape == (2, 40, 6)
        torch.testing.assert_close(out, plain(layer, points, centers, features, own))


def test_a_centre_keeps_its_feature_and_fewer_than_three_centres_do():
    centers, features = torch.rand(1, 2, 3), torch.randn(1, 2, 4)
    layer = FeaturePropagation(4, (4,))
    layer.mlp = Rows(torch.nn.Linear(4, 4))
    torch.nn.init.eye_(layer.mlp[0].weight)  # type: ignore[arg-type]
    torch.nn.init.zeros_(layer.mlp[0].bias)  # type: ignore[arg-type]
    torch.testing.assert_close(layer(centers, centers, features), features, atol=1e-5, rtol=0)


def test_gradients_reach_features_and_own_channels():
    points, centers = torch.rand(2, 7, 3), torch.rand(2, 4, 3)
    features, own = torch.randn(2, 4, 5, requires_grad=True), torch.randn(2, 7, 2, requires_grad=True)
    FeaturePropagation(5, (6, 3), own_channels=2)(points, centers, features, own).sum().backward()
    assert features.grad is not None and own.grad is not None and own.grad.isfinite().all()
