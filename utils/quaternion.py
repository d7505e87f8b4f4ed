"""Rotations as unit quaternions (w, x, y, z), Hamilton's product, any leading dimensions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from utils.errors import UserError

AXES = "xyz"
EVEN = ("xyz", "yzx", "zxy")


def multiply(q: Tensor, r: Tensor) -> Tensor:
    """First r, then q."""
    (w, x, y, z), (a, b, c, d) = q.unbind(-1), r.unbind(-1)
    return torch.stack(
        [w * a - x * b - y * c - z * d, w * b + x * a + y * d - z * c,
         w * c - x * d + y * a + z * b, w * d + x * c - y * b + z * a], dim=-1,
    )  # fmt: skip


def inverse(q: Tensor) -> Tensor:
    """Of a unit quaternion."""
    return torch.cat([q[..., :1], -q[..., 1:]], dim=-1)


def rotate(q: Tensor, v: Tensor) -> Tensor:
    """Vectors (..., 3) turned by (..., 4), broadcast over the leading dimensions."""
    w, u = q[..., :1], q[..., 1:]
    across = torch.linalg.cross(u.expand(torch.broadcast_shapes(u.shape, v.shape)), v.expand_as(u + v))
    return v + 2 * (w * across + torch.linalg.cross(u.expand_as(across), across))


def rotate_cloud(q: Tensor, points: Tensor) -> Tensor:
    """Clouds (B, N, 3), each turned by its own quaternion (B, 4)."""
    return rotate(q[:, None], points)


def matrix(q: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3): rotate(q, v) = matrix(q) @ v."""
    return torch.stack([rotate(q, axis.expand(*q.shape[:-1], 3)) for axis in torch.eye(3).to(q)], dim=-1)


def from_euler(angles: Tensor, order: str = "xyz", published_sign: bool = False) -> Tensor:
    """Angles (..., 3) in radians about x, y, z; order "xyz": turn by z first, then y, then x.

    published_sign: even orders come out negated, the same rotation, as the code that SampleNet uses has it.
    """
    half, product = angles / 2, None
    for name in _checked(order):
        axis = AXES.index(name)
        parts = [half[..., axis].cos(), *(half[..., axis].sin() if i == axis else half[..., 0] * 0 for i in range(3))]
        turn = torch.stack(parts, dim=-1)
        product = turn if product is None else multiply(product, turn)
    assert product is not None
    return -product if published_sign and order in EVEN else product


def to_euler(q: Tensor, order: str = "xyz", eps: float = 0.0) -> Tensor:
    """Angles (..., 3) about x, y, z; the middle one of the order lies within a quarter turn."""
    a, b, c = (AXES.index(name) for name in _checked(order))
    sign, turn = (1 if order in EVEN else -1), matrix(q)
    angles = [torch.zeros_like(q[..., 0])] * 3
    angles[a] = torch.atan2(-sign * turn[..., b, c], turn[..., c, c])
    angles[b] = torch.asin((sign * turn[..., a, c]).clamp(-1 + eps, 1 - eps))
    angles[c] = torch.atan2(-sign * turn[..., a, b], turn[..., a, a])
    return torch.stack(angles, dim=-1)


def from_rotation_vector(vector: Tensor) -> Tensor:
    """Axis times angle (..., 3), in radians."""
    angle = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    return torch.cat([(angle / 2).cos(), 0.5 * torch.sinc(angle / (2 * math.pi)) * vector], dim=-1)


def continuous(q: Tensor) -> Tensor:
    """A sequence (T, ..., 4) of the same rotations without jumps between q and -q."""
    flips = torch.where((q[1:] * q[:-1]).sum(dim=-1, keepdim=True) < 0, -1.0, 1.0).to(q).cumprod(dim=0)
    return torch.cat([q[:1], q[1:] * flips])


def angle_between(q: Tensor, r: Tensor) -> Tensor:
    """Geodesic distance of two rotations in radians, from 0 to pi; q and -q are the same rotation."""
    return 2 * (q * r).sum(dim=-1).abs().clamp(max=1).acos()


def _checked(order: str) -> str:
    if sorted(order) != list(AXES):
        raise UserError(f"order: '{order}' must name each of x, y and z once")
    return order
