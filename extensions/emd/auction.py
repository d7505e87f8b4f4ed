"""The assignment problem between clouds of equal size, nearly exactly, by an auction with falling epsilon.

Every unassigned point of x bids for the point of y that is worth most to it, by so much that it would then be as well
off with its second choice, and epsilon more; the highest bid wins and turns the previous owner out (D. Bertsekas).
When all are assigned, the mean cost is at most epsilon above the best. Early rounds with a large epsilon find the
prices quickly. B clouds, n points each, U bids of one round.
"""

import torch
from torch import Tensor

from extensions.pointops.check import check_clouds, check_not_empty
from extensions.pointops.reference import pair_distances
from utils.errors import UserError

SHRINK = 5.0  # from one epsilon to the next
FINEST = 1e-9  # of the largest cost: below, prices would stop rising in float64


@torch.no_grad()
def auction_match(x: Tensor, y: Tensor, *, squared: bool = True, eps: float = 1e-3) -> Tensor:
    """The partner in y (B, n, 3) of every point of x (B, n, 3): int64 (B, n), a permutation of every cloud.

    The mean (squared) distance of the pairs is within `eps` of the smallest possible. How many rounds it takes depends
    on the values, so unlike the other operations this one waits for the device. Costs that are not finite count as 0.
    """
    x, y = check_clouds("auction_match", x=x, y=y)
    check_not_empty("auction_match", x=x, y=y)
    if x.shape != y.shape:
        raise UserError(f"auction_match: x and y must have equally many points, got {tuple(x.shape)}, {tuple(y.shape)}")
    if not eps > 0:
        raise UserError(f"auction_match: eps must be above 0, got {eps}")
    cost = pair_distances(x, y)  # (B, n, n)
    cost = (cost if squared else cost.sqrt()).nan_to_num_(0, 0, 0)
    price = torch.zeros(cost.shape[:2], dtype=torch.float64, device=x.device)
    largest = cost.amax((1, 2)).double()  # (B,)
    final = (FINEST * largest).clamp_min(eps)
    step = largest / SHRINK
    while bool((step > final).any()):
        _auction(cost, price, step.maximum(final))
        step = step / SHRINK
    return _auction(cost, price, final)


def _auction(cost: Tensor, price: Tensor, eps: Tensor) -> Tensor:
    """Bid until every point of x has a partner (B, n); raises `price` (B, n) in place."""
    n = cost.shape[1]
    partner = torch.full_like(price, -1, dtype=torch.int64)
    owner = torch.full_like(partner, -1)
    while True:
        cloud, bidder = (partner < 0).nonzero(as_tuple=True)  # (U,) each
        if not len(cloud):
            return partner
        value = -(cost[cloud, bidder] + price[cloud])  # (U, n)
        best, choice = value.topk(min(2, n), dim=1)
        wanted = cloud * n + choice[:, 0]  # the object, counted through the batch
        bid = price.view(-1)[wanted] + best[:, 0] - best[:, -1] + eps[cloud]

        price.view(-1).scatter_reduce_(0, wanted, bid, "amax")
        number = torch.arange(len(bid), device=bid.device)
        highest = bid == price.view(-1)[wanted]
        first = torch.full_like(partner.view(-1), len(bid)).scatter_reduce_(
            0, wanted, torch.where(highest, number, len(bid)), "amin"
        )  # of equal bids the first wins
        won = first[wanted] == number
        wanted, winner = wanted[won], (cloud * n + bidder)[won]

        loser = owner.view(-1)[wanted]
        partner.view(-1)[loser[loser >= 0]] = -1
        owner.view(-1)[wanted] = winner
        partner.view(-1)[winner] = wanted % n
