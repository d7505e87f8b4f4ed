"""All point cloud operations in one place: `from extensions import ops; ops.knn(...)`.

Clouds are (B, N, 3), features (B, N, C), channels last; indices are int64; distances are squared.
"""

from extensions.chamfer_dist import ChamferDistanceL1, ChamferDistanceL2, ChamferDistanceL2Split, chamfer_distance
from extensions.emd import approx_match, auction_match, earth_mover_distance, match_cost
from extensions.pointops import (
    ball_query,
    ball_query_count,
    farthest_point_sample,
    gather_points,
    group,
    group_points,
    knn,
    normalize,
    sort_order,
    three_interpolate,
    three_nn,
    three_nn_weights,
    window_mix,
    window_scores,
)

__all__ = [
    "ChamferDistanceL1",
    "ChamferDistanceL2",
    "ChamferDistanceL2Split",
    "approx_match",
    "auction_match",
    "ball_query",
    "ball_query_count",
    "chamfer_distance",
    "earth_mover_distance",
    "farthest_point_sample",
    "gather_points",
    "group",
    "group_points",
    "knn",
    "match_cost",
    "normalize",
    "sort_order",
    "three_interpolate",
    "three_nn",
    "three_nn_weights",
    "window_mix",
    "window_scores",
]
