"""Choosing points that cover a cloud."""

import operator

from torch import Tensor

from extensions.library import operators
from utils.errors import UserError

from .check import check_clouds, check_count


def farthest_point_sample(
    points: Tensor, num_samples: int, *, start: int | str = 0, skip_near_origin: bool = False
) -> Tensor:
    """Farthest point sampling of (B, N, 3) clouds: indices (B, num_samples), int64, each farthest from those before.

    `start` is the index of the first choice, or "mean": the mean of the cloud then acts as a choice before the first,
    which keeps others away from it but is not returned, and the result does not depend on the order of the points.
    Among equally far points the lowest index wins, so once every distinct point is taken index 0 repeats.
    `skip_near_origin` is the habit of pointnet2_ops, which takes points with squared norm <= 1e-3 for padding: they
    are never chosen (unless as `start`), and if nothing else exists index 0 repeats. Points with a coordinate that is
    not finite are never chosen either. Not differentiable.
    """
    where = "farthest_point_sample"
    (points,) = check_clouds(where, points=points)
    num_samples = check_count(where, "num_samples", num_samples, limit=points.shape[1])
    first = _start_index(start, points.shape[1])
    return operators.farthest_point_sample(points, num_samples, first, skip_near_origin)


def _start_index(start: int | str, num_points: int) -> int:
    """-1 for the mean, else an index into the cloud."""
    if start == "mean":
        return -1
    try:
        index = operator.index(start)  # type: ignore[arg-type]
    except TypeError:
        index = -1
    if not 0 <= index < num_points:
        raise UserError(
            f'farthest_point_sample: start must be "mean" or an index of the {num_points} points, got {start!r}'
        )
    return index
