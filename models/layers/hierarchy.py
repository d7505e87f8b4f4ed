"""A cloud at several scales: nested groups, masks carried from the coarsest scale to the finest, packed tokens.

Scale 0 is the finest; its groups are made of points, those of scale i of the centres (tokens) of scale i - 1.
B clouds, N points, G groups, K members a group, L packed tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from extensions import ops
from extensions.pointops.check import check_clouds


@dataclass(frozen=True)
class Scale:
    """The groups of one scale."""

    neighborhood: Tensor  # (B, G, K, 3) coordinates of the members, relative to the centre
    center: Tensor  # (B, G, 3)
    index: Tensor  # (B, G, K) members: numbers of tokens of the next finer scale, of points at the finest


@dataclass(frozen=True)
class Packed:
    """The visible tokens of one scale, ascending, in L places; in a cloud with fewer, hidden ones fill the rest."""

    index: Tensor  # (B, L) token numbers, all different
    valid: Tensor  # (B, L) True = a visible token
    padded: bool  # whether any cloud has fewer than L
    total: int  # visible tokens of the whole batch


def group_scales(
    points: Tensor, num_groups: Sequence[int], group_sizes: Sequence[int], skip_near_origin: bool
) -> list[Scale]:
    """Cut clouds (B, N, 3) into groups, finest scale first.

    Farthest point sampling of points that lie in the order of a farthest point sampling takes them as they lie. So one
    sampling serves all scales: the centres of a scale are the first ones of the scale below.
    """
    (points,) = check_clouds("group_scales", points=points)
    order = ops.farthest_point_sample(points, num_groups[0], skip_near_origin=skip_near_origin)
    centers, finer, scales = ops.gather_points(points, order), points, []
    for number, size in zip(num_groups, group_sizes):
        center = centers[:, :number]
        index = ops.knn(center, finer, size)[1]
        scales.append(Scale(ops.group_points(finer, index, center), center, index))
        finer = center
    return scales


def back_project(hidden: Tensor, scales: Sequence[Scale], first_token_leak: bool = False) -> list[Tensor]:
    """Carry a mask of the coarsest scale (B, G), True = hidden, to all scales; finest first.

    A token is visible if a visible group of the next coarser scale holds it: so everything that a visible token was
    merged from is visible. first_token_leak: upstream's slip, which shows the first token of the first cloud always.
    """
    masks = [hidden]
    for coarse, fine in zip(scales[:0:-1], scales[-2::-1]):
        number = fine.center.shape[1]
        members = coarse.index.masked_fill(masks[0][:, :, None], number)  # those of hidden groups: a place to drop
        visible = hidden.new_zeros(len(hidden), number + 1).scatter(1, members.flatten(1), True)[:, :number]
        if first_token_leak:
            visible[0, 0] = True
        masks.insert(0, ~visible)
    return masks


def pack(masks: Sequence[Tensor], multiple: int = 1) -> list[Packed]:
    """Visible tokens of every scale. How many there are decides shapes: the one question to the device in a step.

    multiple: where clouds differ, L is rounded up to it, so that few different shapes occur from step to step: memory
    is reused and kernels are found in their caches.
    """
    counts = torch.stack([mask.logical_not().sum(dim=1) for mask in masks])  # (scales, B)
    packed = []
    for mask, count in zip(masks, counts.tolist()):
        padded, length = max(count) > min(count), max(count)
        if padded:
            length = min(-(-length // multiple) * multiple, mask.shape[1])
        index = mask.int().argsort(dim=1, stable=True)[:, :length]
        packed.append(Packed(index, ~mask.gather(1, index), padded, sum(count)))
    return packed


def hidden_rows(mask: Tensor, packed: Packed) -> Tensor:
    """Rows (M,) of a flattened (B, G, C) that are hidden, ascending; needs no further word from the device."""
    return mask.flatten().int().argsort(stable=True)[packed.total :]


def put_back(tokens: Tensor, values: Tensor, packed: Packed) -> Tensor:
    """`tokens` (B, G, C) with the packed `values` (B, L, C) of the visible ones in their places."""
    if packed.padded:
        values = torch.where(packed.valid[..., None], values, take(tokens, packed.index).to(values.dtype))
    index = packed.index[..., None].expand_as(values)
    return tokens.scatter(1, index, values.to(tokens.dtype))


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows of `tokens` (B, G, ...) at `index` (B, ...) -> (B, ..., ...); cheaper backwards than indexing."""
    batch, number = tokens.shape[:2]
    offset = torch.arange(0, batch * number, number, device=index.device).view(-1, *[1] * (index.ndim - 1))
    return tokens.flatten(0, 1).index_select(0, (index + offset).flatten()).unflatten(0, index.shape)


def member_mean(values: Tensor, known: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the members `index` (B, G, K) whose value (B, N) is known (B, N) -> (B, G), and where there is any."""
    counted = take(known[..., None].to(values.dtype), index)[..., 0]  # (B, G, K)
    number = counted.sum(-1)
    total = (take(values[..., None], index)[..., 0] * counted).sum(-1)
    return total / number.clamp(min=1), number > 0


def key_bias(packed: Packed) -> Tensor | None:
    """What to add to attention scores so that no token looks at padding (B, 1, 1, L); None where there is none."""
    return _bias(~packed.valid[:, None, None]) if packed.padded else None


@torch.no_grad()
def radius_bias(center: Tensor, radius: float) -> Tensor:
    """What to add to attention scores so that a token sees itself and those closer than the radius (B, 1, G, G)."""
    return _bias(_far(center, radius)[:, None])


@torch.no_grad()
def leaking_bias(center: Tensor, packed: Packed, radius: float) -> Tensor:
    """Upstream's form of `key_bias`: padding, at (0, 0, 0), is seen by tokens closer to it than the radius."""
    center = take(center, packed.index).masked_fill(~packed.valid[..., None], 0)
    either = ~(packed.valid[:, :, None] & packed.valid[:, None, :])
    return _bias((either & _far(center, radius))[:, None])


def _far(center: Tensor, radius: float) -> Tensor:
    """Pairs (B, G, G) at the radius or beyond, from coordinate differences: a token is at distance 0 of itself."""
    return torch.cdist(center, center, compute_mode="donot_use_mm_for_euclid_dist") >= radius


def _bias(blocked: Tensor) -> Tensor:
    return torch.zeros(blocked.shape, device=blocked.device).masked_fill_(blocked, -torch.inf)
