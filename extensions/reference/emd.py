"""Earth mover's distances in plain PyTorch. B clouds, n points of x, m points of y."""

import torch
from torch import Tensor

from .points import pair_distances

LEVELS = (*(4.0**power for power in range(7, -2, -1)), 0.0)
TINY = 1e-9
SHRINK = 5.0  # from one epsilon of the auction to the next
FINEST = 1e-9  # of the largest cost: below, prices would stop rising in float64


@torch.no_grad()
def approx_match(x: Tensor, y: Tensor) -> Tensor:
    """The plan (B, m, n) of approxmatch: ten rounds, first only to very near points, at last to any."""
    n, m = x.shape[1], y.shape[1]
    left, right = x.new_full(x.shape[:2], max(1, m // n)), y.new_full(y.shape[:2], max(1, n // m))
    squared = pair_distances(y, x)  # (B, m, n)
    plan = torch.zeros_like(squared)
    for level in LEVELS:
        kernel = torch.exp(squared * -level)
        share = left / ((kernel * right[:, :, None]).sum(1) + TINY)  # (B, n)
        flow = kernel.mul_(share[:, None])  # what x offers for a unit of room
        offered = flow.sum(2) * right  # (B, m)
        accepted = (right / (offered + TINY)).clamp_max(1)
        plan += flow.mul_((right * accepted)[:, :, None])
        left = (left - flow.sum(1)).clamp_min(0)
        # what is left of room that was fully taken decides the next round: a difference would round it away
        right = torch.where(accepted < 1, right * TINY / (offered + TINY), right - offered)
    return plan


@torch.no_grad()
def match_cost_gradients(x: Tensor, y: Tensor, plan: Tensor, squared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Cost (B,) of a plan (B, m, n), and its gradients in x and y with the plan held constant."""
    distance = pair_distances(y, x)
    if not squared:
        distance.sqrt_()
    cost = (plan * distance).sum((1, 2))
    weight = 2 * plan if squared else plan / distance.clamp_min(1e-10)
    grad_x, grad_y = torch.empty_like(x), torch.empty_like(y)
    for channel in range(x.shape[2]):
        pull = weight * (x[:, None, :, channel] - y[:, :, None, channel])  # (B, m, n)
        grad_x[..., channel] = pull.sum(1)
        grad_y[..., channel] = -pull.sum(2)
    return cost, grad_x, grad_y


def approx_match_cost(x: Tensor, y: Tensor, squared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Cost (B,) of the approxmatch plan, and its gradients in x and y."""
    return match_cost_gradients(x, y, approx_match(x, y), squared)


@torch.no_grad()
def auction(x: Tensor, y: Tensor, squared: bool, eps: float) -> Tensor:
    """The partner in y of every point of x (B, n), a permutation, by an auction with falling epsilon.

    Every unassigned point of x bids for the point of y that is worth most to it, by so much that it would then be as
    well off with its second choice, and epsilon more; the highest bid wins and turns the previous owner out
    (D. Bertsekas). When all are assigned, the mean cost is at most epsilon above the best. Early rounds with a large
    epsilon find the prices quickly. Costs that are not finite count as 0.
    """
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
    """Bid until every point of x has a partner (B, n); raises `price` (B, n) in place. U bids of one round."""
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
