"""Virtual projection: six views give every 3D token a place among the positions a frozen transformer knows.

B clouds, V = 6 views, N tokens, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError

# Degrees about x, y and z of the six views: four around the cloud, from below, from above.
ANGLES = ((0, 0, 90), (90, 0, 90), (180, 0, 90), (270, 0, 90), (0, -90, 90), (0, 90, 90))
TINY = 1e-12


def rotations() -> Tensor:
    """(V, 3, 3): Rx Ry Rz of every view."""
    return torch.tensor([_rotation(*(math.radians(angle) for angle in angles)) for angles in ANGLES])


def _rotation(x: float, y: float, z: float) -> list[list[float]]:
    sx, cx, sy, cy, sz, cz = math.sin(x), math.cos(x), math.sin(y), math.cos(y), math.sin(z), math.cos(z)
    return [
        [cy * cz, -cy * sz, sy],
        [sx * sy * cz + cx * sz, cx * cz - sx * sy * sz, -sx * cy],
        [sx * sz - cx * sy * cz, cx * sy * sz + sx * cz, cx * cy],
    ]


class Projection(nn.Module):
    """What lines and images share: the turned cloud."""

    num_cells: int  # of one view, empty ones among them
    rotation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rotation", rotations(), persistent=False)

    def turn(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> (B, V, N, 3)."""
        return (points[:, None, :, None] * self.rotation[:, None]).sum(-1)  # no matmul: autocast would round it

    def coordinates(self, points: Tensor) -> Tensor:
        """Abstract: (B, N, 3) -> places in every view (B, V, N) or (B, V, N, 2)."""
        raise NotImplementedError

    def codes(self, places: Tensor, table: Tensor) -> Tensor:
        """Abstract: mean over the views of the position codes at the places: (B, N, C)."""
        raise NotImplementedError

    def cells(self, places: Tensor) -> Tensor:
        """Abstract: which cell of its view a token lies in: (B, V, N), int64."""
        raise NotImplementedError


class LineProjection(Projection):
    """3D to 1D: every view onto one direction, spread over the positions of a text.

    wrap: the published rule. Half a position is subtracted modulo the length, which sends the lowest token to the far
    end; codes are taken at the coordinate stretched by (length - 1) / (highest - lowest), and where that is a whole
    number or beyond the last position they are zero. Upstream takes highest and lowest over all clouds of a batch, we
    over the views of one.
    """

    direction: Tensor

    def __init__(self, length: int, direction: Sequence[float], cell_size: float, wrap: bool = False):
        super().__init__()
        norm = math.sqrt(sum(value * value for value in direction))
        if len(direction) != 3 or norm == 0:
            raise UserError(f"direction: {list(direction)} is not a direction; name three numbers, not all zero")
        self.length, self.cell_size, self.wrap = length, cell_size, wrap
        self.num_cells = math.ceil(length / cell_size)
        self.register_buffer("direction", torch.tensor([value / norm for value in direction]), persistent=False)

    def coordinates(self, points: Tensor) -> Tensor:
        turned = self.turn(points)
        x = ((turned - turned.mean(dim=2, keepdim=True)) * self.direction).sum(-1)  # (B, V, N)
        low, high = x.amin(dim=2, keepdim=True), x.amax(dim=2, keepdim=True)
        share = (x - low) / (high - low).clamp(min=TINY)
        if self.wrap:
            return torch.remainder(share * self.length - 0.5, self.length)
        return share * (self.length - 1)

    def codes(self, places: Tensor, table: Tensor, span: Tensor | None = None) -> Tensor:
        """span: of the coordinates, where `wrap` stretches by it; default that of each cloud."""
        last = self.length - 1
        if self.wrap:
            span = (
                places.amax(dim=(1, 2), keepdim=True) - places.amin(dim=(1, 2), keepdim=True) if span is None else span
            )
            places = places * last / span.clamp(min=TINY)
            low, high = places.floor().clamp(max=last), places.ceil().clamp(max=last)
        else:
            low = places.floor()
            high = low + 1
        left, right = (table[index.long().clamp(0, last)] for index in (low, high))  # (B, V, N, C)
        return (left * (high - places)[..., None] + right * (places - low)[..., None]).mean(dim=1)

    def cells(self, places: Tensor) -> Tensor:
        return (places / self.cell_size).floor().long()


class ImageProjection(Projection):
    """3D to 2D: a camera at `distance` from the origin in every view; places are pixels (x, y).

    wrap: what leaves the image comes in again on the other side, as published; else it stays at the border.
    scramble: the published slip of reshaping (channels, tokens) to (tokens, channels) without transposing.
    """

    size: Tensor  # width and height

    def __init__(
        self,
        grid: tuple[int, int],
        patch: int,
        distance: float,
        cell_size: float,
        wrap: bool = False,
        scramble: bool = False,
    ):
        super().__init__()
        self.grid, self.height, self.width = grid, grid[0] * patch, grid[1] * patch
        self.distance, self.cell_size, self.wrap, self.scramble = distance, cell_size, wrap, scramble
        self.columns = math.ceil(self.width / cell_size)
        self.num_cells = self.columns * math.ceil(self.height / cell_size)
        self.register_buffer("size", torch.tensor([float(self.width), float(self.height)]), persistent=False)

    def coordinates(self, points: Tensor) -> Tensor:
        turned = self.turn(points)
        plane = turned[..., :2] / (turned[..., 2:] + self.distance + TINY)
        # a picture that is not square shows more to the side it is longer in
        pixels = (plane * (self.size / self.width) + 1) * self.size / 2 - 0.5
        if self.wrap:
            return torch.remainder(pixels, self.size)
        return torch.minimum(pixels.clamp(min=0), self.size - 1)

    def samples(self, places: Tensor, table: Tensor) -> Tensor:
        """Codes between those of the patches, view by view: (B, V, C, N)."""
        image = table.unflatten(0, self.grid).permute(2, 0, 1)  # (C, rows, columns)
        where = (2 * places / (self.size - 1) - 1).flatten(1, 2)[None]  # (1, B, V N, 2): one image for all
        sampled = F.grid_sample(image[None], where.to(table.dtype), align_corners=True)[0]  # (C, B, V N)
        return sampled.unflatten(-1, (len(ANGLES), -1)).permute(1, 2, 0, 3)

    def codes(self, places: Tensor, table: Tensor) -> Tensor:
        sampled = self.samples(places, table)
        if self.scramble:
            return sampled.reshape(*places.shape[:-1], -1).mean(dim=1)
        return sampled.mT.mean(dim=1)

    def cells(self, places: Tensor) -> Tensor:
        cell = (places / self.cell_size).floor().long()
        return cell[..., 0] + cell[..., 1] * self.columns


def voxels(points: Tensor, size: float) -> Tensor:
    """(B, N, 3) -> which cube of the cloud's own grid a token lies in (B, N), int64."""
    cube = ((points - points.amin(dim=1, keepdim=True)) / size).floor().long()
    return (cube[..., 0] << 42) + (cube[..., 1] << 21) + cube[..., 2]
