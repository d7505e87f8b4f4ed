"""Earth mover's distance as one function."""

from typing import Literal, get_args

from torch import Tensor

from extensions.library import operators
from extensions.pointops import gather_points
from extensions.pointops.check import check_clouds, check_not_empty
from extensions.pointops.numeric import safe_sqrt
from utils.errors import UserError

from .auction import auction_match

Method = Literal["approxmatch", "auction"]
Reduction = Literal["mean", "none"]


def earth_mover_distance(
    x: Tensor,
    y: Tensor,
    *,
    method: Method = "approxmatch",
    squared: bool = True,
    eps: float = 1e-3,
    reduction: Reduction = "mean",
) -> Tensor:
    """What it costs to move x (B, n, 3) onto y (B, m, 3), a point of x: per cloud (B,) or their mean.

    method "approxmatch": a soft plan, any sizes, the value of Point-MAE's `emd` (sum over the plan, divided by n);
    SampleNet's is n times that with squared=False. "auction": a one to one assignment for n = m, at most `eps` above
    the exact distance. The matching is a constant in the backward pass.
    """
    for name, value, allowed in (("method", method, Method), ("reduction", reduction, Reduction)):
        if value not in get_args(allowed):
            raise UserError(f"earth_mover_distance: {name} must be one of {get_args(allowed)}, got {value!r}")
    x, y = check_clouds("earth_mover_distance", x=x, y=y)
    if method == "approxmatch":
        check_not_empty("earth_mover_distance", x=x, y=y)
        cost = operators.approx_match_cost(x, y, squared)[0] / x.shape[1]
    else:
        distance = (x - gather_points(y, auction_match(x, y, squared=squared, eps=eps))).square().sum(2)  # (B, n)
        cost = (distance if squared else safe_sqrt(distance)).mean(1)
    return cost.mean() if reduction == "mean" else cost
