"""Rotations against rotation matrices."""

import math

import pytest
import torch

from utils import quaternion
from utils.errors import UserError

ORDERS = ("xyz", "yzx", "zxy", "xzy", "yxz", "zyx")


def unit(number: int = 6, seed: int = 0) -> torch.Tensor:
    draws = torch.randn(number, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(draws, dim=1)


def about(axis: int, angle: float) -> torch.Tensor:
    """The textbook matrix."""
    turn = torch.eye(3, dtype=torch.float64)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    turn[a, a] = turn[b, b] = math.cos(angle)
    turn[b, a], turn[a, b] = math.sin(angle), -math.sin(angle)
    return turn


def test_matrices_multiply_as_quaternions_do() -> None:
    q, r = unit(), unit(seed=1)
    torch.testing.assert_close(
        quaternion.matrix(quaternion.multiply(q, r)), quaternion.matrix(q) @ quaternion.matrix(r)
    )
    torch.testing.assert_close(quaternion.matrix(quaternion.inverse(q)), quaternion.matrix(q).mT)
    points = torch.randn(6, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(quaternion.rotate_cloud(q, points), points @ quaternion.matrix(q).mT)


@pytest.mark.parametrize("order", ORDERS)
def test_euler_angles(order: str) -> None:
    angles = torch.tensor([[0.3, -0.5, 0.7], [-1.0, 0.2, 0.4]], dtype=torch.float64)
    q = quaternion.from_euler(angles, order)
    for turn, row in zip(quaternion.matrix(q), angles.tolist()):
        expected = torch.eye(3, dtype=torch.float64)
        for name in order:
            expected = expected @ about("xyz".index(name), row["xyz".index(name)])
        torch.testing.assert_close(turn, expected)
    torch.testing.assert_close(quaternion.to_euler(q, order), angles)
    same = quaternion.from_euler(angles, order, published_sign=True)
    torch.testing.assert_close(quaternion.matrix(same), quaternion.matrix(q))


def test_angle_between_is_the_geodesic_and_has_no_nan() -> None:
    still = torch.tensor([[1.0, 0, 0, 0]])
    for angle in (0.0, 0.4, 3.0):
        turned = quaternion.from_rotation_vector(torch.tensor([[0.0, angle, 0]]))
        torch.testing.assert_close(quaternion.angle_between(still, turned), torch.tensor([angle]), atol=1e-3, rtol=0)
        torch.testing.assert_close(quaternion.angle_between(still, -turned), torch.tensor([angle]), atol=1e-3, rtol=0)
    assert quaternion.angle_between(still * 1.0001, still) == 0


def test_no_jumps() -> None:
    q = unit(1).repeat(5, 1) * torch.tensor([1, -1, -1, 1, -1])[:, None]
    assert torch.equal(quaternion.continuous(q), q[:1].repeat(5, 1))


def test_wrong_order() -> None:
    with pytest.raises(UserError, match="each of x, y and z once"):
        quaternion.from_euler(torch.zeros(1, 3), "xyx")
