"""Chamfer distance between clouds: how far each point is from the nearest of the other cloud, both ways.

Gradients flow through the nearest pairs only. A coordinate that is not finite makes the distance not finite.
B clouds, n and m points.
"""

from typing import Literal, get_args, overload

import torch
from torch import Tensor

from extensions.library import operators
from extensions.pointops import gather_points
from extensions.pointops.check import check_clouds, check_not_empty
from extensions.pointops.numeric import safe_sqrt
from utils.errors import UserError

Reduction = Literal["mean", "split", "patch", "none"]
Norm = Literal["l2", "l1"]


@overload
def chamfer_distance(
    x: Tensor,
    y: Tensor,
    *,
    reduction: Literal["mean", "patch"] = "mean",
    norm: Norm = "l2",
    ignore_zeros: bool | Literal["sum"] = False,
) -> Tensor: ...


@overload
def chamfer_distance(
    x: Tensor,
    y: Tensor,
    *,
    reduction: Literal["split", "none"],
    norm: Norm = "l2",
    ignore_zeros: bool | Literal["sum"] = False,
) -> tuple[Tensor, Tensor]: ...


def chamfer_distance(
    x: Tensor,
    y: Tensor,
    *,
    reduction: Reduction = "mean",
    norm: Norm = "l2",
    ignore_zeros: bool | Literal["sum"] = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Chamfer distance of clouds x (B, n, 3) and y (B, m, 3).

    norm "l2": squared distances, the two directions added; "l1": distances, the two directions averaged (the
    gradient of a distance is taken as zero where points coincide).
    reduction "patch": one value a cloud (B,); "mean": their mean; "split": the mean of each direction apart, neither
    added nor averaged; "none": the distance of every point, (B, n) and (B, m).
    ignore_zeros: points (0, 0, 0) are padding. They are nobody's nearest, their own distance is 0 and they do not
    count in the means; a cloud without a partner has distance 0. "sum" ignores every point whose coordinates sum to 0,
    as the original did (for a batch of one).
    """
    x, y = check_clouds("chamfer_distance", x=x, y=y)
    check_not_empty("chamfer_distance", x=x, y=y)
    for name, value, allowed in (("reduction", reduction, Reduction), ("norm", norm, Norm)):
        if value not in get_args(allowed):
            raise UserError(f"chamfer_distance: {name} must be one of {get_args(allowed)}, got {value!r}")

    if ignore_zeros:
        return _without_padding(x, y, reduction, norm, ignore_zeros)
    if reduction == "none":
        dist1, dist2, _, _ = operators.chamfer(x, y)
        return (dist1, dist2) if norm == "l2" else (safe_sqrt(dist1), safe_sqrt(dist2))
    differentiate = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    means = operators.chamfer_loss if differentiate else operators.chamfer_means
    mean1, mean2 = means(x, y, norm == "l1", reduction != "patch")[:2]
    return (mean1, mean2) if reduction == "split" else _both_ways(mean1, mean2, norm)


def _both_ways(one: Tensor, two: Tensor, norm: Norm) -> Tensor:
    return one + two if norm == "l2" else (one + two) / 2


def _without_padding(
    x: Tensor, y: Tensor, reduction: Reduction, norm: Norm, rule: bool | str
) -> Tensor | tuple[Tensor, Tensor]:
    keep_x, keep_y = _kept(x, rule), _kept(y, rule)
    _, _, to_y, to_x = operators.chamfer(_out_of_reach(x.detach(), keep_x), _out_of_reach(y.detach(), keep_y))
    dist1 = (x - gather_points(y, to_y)).square().sum(2)  # (B, n)
    dist2 = (y - gather_points(x, to_x)).square().sum(2)  # (B, m)
    if norm == "l1":
        dist1, dist2 = safe_sqrt(dist1), safe_sqrt(dist2)
    keep_x, keep_y = keep_x & keep_y.any(1, keepdim=True), keep_y & keep_x.any(1, keepdim=True)
    dist1, dist2 = dist1.masked_fill(~keep_x, 0), dist2.masked_fill(~keep_y, 0)
    if reduction == "none":
        return dist1, dist2
    mean1, mean2 = (dist.sum(1) / keep.sum(1).clamp_min(1) for dist, keep in ((dist1, keep_x), (dist2, keep_y)))
    if reduction == "split":
        return mean1.mean(), mean2.mean()
    patch = _both_ways(mean1, mean2, norm)
    return patch if reduction == "patch" else patch.mean()


def _kept(cloud: Tensor, rule: bool | str) -> Tensor:
    """Mask (B, N) of the points that are not padding."""
    return cloud.sum(2) != 0 if rule == "sum" else (cloud != 0).any(2)


def _out_of_reach(cloud: Tensor, keep: Tensor) -> Tensor:
    """The cloud with ignored points moved so far away that they are nearest to nothing."""
    return cloud.masked_fill(~keep[..., None], torch.finfo(cloud.dtype).max)
