"""All point cloud operations in one place: `from extensions import ops; ops.knn(...)`.

Clouds are (B, N, 3), features (B, N, C), channels last; indices are int64; distances are squared.
"""

from extensions.chamfer_dist import ChamferDistanceL1, ChamferDistanceL2, ChamferDistanceL2Split, chamfer_distance
from extensions.pointops import (
    ball_query,
    ball_query_count,
    farthest_point_sample,
    gather_points,
    group,
    group_points,
    knn,
    three_nn,
)

__all__ = [
    "ChamferDistanceL1",
    "ChamferDistanceL2",
    "ChamferDistanceL2Split",
    "ball_query",
    "ball_query_count",
    "chamfer_distance",
    "farthest_point_sample",
    "gather_points",
    "group",
    "group_points",
    "knn",
    "three_nn",
]
