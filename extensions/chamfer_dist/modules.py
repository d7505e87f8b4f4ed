"""Chamfer distances as modules: the three that point cloud code expects, all means over the batch."""

from typing import Literal

from torch import Tensor, nn

from .chamfer import Norm, Reduction, chamfer_distance


class _ChamferDistance(nn.Module):
    norm: Norm = "l2"
    reduction: Reduction = "mean"

    def __init__(self, ignore_zeros: bool | Literal["sum"] = False) -> None:
        super().__init__()
        self.ignore_zeros = ignore_zeros

    def forward(self, x: Tensor, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return chamfer_distance(x, y, reduction=self.reduction, norm=self.norm, ignore_zeros=self.ignore_zeros)


class ChamferDistanceL1(_ChamferDistance):
    """Mean distance to the nearest point, averaged over both directions."""

    norm = "l1"


class ChamferDistanceL2(_ChamferDistance):
    """Mean squared distance to the nearest point, both directions added."""


class ChamferDistanceL2Split(_ChamferDistance):
    """The two terms of `ChamferDistanceL2` apart: from x to y, from y to x."""

    reduction = "split"
