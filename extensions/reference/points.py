"""Sampling, neighbours, interpolation and Chamfer distances in plain PyTorch.

B clouds, N points, M queries, C channels.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 1 << 20  # 4 MB of float32: stays in a CPU's cache
FAR = 1e10  # the running minimum before the first choice, as in pointnet2_ops
NEAR_ORIGIN = 1e-3  # squared norm up to which pointnet2_ops takes a point for padding


def pair_distances(query: Tensor, points: Tensor) -> Tensor:
    """Squared distances (B, M, N) of every query (B, M, C) to every point (B, N, C)."""
    columns, rows = (
        query.mT.contiguous().unsqueeze(3),
        points.mT.contiguous().unsqueeze(2),
    )  # (B, C, M, 1), (B, C, 1, N)
    total = torch.sub(columns[:, 0], rows[:, 0]).square_()
    difference = torch.empty_like(total)
    for channel in range(1, query.shape[2]):
        torch.sub(columns[:, channel], rows[:, channel], out=difference)
        total.add_(difference.square_())
    return total


def blocks(query: Tensor, points: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of the batch and of the queries whose distance matrices hold about BLOCK numbers."""
    batch, num_query, num_points = query.shape[0], query.shape[1], max(1, points.shape[1])
    rows = max(1, min(num_query, BLOCK // num_points))
    clouds = max(1, BLOCK // (rows * num_points))
    for i in range(0, batch, clouds):
        for j in range(0, num_query, rows):
            yield slice(i, i + clouds), slice(j, j + rows)


def gather(points: Tensor, indices: Tensor) -> Tensor:
    """Rows of `points` (B, N, C) at `indices` (B, ...): (B, ..., C)."""
    batch = torch.arange(points.shape[0], device=points.device)
    return points[batch.view(-1, *[1] * (indices.ndim - 1)), indices]


def without_broken(points: Tensor) -> tuple[Tensor, Tensor]:
    """Clouds whose broken points lie so far away that they move no minimum, and the mask (B, N) of the sound ones."""
    finite = points.square().sum(2).isfinite()
    return points.masked_fill(~finite[..., None], 1e18), finite


def finite_mean(points: Tensor) -> Tensor:
    """Mean (B, 3) of a cloud, with broken points far away."""
    return without_broken(points)[0].permute(2, 0, 1).contiguous().mean(2).T.contiguous()


@torch.no_grad()
def farthest_point_sample(points: Tensor, num_samples: int, start: int, skip_near_origin: bool) -> Tensor:
    """Indices (B, num_samples); with `start` -1 the mean of the cloud acts as a choice before the first."""
    batch, num_points, _ = points.shape
    points, finite = without_broken(points)
    planes = points.permute(2, 0, 1).contiguous()  # (3, B, N)
    delta = torch.empty_like(planes)
    distance = points.new_empty(batch, num_points)

    def measure(center: Tensor) -> Tensor:  # (3, B, 1) -> squared distances (B, N)
        torch.sub(planes, center, out=delta)
        delta.mul_(delta)
        return torch.add(delta[0], delta[1], out=distance).add_(delta[2])

    norm = measure(planes.new_zeros(3, 1, 1)).double()
    candidate = finite & (norm > NEAR_ORIGIN) if skip_near_origin else finite
    closest = torch.full_like(distance, FAR).masked_fill_(~candidate, -1)  # -1 never wins against a candidate
    largest, chosen = distance.new_empty(batch, 1), norm.new_full((batch, 1), max(start, 0), dtype=torch.int64)
    indices = chosen.repeat(1, num_samples)

    if start < 0:
        torch.minimum(closest, measure(finite_mean(points).T[..., None]), out=closest)
        torch.max(closest, 1, keepdim=True, out=(largest, chosen))
        indices[:, :1] = chosen
    for step in range(1, num_samples):
        center = planes.gather(2, chosen.expand(3, batch, 1))
        torch.minimum(closest, measure(center), out=closest)
        torch.max(closest, 1, keepdim=True, out=(largest, chosen))  # the first of equal maxima
        indices[:, step : step + 1] = chosen
    return indices


def smallest(distances: Tensor, k: int) -> Tensor:
    """Indices (..., k) of the smallest entries of (..., N), ascending, lowest index first among equals, NaN last."""
    if distances.dtype == torch.float64 or torch.compiler.is_exporting():  # exchange formats know no bits
        return distances.sort(dim=-1, stable=True).indices[..., :k]
    # topk leaves the order of ties open, so it gets keys without ties: the bits of a non-negative float sort like the
    # float itself, and the index goes below them. The mask drops the sign that a NaN may carry.
    keys = (distances.view(torch.int32) & 0x7FFFFFFF).long()
    keys <<= 32
    keys |= torch.arange(distances.shape[-1], device=distances.device)
    return keys.topk(k, dim=-1, largest=False, sorted=True).values & 0xFFFFFFFF


@torch.no_grad()
def knn(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Squared distances and indices (B, M, k) of the k nearest points of every query."""
    distances = query.new_empty(query.shape[0], query.shape[1], k)
    indices = torch.empty_like(distances, dtype=torch.int64)
    for clouds, rows in blocks(query, points):
        block = pair_distances(query[clouds, rows], points[clouds])
        indices[clouds, rows] = smallest(block, k)
        distances[clouds, rows] = block.gather(2, indices[clouds, rows])
    return distances, indices


@torch.no_grad()
def ball_query(query: Tensor, points: Tensor, radius: float, k: int) -> tuple[Tensor, Tensor]:
    """The first k points (B, M, k) closer than the radius, in index order, and how many were found (B, M)."""
    num_points = points.shape[1]
    number = torch.arange(num_points, device=points.device)
    hits = number.new_full((query.shape[0], query.shape[1], k), num_points)
    for clouds, rows in blocks(query, points):
        inside = pair_distances(query[clouds, rows], points[clouds]) < radius * radius
        keys = torch.where(inside, number, num_points)
        hits[clouds, rows, :num_points] = keys.topk(min(k, num_points), dim=2, largest=False, sorted=True).values
    found = (hits < num_points).sum(2)
    first = torch.where(found > 0, hits[..., 0], 0)
    return torch.where(hits < num_points, hits, first[..., None]), found


def group(points: Tensor, num_group: int, group_size: int, skip_near_origin: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Neighbourhoods (B, G, K, 3) around farthest points, less their centres; centres (B, G, 3); indices (B, G, K)."""
    center = gather(points, farthest_point_sample(points, num_group, 0, skip_near_origin))
    indices = knn(center, points, group_size)[1]
    return gather(points, indices) - center[:, :, None], center, indices


def three_nn(unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The three nearest (B, n, 3); missing places have distance inf and index 0."""
    distances, indices = knn(unknown, known, min(3, known.shape[1]))
    missing = 3 - indices.shape[2]
    if missing:
        distances = torch.nn.functional.pad(distances, (0, missing), value=torch.inf)
        indices = torch.nn.functional.pad(indices, (0, missing))
    return distances, indices


def three_interpolate(features: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums (B, n, C) of rows of features (B, m, C); indices and weights (B, n, K)."""
    return (gather(features, indices) * weights[..., None]).sum(2)


def three_interpolate_backward(
    grad: Tensor, features: Tensor, indices: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of features and weights; differentiable."""
    pulls = grad[:, :, None] * weights[..., None]  # (B, n, K, C)
    grad_features = scatter(pulls.flatten(1, 2), indices.flatten(1), features.shape[1])
    return grad_features, (gather(features, indices) * grad[:, :, None]).sum(3)


def scatter(rows: Tensor, indices: Tensor, num_points: int) -> Tensor:
    """Sums (B, N, C) of rows (B, M, C) that have the same index (B, M): the transpose of `gather`."""
    total = rows.new_zeros(rows.shape[0], num_points, rows.shape[2])
    return total.scatter_add(1, indices[..., None].expand_as(rows), rows)


@torch.no_grad()
def nearest(query: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance and index (B, M) of the point nearest to every query; a NaN is the nearest of all."""
    distances = query.new_empty(query.shape[:2])
    indices = torch.empty_like(distances, dtype=torch.int64)
    for clouds, rows in blocks(query, points):
        block = pair_distances(query[clouds, rows], points[clouds])
        distances[clouds, rows], indices[clouds, rows] = block.min(2)
    return distances, indices


def chamfer(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Squared distances (B, n), (B, m) to the nearest of the other cloud, and its indices, both ways."""
    (dist1, idx1), (dist2, idx2) = nearest(x, y), nearest(y, x)
    return dist1, dist2, idx1, idx2


def chamfer_loss(x: Tensor, y: Tensor, root: bool, whole: bool) -> tuple[Tensor, ...]:
    """Means of the squared distances of `chamfer`, or of the distances, each way, and its indices."""
    dist1, dist2, idx1, idx2 = chamfer(x, y)
    return *means_of(dist1, dist2, root, whole), idx1, idx2


def chamfer_means(x: Tensor, y: Tensor, root: bool, whole: bool) -> tuple[Tensor, Tensor]:
    """The means alone."""
    dist1, dist2, _, _ = chamfer(x, y)
    return means_of(dist1, dist2, root, whole)


def means_of(dist1: Tensor, dist2: Tensor, root: bool, whole: bool) -> tuple[Tensor, Tensor]:
    """Means (B,) of distances (B, n) and (B, m), or of their roots, or means of the whole batch ()."""
    if root:
        dist1, dist2 = dist1.sqrt(), dist2.sqrt()
    return (dist1.mean(), dist2.mean()) if whole else (dist1.mean(1), dist2.mean(1))


def chamfer_backward(
    grad1: Tensor, grad2: Tensor, x: Tensor, y: Tensor, idx1: Tensor, idx2: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x and y through the nearest pairs; differentiable."""
    pull1 = 2 * grad1[..., None] * (x - gather(y, idx1))  # (B, n, 3)
    pull2 = 2 * grad2[..., None] * (y - gather(x, idx2))  # (B, m, 3)
    return pull1 - scatter(pull2, idx2, x.shape[1]), pull2 - scatter(pull1, idx1, y.shape[1])


def chamfer_loss_backward(
    grad1: Tensor, grad2: Tensor, x: Tensor, y: Tensor, idx1: Tensor, idx2: Tensor, root: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and y; differentiable. A distance is taken to have no gradient where it is zero."""
    return chamfer_backward(*grads_of_means(grad1, grad2, x, y, idx1, idx2, root), x, y, idx1, idx2)


def grads_of_means(
    grad1: Tensor, grad2: Tensor, x: Tensor, y: Tensor, idx1: Tensor, idx2: Tensor, root: bool
) -> tuple[Tensor, Tensor]:
    """From the gradients of the means those of the squared distances (B, n) and (B, m)."""
    clouds = 1 if grad1.ndim else x.shape[0]
    shares = [
        (grad[..., None] / (clouds * idx.shape[1])).expand_as(idx) for grad, idx in ((grad1, idx1), (grad2, idx2))
    ]
    if not root:
        return shares[0], shares[1]
    squared = (x - gather(y, idx1)).square().sum(2), (y - gather(x, idx2)).square().sum(2)
    return shares[0] * root_gradient(squared[0]), shares[1] * root_gradient(squared[1])


def root_gradient(squared: Tensor) -> Tensor:
    """Derivative of the roots of squared distances, taken as zero where they are zero."""
    zero = squared == 0
    return (0.5 / squared.masked_fill(zero, 1).sqrt()).masked_fill(zero, 0)


@torch.no_grad()
def normalize(points: Tensor) -> Tensor:
    """Clouds moved to mean 0 and scaled to largest radius 1."""
    # (B, 3, N): long rows are reduced several times faster than columns of three
    rows = points.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    rows -= rows.mean(dim=2, keepdim=True)
    radius = rows.square().sum(dim=1).amax(dim=1).sqrt()[:, None, None]
    rows /= radius.clamp(min=1e-12)
    return rows.transpose(1, 2).contiguous()
