"""A training step of Point Transformer and PCT against the published form: python -m tools.bench.point_transformer

The peer runs the same layers with the same weights the way the official code does: coordinates subtracted for all pairs
and sorted in every block, features of neighbours and centres laid out and concatenated before the first layer, what a
cloud's points share repeated at each of them. Farthest point sampling is ours in both. They take turns in one process
and must agree on the loss first.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import ops
from models.layers.offset_attention import NeighborEmbedding
from models.layers.vector_attention import TransitionDown, TransitionUp, VectorAttention
from models.pct import PCTClassifier
from models.point_transformer import PointTransformerSegmenter
from tools.bench.measure import interleaved, machine, seconds
from utils.cpu import tune

PARTS, CATEGORIES, CLASSES = 50, 16, 40
SMALL_LEVELS = {"num_levels": 3, "attention_dim": 32, "num_neighbors": 8, "bottleneck_dim": 128}
SMALL_POINTS = {"dim": 64, "num_neighbors": 16, "fuse_dim": 256, "num_groups": [256, 128]}


def nearest(query: Tensor, points: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Sorted distances of all pairs, the first of them."""
    distances, order = (query[:, :, None] - points[:, None]).square().sum(dim=-1).sort(dim=-1)
    return distances[:, :, :number], order[:, :, :number]


def take(x: Tensor, indices: Tensor) -> Tensor:
    return ops.gather_points(x, indices)


def plain_attention(layer: VectorAttention, features: Tensor, xyz: Tensor, k: int) -> Tensor:
    neighbors, x = nearest(xyz, xyz, k)[1], layer.enter(features)
    query, key, value = layer.query(x), take(layer.key(x), neighbors), take(layer.value(x), neighbors)
    position = layer.position(xyz[:, :, None] - take(xyz, neighbors))
    weights = layer.weigh(query[:, :, None] - key + position)
    weights = F.softmax(weights * layer.scale, dim=-2)
    return layer.leave(torch.einsum("bmnf,bmnf->bmf", weights, value + position)) + features


