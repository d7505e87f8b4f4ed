"""Point-BERT's classifier beside Point-MAE's: same blocks, another embedding, head and start."""

from typing import Any

import torch
from torch import nn

from models.point_bert import PointBERTClassifier, WidenedPatchEmbed
from models.point_mae import PointMAEClassifier
from utils.checkpoint import load_weights

SIZES: dict[str, Any] = {"num_classes": 5, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_group": 8, "group_size": 4}


def test_tokens_are_widened_by_one_layer() -> None:
    model = PointBERTClassifier(**SIZES, token_width=16).eval()
    neighborhood, _ = model.group(torch.randn(2, 64, 3))
    embed = model.encoder.embed
    assert isinstance(embed, WidenedPatchEmbed)
    narrow = super(type(embed), embed).forward(neighborhood)
    assert narrow.shape == (2, 8, 16)
    torch.testing.assert_close(embed(neighborhood), narrow @ embed.reduce.weight.T + embed.reduce.bias)


def test_start_and_head() -> None:
    model = PointBERTClassifier(**SIZES)
    assert not model.cls_token.any() and 0.5 < model.cls_pos.std() < 2
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in model.head)
    assert [key for key in model.state_dict() if key.startswith("head.")] == [
        f"head.{layer}.{kind}" for layer in (0, 3) for kind in ("weight", "bias")
    ]


def test_behind_the_embedding_it_is_point_mae() -> None:
    """With Point-MAE's blocks and an embedding that widens nothing, tokens are Point-MAE's."""
    ours, mae = PointBERTClassifier(**SIZES, token_width=24).eval(), PointMAEClassifier(**SIZES).eval()
    kept = {key: value for key, value in mae.state_dict().items() if not key.startswith("head.")}
    ours.load_state_dict(kept, strict=False)
    embed = ours.encoder.embed
    assert isinstance(embed, WidenedPatchEmbed)
    nn.init.eye_(embed.reduce.weight)
    nn.init.zeros_(embed.reduce.bias)
    points = torch.randn(2, 64, 3)
    torch.testing.assert_close(ours.forward_features(points), mae.forward_features(points))


def test_official_pre_training() -> None:
    """Class token and position come from the file, momentum copy, dVAE and other heads stay out."""
    model = PointBERTClassifier(**SIZES, token_width=16)
    inverse = {
        "encoder.embed.first.": "encoder.first_conv.",
        "encoder.embed.second.": "encoder.second_conv.",
        "encoder.embed.reduce.": "reduce_dim.",
        "encoder.pos_embed.": "pos_embed.",
        "encoder.transformer.blocks.": "blocks.blocks.",
        "encoder.transformer.norm.": "norm.",
    }
    official = {}
    for key, value in model.state_dict().items():
        name = next((there + key.removeprefix(ours) for ours, there in inverse.items() if key.startswith(ours)), key)
        if not key.startswith("head."):
            official[f"transformer_q.{name}"] = value + 1
            official[f"transformer_k.{name}"] = value - 1
    others = {"transformer_q.cls_head.0.weight": torch.zeros(3), "dvae.x": torch.zeros(3), "queue": torch.zeros(3)}
    report = load_weights(model, official | others, "Point-BERT.pth", model.key_map)
    assert all(key.startswith("head.") for key in report.missing) and not report.unexpected
    assert (model.cls_token == 1).all()
