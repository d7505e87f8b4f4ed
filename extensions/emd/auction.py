"""The assignment problem between clouds of equal size, nearly exactly, by an auction with falling epsilon."""

import torch
from torch import Tensor

from extensions.library import operators
from extensions.pointops.check import check_clouds, check_not_empty
from utils.errors import UserError


@torch.no_grad()
def auction_match(x: Tensor, y: Tensor, *, squared: bool = True, eps: float = 1e-3) -> Tensor:
    """The partner in y (B, n, 3) of every point of x (B, n, 3): int64 (B, n), a permutation of every cloud.

    The mean (squared) distance of the pairs is within `eps` of the smallest possible; which of the assignments that
    good it is may differ between devices. How many rounds it takes depends on the values, so unlike the other
    operations this one waits for the device. Costs that are not finite count as 0.
    """
    x, y = check_clouds("auction_match", x=x, y=y)
    check_not_empty("auction_match", x=x, y=y)
    if x.shape != y.shape:
        raise UserError(f"auction_match: x and y must have equally many points, got {tuple(x.shape)}, {tuple(y.shape)}")
    if not eps > 0:
        raise UserError(f"auction_match: eps must be above 0, got {eps}")
    return operators.auction(x, y, squared, float(eps))
