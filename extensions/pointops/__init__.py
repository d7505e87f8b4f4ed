"""Sampling, neighbours, grouping and interpolation of point clouds."""

from .grouping import gather_points, group, group_points
from .interpolate import three_interpolate, three_nn, three_nn_weights
from .neighbours import ball_query, ball_query_count, knn
from .normalize import normalize
from .sampling import farthest_point_sample
from .sort import sort_order
from .window import window_mix, window_scores

__all__ = [
    "ball_query",
    "ball_query_count",
    "farthest_point_sample",
    "gather_points",
    "group",
    "group_points",
    "knn",
    "normalize",
    "sort_order",
    "three_interpolate",
    "three_nn",
    "three_nn_weights",
    "window_mix",
    "window_scores",
]
