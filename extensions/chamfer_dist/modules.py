"""Chamfer distances as modules: the three that point cloud code expects, all means over the batch."""

from typing import Literal

from torch import Tensor, nn

from .chamfer import chamfer_distance


class ChamferDistanceL2(nn.Module):
    """Mean squared distance to the nearest point, both directions added."""

    def __init__(self, ignore_zeros: bool | Literal["sum"] = False) -> None:
        super().__init__()
        self.ignore_zeros: bool | Literal["sum"] = ignore_zeros

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return chamfer_distance(x, y, ignore_zeros=self.ignore_zeros)


class ChamferDistanceL1(ChamferDistanceL2):
    """Mean distance to the nearest point, averaged over both directions."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return chamfer_distance(x, y, norm="l1", ignore_zeros=self.ignore_zeros)


class ChamferDistanceL2Split(nn.Module):
    """The two terms of `ChamferDistanceL2` apart: from x to y, from y to x."""

    def __init__(self, ignore_zeros: bool | Literal["sum"] = False) -> None:
        super().__init__()
        self.ignore_zeros: bool | Literal["sum"] = ignore_zeros

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return chamfer_distance(x, y, reduction="split", ignore_zeros=self.ignore_zeros)
