"""Three-point interpolation: neighbours, the two weightings, gradients, few known points."""

from typing import get_args

import pytest
import torch

from extensions.ops import knn, three_interpolate, three_nn, three_nn_weights
from extensions.pointops.interpolate import Weighting
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("point_ops")

KINDS = get_args(Weighting)


def cloud(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_three_nn_is_the_three_nearest() -> None:
    unknown, known = cloud(0, 2, 30, 3), cloud(1, 2, 10, 3)
    for ours, expected in zip(three_nn(unknown, known), knn(unknown, known, 3)):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 2])
def test_missing_neighbours_weigh_nothing(m: int, kind: Weighting) -> None:
    unknown, known = cloud(0, 2, 5, 3).requires_grad_(), cloud(1, 2, m, 3)
    distances, indices = three_nn(unknown, known)
    assert distances[..., m:].isinf().all() and (indices[..., m:] == 0).all()
    weights = three_nn_weights(distances, kind)
    assert (weights[..., m:] == 0).all() and torch.allclose(weights.sum(2), torch.ones(2, 5))
    weights[..., 0].sum().backward()
    assert unknown.grad is not None and unknown.grad.isfinite().all()


def test_the_two_weightings() -> None:
    distances = torch.tensor([[[1.0, 4.0, 16.0]]])
    assert torch.allclose(three_nn_weights(distances, "inverse_distance"), torch.tensor([4.0, 2.0, 1.0]) / 7)
    assert torch.allclose(three_nn_weights(distances, "inverse_squared"), torch.tensor([16.0, 4.0, 1.0]) / 21)


@pytest.mark.parametrize("kind", KINDS)
def test_coincident_point_gets_its_own_feature_and_sound_gradients(kind: Weighting) -> None:
    known, features = cloud(1, 1, 6, 3).requires_grad_(), cloud(2, 1, 6, 4)
    distances, indices = three_nn(known.detach()[:, :4], known)
    out = three_interpolate(features, indices, three_nn_weights(distances, kind))
    assert torch.allclose(out, features[:, :4], atol=1e-5)
    out.sum().backward()
    assert known.grad is not None and known.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: Weighting) -> None:
    inputs = [cloud(i, 2, 5, 3).double().requires_grad_() for i in range(3)]

    def propagate(unknown: torch.Tensor, known: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        distances, indices = three_nn(unknown, known)
        return three_interpolate(features, indices, three_nn_weights(distances, kind))

    assert torch.autograd.gradcheck(propagate, inputs)


def test_features_keep_their_dtype() -> None:
    distances, indices = three_nn(cloud(0, 1, 5, 3), cloud(1, 1, 4, 3))
    weights = three_nn_weights(distances, "inverse_squared")
    features = cloud(2, 1, 4, 8)
    half = three_interpolate(features.bfloat16(), indices, weights)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), three_interpolate(features, indices, weights), atol=0.05)
    assert three_interpolate(features[:0], indices[:0], weights[:0]).shape == (0, 5, 8)


def test_refuses() -> None:
    with pytest.raises(UserError, match="three_nn: known has no points"):
        three_nn(torch.zeros(1, 4, 3), torch.zeros(1, 0, 3))
    with pytest.raises(UserError, match="three_nn_weights: kind must be one of"):
        three_nn_weights(torch.zeros(1, 4, 3), "inverse")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"three_interpolate: indices and weights must both be \(B, n, 3\)"):
        three_interpolate(torch.zeros(1, 4, 2), torch.zeros(1, 5, 3, dtype=torch.int64), torch.zeros(1, 5, 2))