def one_by_one(layers: nn.Sequential, x: Tensor) -> Tensor:
    """(..., C) -> (..., C'), every module by itself."""
    return nn.Sequential(*layers)(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


def plain_down(layer: TransitionDown, features: Tensor, xyz: Tensor, number: int, k: int) -> tuple[Tensor, Tensor]:
    center = take(xyz, ops.farthest_point_sample(xyz, number))
    neighbors = nearest(center, xyz, k)[1]
    x = torch.cat([take(xyz, neighbors) - center[:, :, None], take(features, neighbors)], dim=-1)
    return center, one_by_one(layer.mlp, x).max(dim=2).values


def plain_up(layer: TransitionUp, coarse: Tensor, coarse_xyz: Tensor, fine: Tensor, xyz: Tensor) -> Tensor:
    distances, indices = nearest(xyz, coarse_xyz, 3)
    weights = 1 / (distances + 1e-8)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    carried = (take(one_by_one(layer.coarse, coarse), indices) * weights[..., None]).sum(dim=2)
    return carried + one_by_one(layer.fine, fine)


def plain_point_transformer(model: PointTransformerSegmenter, points: Tensor, category: Tensor) -> Tensor:
    encoder: Any = model.encoder
    layers: Any = model
    k = encoder.num_neighbors
    told = F.one_hot(category, model.num_categories).float()[:, None].expand(-1, points.shape[1], -1)
    xyz, number = [points], points.shape[1]
    outputs = [plain_attention(encoder.first, encoder.embed(torch.cat([points, told], dim=-1)), points, k)]
    for down, block in zip(encoder.downs, encoder.blocks):
        number //= encoder.stride
        center, x = plain_down(down, outputs[-1], xyz[-1], number, k)
        xyz.append(center)
        outputs.append(plain_attention(block, x, center, k))
    x = plain_attention(model.bottleneck, model.bottleneck_mlp(outputs[-1]), xyz[-1], k)
    for up, block, level in zip(layers.ups, layers.blocks, range(len(xyz) - 2, -1, -1)):
        x = plain_up(up, x, xyz[level + 1], outputs[level], xyz[level])
        x = plain_attention(block, x, xyz[level], k)
    return model.head(x)


def plain_groups(layer: NeighborEmbedding, xyz: Tensor, x: Tensor, number: int, k: int) -> tuple[Tensor, Tensor]:
    centers = ops.farthest_point_sample(xyz, number)
    center = take(xyz, centers)
    around, own = take(x, nearest(center, xyz, k)[1]), take(x, centers)[:, :, None]
    joined = torch.cat([around - own, own.expand_as(around)], dim=-1)
    return center, one_by_one(layer.mlp, joined).max(dim=2).values


def plain_pct(model: PCTClassifier, points: Tensor, category: Tensor) -> Tensor:
    encoder: Any = model.encoder
    assert encoder.num_groups is not None
    xyz, x = points, one_by_one(encoder.embed, points)
    for layer, number in zip(encoder.groups, encoder.num_groups):
        xyz, x = plain_groups(layer, xyz, x, number, encoder.num_neighbors)
    skip, x, outputs = x, one_by_one(encoder.lift, x), []
    for layer in encoder.layers:
        query, key = layer.attention.query_and_key(x)
        weights = (query @ key.mT).softmax(dim=-1)
        weights = weights / (1e-9 + weights.sum(dim=1, keepdim=True))
        x = x + one_by_one(layer.change, x - (layer.attention.value(x).mT @ weights).mT)
        outputs.append(x)
    return model.head(one_by_one(encoder.fuse, torch.cat([*outputs, skip], dim=-1)).max(dim=1).values)


def step(model: nn.Module, forward: Callable[[], Tensor], truth: Tensor) -> Tensor:
    """Loss and gradients, which are then dropped."""
    logits = forward()
    loss = F.cross_entropy(logits.flatten(0, -2), truth.flatten())
    loss.backward()
    model.zero_grad(set_to_none=True)
    return loss.detach()


def compare(name: str, model: nn.Module, peer: Callable, clouds: int, points: int, rounds: int) -> str:
    """A row of the table."""
    generator = torch.Generator().manual_seed(0)
    batch = torch.rand(clouds, points, 3, generator=generator)
    category = torch.randint(CATEGORIES, (clouds,), generator=generator)
    segments = isinstance(model, PointTransformerSegmenter)
    truth = torch.randint(PARTS, (clouds, points), generator=generator) if segments else category
    model.eval()  # no dropout, and statistics stay: both do the same
    contenders: dict[str, Callable[[], Any]] = {
        "published": lambda: step(model, lambda: peer(model, batch, category), truth),
        "ours": lambda: step(model, lambda: model(batch, category) if segments else model(batch), truth),
    }
    losses = [call() for call in contenders.values()]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    published, ours = (statistics.median(times) for times in interleaved(contenders, rounds).values())
    size = sum(p.numel() for p in model.parameters())
    return f"| {name} | {size:,} | {clouds} | {seconds(published)} | {seconds(ours)} | {published / ours:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--clouds", type=int, default=8, help="of the small networks; the published take a quarter")
    parser.add_argument("--small", action="store_true", help="the small networks alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tune()
    torch.manual_seed(0)
    few = max(args.clouds // 4, 1)
    print("| network | parameters | clouds | published formulation | ours | ratio |\n|---|---|---|---|---|---|")
    small = PointTransformerSegmenter(PARTS, CATEGORIES, **SMALL_LEVELS)  # type: ignore[arg-type]
    print(
        compare("small Point Transformer, parts", small, plain_point_transformer, args.clouds, args.points, args.rounds)
    )
    pct = PCTClassifier(CLASSES, **SMALL_POINTS)  # type: ignore[arg-type]
    print(compare("small PCT, classes", pct, plain_pct, args.clouds, args.points, args.rounds))
    if not args.small:
        full = PointTransformerSegmenter(PARTS, CATEGORIES)
        print(compare("Point Transformer, parts", full, plain_point_transformer, few, args.points, args.rounds))
        print(compare("PCT, classes", PCTClassifier(CLASSES), plain_pct, few, args.points, args.rounds))
    print(f"\n{machine()}")


if __name__ == "__main__":
    main()
