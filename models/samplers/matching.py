"""From free points back to points of the cloud: nearest neighbours, duplicates dropped, the rest by farthest points.

B clouds, N points, Q free points, M points wanted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from extensions import ops

BLOCK = 32  # chosen points whose distances to all points are held at a time


@torch.no_grad()
def match(query: Tensor, points: Tensor, num_out: int, complete: bool = True) -> Tensor:
    """Indices (B, M) of points (B, N, 3) that stand for the free points (B, Q, 3).

    complete: each point at most once, in the order in which the free points first meet it, then farthest points; any
    prefix is the same whatever M is. Else the nearest points as they are, repetitions among them (M = Q).
    """
    nearest = ops.knn(query.float(), points.float(), 1)[1][..., 0]  # (B, Q)
    return complete_by_farthest(nearest, points, num_out) if complete else nearest[:, :num_out]


@torch.no_grad()
def complete_by_farthest(indices: Tensor, points: Tensor, num_out: int) -> Tensor:
    """Repetitions in indices (B, Q) dropped; (B, M) after farthest points of the cloud are appended."""
    order, distinct = first_appearances(indices, points.shape[1])
    chosen = order[:, :num_out]
    if chosen.shape[1] < num_out:
        chosen = torch.nn.functional.pad(chosen, (0, num_out - chosen.shape[1]))
    fewest = int(distinct.min())
    if fewest >= num_out:
        return chosen
    wide = points.float() if points.device.type == "mps" else points.double()  # Apple's has no float64
    closest = distance_to(ops.gather_points(wide, indices), wide)  # (B, N), to what is chosen already
    for place in range(fewest, num_out):
        missing = distinct <= place  # (B,)
        farthest = closest.argmax(dim=1).where(missing, chosen[:, place])
        chosen[:, place] = farthest
        closest = torch.minimum(closest, distance_to(ops.gather_points(wide, farthest[:, None]), wide))
    return chosen


def distance_to(chosen: Tensor, points: Tensor) -> Tensor:
    """Squared distance (B, N) of every point (B, N, 3) to the nearest of the chosen (B, Q, 3), a block at a time."""
    closest = points.new_full(points.shape[:2], torch.inf)
    planes = points.permute(2, 0, 1)[:, :, None].contiguous()  # (3, B, 1, N): long rows are reduced quickly
    for part in chosen.permute(2, 0, 1)[..., None].split(BLOCK, dim=2):  # (3, B, block, 1)
        x, y, z = (planes - part).square_()
        closest = torch.minimum(closest, x.add_(y).add_(z).amin(dim=1))
    return closest


def first_appearances(indices: Tensor, num_points: int) -> tuple[Tensor, Tensor]:
    """The distinct ones of indices (B, Q) in order of appearance, repetitions moved behind them, and how many (B,)."""
    places = torch.arange(indices.shape[1], device=indices.device).expand_as(indices)
    first = places.new_full((len(indices), num_points), indices.shape[1]).scatter_reduce(1, indices, places, "amin")
    repeated = first.gather(1, indices) != places
    return indices.gather(1, repeated.int().argsort(dim=1, stable=True)), (~repeated).sum(dim=1)
