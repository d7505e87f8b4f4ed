"""The operations in plain PyTorch: the definition of every result, and the fallback where nothing is compiled.

One function for each operator of `extensions.library`, with the same name and arguments. Tensors are checked and
float32 or float64 already. Rules that every implementation keeps: squared distances are sums of squared differences,
channel after channel, each step rounded (no fused multiply-add, no expanded squares); among equal distances the lowest
index wins; no step waits for the device (but for the auction); a tensor of distances holds at most `points.BLOCK`
numbers at a time.
"""

from .emd import approx_match, approx_match_cost, auction, match_cost_gradients
from .points import (
    ball_query,
    chamfer,
    chamfer_backward,
    chamfer_loss,
    chamfer_loss_backward,
    chamfer_means,
    farthest_point_sample,
    finite_mean,
    gather,
    grads_of_means,
    group,
    knn,
    means_of,
    nearest,
    normalize,
    pair_distances,
    three_interpolate,
    three_interpolate_backward,
    three_nn,
)
from .sort import sort_order
from .window import window_mix, window_scores, window_spread

__all__ = [
    "approx_match",
    "approx_match_cost",
    "auction",
    "ball_query",
    "chamfer",
    "chamfer_backward",
    "chamfer_loss",
    "chamfer_loss_backward",
    "chamfer_means",
    "farthest_point_sample",
    "finite_mean",
    "gather",
    "grads_of_means",
    "group",
    "knn",
    "match_cost_gradients",
    "means_of",
    "nearest",
    "normalize",
    "pair_distances",
    "sort_order",
    "three_interpolate",
    "three_interpolate_backward",
    "three_nn",
    "window_mix",
    "window_scores",
    "window_spread",
]
