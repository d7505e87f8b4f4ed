"""The compiled operations that point cloud code used to need, where they are installed (both need a GPU)."""

import pytest
import torch

from extensions import ops

pytestmark = pytest.mark.gpu


def cloud() -> torch.Tensor:
    return torch.randn(2, 500, 3, generator=torch.Generator().manual_seed(0)).cuda()


def test_pointnet2_ops() -> None:
    peer = pytest.importorskip("pointnet2_ops.pointnet2_utils")
    points = cloud()
    chosen = ops.farthest_point_sample(points, 64, skip_near_origin=True)
    assert torch.equal(peer.furthest_point_sample(points, 64).long(), chosen)
    query = ops.gather_points(points, chosen)
    assert torch.equal(peer.ball_query(0.5, 16, points, query).long(), ops.ball_query(query, points, 0.5, 16))
    distances, indices = peer.three_nn(points, query)
    expected = ops.three_nn(points, query)
    assert torch.equal(indices.long(), expected[1])
    torch.testing.assert_close(distances, expected[0].sqrt())


def test_knn_cuda() -> None:
    peer = pytest.importorskip("knn_cuda")
    points = cloud()
    distances, indices = peer.KNN(k=8, transpose_mode=True)(points, points[:, :50])
    expected = ops.knn(points[:, :50], points, 8)
    assert torch.equal(indices, expected[1])
    torch.testing.assert_close(distances, expected[0].sqrt())
