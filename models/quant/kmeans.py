"""Weight sharing: the weights of a layer take one of 2^bits values, found by k-means (Deep Compression, HAQ).

n weights, k clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from utils.errors import UserError

TOLERANCE = 1e-4  # of the variance: less movement of the centroids ends the iterations


@dataclass
class Clusters:
    """labels of the weight's shape, centroids (k,), number of iterations, sum of squared errors."""

    labels: Tensor
    centroids: Tensor
    iterations: int
    inertia: float

    def decode(self) -> Tensor:
        return self.centroids[self.labels]


def lloyd(weight: Tensor, centroids: Tensor, max_iter: int = 50) -> Clusters:
    """k-means on the numbers of a tensor from given centroids, with the rules of scikit-learn.

    One sort; then an iteration costs k binary searches, as a cluster of numbers is an interval. An empty cluster takes
    the number that is farthest from its own centroid; where none is away from its centroid it keeps its place.
    """
    values, order = weight.detach().flatten().double().cpu().sort(stable=True)
    centroids = centroids.detach().double().cpu()
    sums = torch.cat([values.new_zeros(1), values.cumsum(0)])
    smallest_move = TOLERANCE * float(values.var(correction=0))
    before: tuple[Tensor, Tensor] | None = None
    settled, iteration = False, 0
    while iteration < max_iter and not settled:
        iteration += 1
        ranks, own, counts = _intervals(values, centroids)
        moved = _means(values, sums, counts, ranks, own, centroids)
        settled = before is not None and torch.equal(before[0], counts) and torch.equal(before[1], ranks)
        step = float((moved - centroids).square().sum())
        centroids, before = moved, (counts, ranks)
        if step <= smallest_move:
            break
    if not settled:  # the labels belong to the centroids that are returned
        ranks, own, _ = _intervals(values, centroids)
    labels = torch.empty_like(order)
    labels[order] = own
    inertia = float((values - centroids[own]).square().sum())
    return Clusters(labels.reshape(weight.shape).to(weight.device), centroids.to(weight), iteration, inertia)


