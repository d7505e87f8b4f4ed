"""The peer of the benchmark computes what the networks compute; else its ratio means nothing."""

import torch

from models.pct import PCTClassifier
from models.point_transformer import PointTransformerSegmenter
from tools.bench.point_transformer import compare, plain_pct, plain_point_transformer


def test_the_peer_agrees() -> None:
    torch.manual_seed(0)
    segmenter = PointTransformerSegmenter(50, 16, embed_dim=8, num_levels=2, attention_dim=8, num_neighbors=4)
    row = compare("a", segmenter, plain_point_transformer, clouds=2, points=64, rounds=1)
    assert row.startswith(f"| a | {sum(p.numel() for p in segmenter.parameters()):,} | 2 |")
    pct = PCTClassifier(40, dim=16, depth=2, num_groups=[16, 8], num_neighbors=4, fuse_dim=32)
    assert compare("b", pct, plain_pct, clouds=2, points=64, rounds=1).count("|") == 7
