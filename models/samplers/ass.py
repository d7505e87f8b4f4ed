"""Adaptive Sparse Sampling: a cloud is cut into cells of equal numbers of points, one sample a cell; no step waits for
the one before, so it costs a few sorts.

B clouds, N points, M samples (cells), L points of the largest part.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from extensions import ops
from extensions.pointops.check import check_clouds, check_count
from models.samplers.base import Sampled, Sampler, check_enough
from utils.random import BatchRandom

Axes = Literal["xy", "variance", "all"]
EPS = torch.finfo(torch.float32).eps


def adaptive_sparse_sample(
    points: Tensor, num_samples: int, *, axes: Axes = "xy", member: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Samples (B, M, 3) of clouds (B, N, 3), and their indices (B, M) if they are members of the cloud.

    Slabs along the first axis are cut along the second (and third); all cells hold N / M points, or one more where
    that is no whole number; M may be any number up to N. axes: "xy" as published; "variance", the two along which the
    cloud extends most; "all" three. member: the point nearest to the mean of a cell instead of the mean, which is no
    point of the cloud.
    """
    where = "adaptive_sparse_sample"
    (points,) = check_clouds(where, points=points)
    check_count(where, "num_samples", num_samples, limit=points.shape[1])
    order = cell_order(sort_axes(points, axes), num_samples, levels=3 if axes == "all" else 2)  # (B, N)
    place, inside = parts(points.shape[1], bounds(points.shape[1], num_samples), points.device)  # (M, L)
    index = pick(order, place)  # (B, M, L)
    row = index + points.shape[1] * torch.arange(len(points), device=index.device)[:, None, None]
    cells = points.flatten(0, 1).index_select(0, row.flatten()).view(*index.shape, 3)  # thrice as fast as gather_points
    mean = mean_of(cells, inside, points.shape[1])
    if not member:
        return mean, None
    distance = (cells - mean[:, :, None]).square().sum(3).masked_fill(~inside, torch.inf)
    chosen = index.gather(2, distance.argmin(dim=2, keepdim=True))[..., 0]
    return ops.gather_points(points, chosen), chosen


def sort_axes(points: Tensor, axes: Axes) -> Tensor:
    """Coordinates (B, N, 3) in the order in which a cloud is cut along them."""
    if axes == "xy":
        return points
    spread = points.var(dim=1, correction=0).argsort(dim=1, descending=True, stable=True)
    return points.gather(2, spread[:, None].expand_as(points))


@torch.no_grad()
def cell_order(coordinates: Tensor, num_cells: int, levels: int) -> Tensor:
    """Indices (B, N) in which every cell, and every slab of cells, is one run."""
    length = coordinates.shape[1]
    starts = bounds(length, num_cells)
    order = ops.sort_order(coordinates[..., 0])
    slabs = [0, num_cells]  # where the parts of a level begin, counted in cells
    for level in range(1, levels):
        slabs = split(slabs, levels - level)
        slab = torch.zeros(length, device=order.device)  # of every place, counted from 0
        slab[[starts[cell] for cell in slabs[1:-1]]] = 1
        slab = 1 + slab.cumsum(0).expand_as(order) * EPS  # they differ in the last bits alone: one pass of a radix sort
        # both sorts keep the order of equals: along the axis, then into slabs again
        within = ops.sort_order(coordinates[..., level].gather(1, order))
        within = within.gather(1, ops.sort_order(slab.gather(1, within)))
        order = order.gather(1, within)
    return order


def mean_of(cells: Tensor, inside: Tensor, length: int) -> Tensor:
    """(B, M, 3) over the places that are inside (M, L), of cells (B, M, L, 3)."""
    if cells.shape[1] * cells.shape[2] == length:  # parts of one size: all are inside
        return cells.mean(2)
    weight = inside[..., None].to(cells.dtype)
    return (cells * weight).sum(2) / weight.sum(1)


def pick(order: Tensor, place: Tensor) -> Tensor:
    """Entries of (B, N) at the places (parts, L)."""
    if place.numel() == order.shape[1]:  # parts of one size: every place once, in order
        return order.view(len(order), *place.shape)
    return order.index_select(1, place.flatten()).view(len(order), *place.shape)


def split(cells: Sequence[int], remaining: int) -> list[int]:
    """Every part of several cells cut into as many as leave about equal numbers for the levels that remain."""
    if remaining == 0:
        return list(cells)
    result = [0]
    for first, last in pairwise(cells):
        number = last - first
        pieces = max(1, round(number ** (1 / (remaining + 1))))
        result += [first + number * piece // pieces for piece in range(1, pieces + 1)]
    return result


def bounds(length: int, number: int) -> list[int]:
    """Where `number` parts of nearly equal size begin, and the end."""
    return [length * part // number for part in range(number + 1)]


def parts(length: int, starts: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Places (parts, L) of the members of every part, and which of them are inside; those outside repeat the last."""
    begin = torch.tensor(starts, device=device)
    size = begin.diff()
    offset = torch.arange(max(b - a for a, b in pairwise(starts)), device=device)
    inside = offset < size[:, None]
    return (begin[:-1, None] + offset).clamp(max=length - 1), inside


class ASSSampler(Sampler):
    """Adaptive Sparse Sampling. Means of cells are no points of the cloud: then there are no indices."""

    def __init__(self, num_out: int = 64, axes: Axes = "xy", member: bool = False):
        super().__init__(num_out)
        self.axes, self.member = axes, member

    def forward(self, points: Tensor, rng: BatchRandom | None = None) -> Sampled:
        check_enough(self.num_out, points)
        samples, indices = adaptive_sparse_sample(points, self.num_out, axes=self.axes, member=self.member)
        return Sampled(samples, samples, indices, {})