def _intervals(values: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted numbers -> which centroid owns each interval, the nearest centroid of each number, how many each owns.

    Of two centroids equally near the one of lower index owns a number.
    """
    places, ranks = centroids.sort(stable=True)
    middles = (places[1:] + places[:-1]) / 2
    below = middles.nextafter(middles.new_tensor(-torch.inf))
    middles = torch.where(ranks[1:] < ranks[:-1], below, middles)
    ends = torch.searchsorted(values, middles, right=True)
    counts = torch.diff(ends, prepend=ends.new_zeros(1), append=ends.new_tensor([len(values)]))
    return ranks, ranks.repeat_interleave(counts), counts


def _means(values: Tensor, sums: Tensor, counts: Tensor, ranks: Tensor, own: Tensor, centroids: Tensor) -> Tensor:
    """The mean of every cluster, empty ones filled from the numbers that fit worst."""
    ends = counts.cumsum(0)
    total, number = torch.zeros_like(centroids), torch.zeros_like(centroids)
    total[ranks], number[ranks] = sums[ends] - sums[ends - counts], counts.double()
    empty = torch.nonzero(number == 0).flatten()
    if len(empty):
        away = (values - centroids[own]).square()
        worst = away.argsort(descending=True, stable=True)[: len(empty)]
        worst = worst[away[worst] > 0]  # fewer distinct numbers than clusters: nothing to give
        empty = empty[: len(worst)]
        total.index_add_(0, own[worst], -values[worst])
        number.index_add_(0, own[worst], -torch.ones_like(values[worst]))
        total[empty], number[empty] = values[worst], 1.0
    return torch.where(number > 0, total / number.clamp(min=1), centroids)


def quantile_centroids(weight: Tensor, number: int) -> Tensor:
    """Equally filled starting clusters: the quantiles (i + 0.5) / number."""
    values = weight.detach().flatten().double().sort().values
    places = (torch.arange(number, dtype=torch.float64, device=values.device) + 0.5) / number * (len(values) - 1)
    low = places.floor().long()
    high = (low + 1).clamp(max=len(values) - 1)
    return torch.lerp(values[low], values[high], places - low).to(weight)


def even_centroids(weight: Tensor, number: int) -> Tensor:
    """Equal steps from the smallest to the largest weight: the few large ones, which matter, get clusters."""
    low, high = weight.detach().aminmax()
    places = (torch.arange(number, device=weight.device, dtype=torch.float64) + 0.5) / number
    return (low.double() + places * (high.double() - low.double())).to(weight)


def spread_centroids(weight: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """k-means++: each new centre is a weight drawn with probability proportional to its squared distance."""
    values = weight.detach().flatten().double().cpu()
    centers = values[torch.randint(len(values), (1,), generator=generator)]
    away = (values - centers).square()
    for _ in range(number - 1):
        drawn = away.sum() > 0
        at = torch.multinomial(away, 1, generator=generator) if drawn else torch.zeros(1, dtype=torch.long)
        centers = torch.cat([centers, values[at]])
        away = torch.minimum(away, (values - values[at]).square())
    return centers.to(weight)


def cluster_means(weight: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
    """(k,) mean of the weights of every cluster; an empty one keeps its entry of `centroids`."""
    flat = labels.flatten().long()
    total = torch.zeros_like(centroids).index_add_(0, flat, weight.flatten().to(centroids.dtype))
    number = torch.bincount(flat, minlength=len(centroids))
    return torch.where(number > 0, total / number.clamp(min=1), centroids)


class Lookup(torch.autograd.Function):
    """codebook[labels]; the gradient of an entry is the sum, or the mean, of the gradients of its weights."""

    @staticmethod
    def forward(ctx, codebook: Tensor, labels: Tensor, mean: bool) -> Tensor:
        ctx.save_for_backward(labels)
        ctx.size, ctx.mean = len(codebook), mean
        return codebook[labels.long()]

    @staticmethod
    def backward(ctx, grad: Tensor):
        (labels,) = ctx.saved_tensors
        flat = labels.flatten().long()
        summed = grad.new_zeros(ctx.size).index_add_(0, flat, grad.flatten())
        if ctx.mean:
            summed = summed / torch.bincount(flat, minlength=ctx.size).clamp(min=1)
        return summed, None, None


class Project(torch.autograd.Function):
    """Every weight becomes the mean of its cluster; straight-through: the gradient goes to the weights as it is."""

    @staticmethod
    def forward(ctx, weight: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
        return cluster_means(weight, labels, centroids)[labels.long()]

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None, None


class SharedWeight(nn.Module):
    """Parametrization: codebook (k,) -> weight. What trains is the codebook; the labels are fixed."""

    def __init__(self, clusters: Clusters, bits: int, grad: Literal["sum", "mean"]):
        super().__init__()
        self.bits, self.mean = bits, grad == "mean"
        self.labels: Tensor
        self.start: Tensor
        self.register_buffer("labels", clusters.labels.to(torch.uint8))
        self.register_buffer("start", clusters.centroids.clone(), persistent=False)

    def forward(self, codebook: Tensor) -> Tensor:
        return Lookup.apply(codebook, self.labels, self.mean)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is to be trained, for a given weight."""
        return cluster_means(weight.detach(), self.labels, self.start)

    def initial(self) -> Tensor:
        return self.start

    def pack(self, codebook: Tensor) -> dict[str, Tensor]:
        return {"codes": self.labels, "codebook": codebook.detach()}


class ProjectedWeight(SharedWeight):
    """Parametrization as published: dense weights train, and what is used are the means of their clusters.

    For every optimizer that treats weights one by one this is the same as a projection after each step.
    """

    def forward(self, codebook: Tensor) -> Tensor:
        return Project.apply(codebook, self.labels, self.start)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.detach()

    def initial(self) -> Tensor:
        return self.start[self.labels.long()]

    def pack(self, codebook: Tensor) -> dict[str, Tensor]:
        return {"codes": self.labels, "codebook": cluster_means(codebook.detach(), self.labels, self.start)}


class KMeans:
    """One codebook a layer, 2^bits values, fewer where the layer has fewer weights.

    max_iter: iterations of k-means (published: 3 while searching, 50 at the end). start: "quantile" (equally filled),
    "even" (equal steps), "best" of both, or "spread" (k-means++, drawn with `seed`). train: "codebook", or "project",
    the published way, where dense weights train. grad: an entry of the codebook gets the sum (Deep Compression) or the
    mean (the published way) of its gradients.
    """

    def __init__(
        self,
        max_iter: int = 50,
        start: Literal["best", "quantile", "even", "spread"] = "best",
        train: Literal["codebook", "project"] = "codebook",
        grad: Literal["sum", "mean"] = "sum",
        seed: int = 0,
    ):
        if max_iter < 1:
            raise UserError(f"quantizer.max_iter: {max_iter}; use at least 1")
        self.max_iter, self.start, self.train, self.grad, self.seed = max_iter, start, train, grad, seed

    def cluster(self, weight: Tensor, bits: int, name: str = "weight") -> Clusters:
        """The codebook always has min(2^bits, n) entries, so that its shape says nothing of the values; where fewer
        values are distinct, the last ones stay unused."""
        if not bool(torch.isfinite(weight).all()):
            raise UserError(f"{name}: holds values that are not finite; the checkpoint is damaged or its run diverged")
        size = min(2**bits, weight.numel())
        number = min(size, int(weight.detach().unique().numel()))
        found = [lloyd(weight, centroids, self.max_iter) for centroids in self._starts(weight, number)]
        clusters = min(found, key=lambda each: each.inertia)
        unused = clusters.centroids[-1:].expand(size - number)
        clusters.centroids = torch.cat([clusters.centroids, unused])
        return clusters

    def _starts(self, weight: Tensor, number: int) -> list[Tensor]:
        if self.start == "spread":
            return [spread_centroids(weight, number, torch.Generator().manual_seed(self.seed))]
        kinds = {"quantile": [quantile_centroids], "even": [even_centroids]}
        return [kind(weight, number) for kind in kinds.get(self.start, [quantile_centroids, even_centroids])]

    def weight(self, weight: Tensor, bits: int, name: str = "weight") -> SharedWeight:
        clusters = self.cluster(weight, bits, name)
        kind = SharedWeight if self.train == "codebook" else ProjectedWeight
        return kind(clusters, bits, self.grad)

    def activation(self, bits: int) -> nn.Module:
        raise UserError("quantize: inputs of layers are rounded to equal steps; use quantizer {name: linear}")

    def table_bytes(self, shape: torch.Size, bits: int) -> dict[str, int]:
        """Values of each stored table besides the codes."""
        return {"codebook": min(2**bits, shape.numel())}
