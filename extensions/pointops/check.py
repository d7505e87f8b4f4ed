"""What every operation asks of its arguments, and the precision it works in.

Geometry is never done below float32: half and bfloat16 are cast up, float64 stays. The checks read shapes, types and
devices only, never values, so that no operation waits for the device.
"""

import functools
import operator

import torch
from torch import Tensor

from utils.errors import UserError


def check_clouds(where: str, *, channels: int | None = 3, **tensors: Tensor) -> list[Tensor]:
    """The named (B, N, channels) clouds in their common precision, or a UserError that names the wrong one."""
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise UserError(f"{where}: {name} must be a floating point tensor, got {kind}")
        if tensor.ndim != 3 or tensor.shape[2] == 0 or channels not in (None, tensor.shape[2]):
            raise UserError(f"{where}: {name} must be (B, N, {channels or 'C'}), got {tuple(tensor.shape)}")
        if tensor.shape[0] != first.shape[0] or tensor.shape[2] != first.shape[2]:
            shapes = f"{tuple(first.shape)} and {tuple(tensor.shape)}"
            raise UserError(f"{where}: {first_name} and {name} differ in batch or channels: {shapes}")
        check_same_device(where, first_name, first, name, tensor)
    clouds = list(tensors.values())
    if all(cloud.dtype == torch.float32 for cloud in clouds):
        return clouds
    precision = functools.reduce(torch.promote_types, (cloud.dtype for cloud in clouds), torch.float32)
    return [cloud.to(precision) for cloud in clouds]


def check_same_device(where: str, first_name: str, first: Tensor, name: str, tensor: Tensor) -> None:
    """Both tensors live on one device."""
    if tensor.device != first.device:
        raise UserError(f"{where}: {first_name} is on {first.device} but {name} is on {tensor.device}")


def check_indices(where: str, indices: Tensor, points_name: str, points: Tensor) -> None:
    """Indices are int64 (B, ...) beside the (B, N, C) tensor they point into."""
    if not isinstance(indices, Tensor) or indices.dtype != torch.int64:
        kind = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise UserError(f"{where}: indices must be an int64 tensor, got {kind}")
    if indices.ndim < 2 or indices.shape[0] != points.shape[0]:
        raise UserError(
            f"{where}: indices must be (B, ...) with the batch of {points_name} {tuple(points.shape)}, "
            f"got {tuple(indices.shape)}"
        )
    check_same_device(where, points_name, points, "indices", indices)


def check_count(where: str, name: str, count: int, *, limit: int | None = None) -> int:
    """A positive whole number, at most `limit` (the number of points there are)."""
    try:
        number = operator.index(count)
    except TypeError:
        raise UserError(f"{where}: {name} must be a whole number, got {count!r}") from None
    if number < 1:
        raise UserError(f"{where}: {name} must be at least 1, got {number}")
    if limit is not None and number > limit:
        raise UserError(f"{where}: {name} = {number} is more than the {limit} points there are")
    return number


def check_not_empty(where: str, **clouds: Tensor) -> None:
    """Every cloud has at least one point (the batch itself may be empty)."""
    for name, cloud in clouds.items():
        if cloud.shape[1] == 0:
            raise UserError(f"{where}: {name} has no points, got {tuple(cloud.shape)}")
