"""Point-M2AE: results that belong to one cloud, masks, reconstructions, what the switches change."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.layers.hierarchy import pack
from models.masking import RandomMask
from models.point_m2ae import PointM2AE
from models.point_m2ae_finetune import PointM2AEClassifier, PointM2AESegmenter
from utils.checkpoint import load_weights
from utils.errors import UserError
from utils.random import BatchRandom

SIZES: dict = {
    "num_groups": [32, 16, 6],
    "group_sizes": [6, 4, 3],
    "embed_dims": [8, 16, 24],
    "depths": [2, 1, 2],
    "num_heads": 2,
    "patch_width": 16,
}
RADIUS = (0.32, 0.64, 1.28)


def pretrainer(**options) -> PointM2AE:
    return PointM2AE(**{**SIZES, "decoder_dims": [24, 16], "mask": RandomMask(0.7), "init": "torch", **options})


def clouds(batch: int = 3, num_points: int = 128) -> Tensor:
    """Points on a sphere around a few of its centre, so that padding at the origin has neighbours."""
    points = torch.nn.functional.normalize(torch.randn(batch, num_points, 3), dim=-1)
    points[:, ::2] *= 0.2
    return points


def coarse_mask(batch: int = 3) -> Tensor:
    return torch.stack([torch.randperm(6) < 4 for _ in range(batch)])


def encoded(model: PointM2AE, points: Tensor, mask: Tensor) -> list[list[Tensor]]:
    """Visible tokens of every scale, cloud by cloud."""
    scales = model.group(points)
    packed = pack(model.masks(scales, mask))
    tokens = model.encoder(scales, packed)
    return [[row[valid] for row, valid in zip(t, p.valid)] for t, p in zip(tokens, packed)]


def test_a_masked_cloud_does_not_depend_on_its_batch() -> None:
    model, points, mask = pretrainer().eval(), clouds(), coarse_mask()
    together = encoded(model, points, mask)
    assert len({len(row) for row in together[0]}) > 1, "the batch needs padding"
    for i in range(3):
        for scale, alone in zip(together, encoded(model, points[i : i + 1], mask[i : i + 1])):
            torch.testing.assert_close(scale[i], alone[0], rtol=0, atol=1e-5)


def test_the_loss_of_a_batch_is_the_mean_over_its_hidden_patches() -> None:
    model, points, mask = pretrainer().eval(), clouds(), coarse_mask()
    together, alone = model(points, mask), [model(points[i : i + 1], mask[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together["prediction"], torch.cat([out["prediction"] for out in alone]))
    numbers = torch.tensor([float(len(out["rebuilt"])) for out in alone])
    losses = torch.stack([out["loss"] for out in alone])
    torch.testing.assert_close(together["loss"], (losses * numbers).sum() / numbers.sum())


def test_upstreams_padding_makes_clouds_depend_on_each_other() -> None:
    torch.manual_seed(1)
    model, points, mask = pretrainer(padding_radius=RADIUS).eval(), clouds(), coarse_mask()
    together = encoded(model, points, mask)[0]
    alone = [encoded(model, points[i : i + 1], mask[i : i + 1])[0][0] for i in range(3)]
    assert max((a - b).abs().max() for a, b in zip(together, alone)) > 1e-3


def test_hidden_points_leave_no_trace() -> None:
    """In eval mode what the encoder gives depends on visible groups alone."""
    model, points = pretrainer().eval(), clouds(2)
    scales, mask = model.group(points), coarse_mask(2)
    masks = model.masks(scales, mask)
    finest = replace(scales[0], neighborhood=torch.where(masks[0][..., None, None], 7.0, scales[0].neighborhood))
    packed = pack(masks)
    for one, other, where in zip(model.encoder(scales, packed), model.encoder([finest, *scales[1:]], packed), packed):
        assert torch.equal(one[where.valid], other[where.valid])


def test_outputs_of_the_pretrainer() -> None:
    model, points, mask = pretrainer(), clouds(), coarse_mask()
    out = model(points, mask)
    hidden = model.masks(model.group(points), mask)[1]
    assert out["prediction"].shape == (int(hidden.sum()), 6, 3) and out["target"].shape == (int(hidden.sum()), 4, 3)
    assert out["rebuilt"].tolist() == hidden.flatten().nonzero()[:, 0].tolist()
    assert pretrainer(points_per_patch=4)(points, mask)["prediction"].shape[1] == 4


def test_masks_repeat_with_their_source() -> None:
    model = pretrainer()
    scales = model.group(clouds())
    first, second, other = (model.masks(scales, rng=BatchRandom(seed))[-1] for seed in (1, 1, 3))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert first.sum(dim=1).tolist() == [int(0.7 * 6)] * 3


@pytest.mark.parametrize("hidden, what", [(0, "none"), (6, "all")])
def test_nothing_or_everything_hidden_is_refused(hidden: int, what: str) -> None:
    with pytest.raises(UserError, match=f"hides {what} of the 6 patches"):
        pretrainer()(clouds(), (torch.arange(6) < hidden).expand(3, 6))


def test_unequal_masks_are_refused() -> None:
    mask = coarse_mask()
    mask[0] = torch.arange(6) < 2
    with pytest.raises(UserError, match="the same number of patches"):
        pretrainer()(clouds(), mask)


def test_reconstruction() -> None:
    model, points, mask = pretrainer().eval(), clouds(), coarse_mask()
    seen, rebuilt = model.reconstruct(points, mask)
    scales = model.group(points)
    masks, out = model.masks(scales, mask), model(points, mask)
    placed = scales[1].center.flatten(0, 1)[out["rebuilt"], None] + out["prediction"]
    start = 0
    for i, hidden in enumerate(masks[1]):
        number = int(hidden.sum())
        torch.testing.assert_close(rebuilt[i, : number * 6], placed[start : start + number].flatten(0, 1))
        start += number
    visible = int((~masks[0][0]).sum())
    first = (scales[0].neighborhood + scales[0].center[:, :, None])[0][~masks[0][0]]
    torch.testing.assert_close(seen[0, : visible * 6], first.flatten(0, 1))
    distance = torch.cdist(seen.flatten(0, 1), points.flatten(0, 1)).amin(1)
    assert distance.max() < 1e-3, "all points seen are points of the clouds, also those that fill up"


def test_features_leave_out_what_no_group_holds() -> None:
    model, points = pretrainer().eval(), clouds(2, 128)
    everything = model.encoder(model.group(points))[-1]
    assert model.forward_features(points).shape == everything.shape
    assert not torch.equal(model.forward_features(points), everything)


def test_gradients_reach_the_points() -> None:
    points = clouds(2).requires_grad_()
    pretrainer()(points)["loss"].backward()
    assert points.grad is not None and points.grad.isfinite().all() and points.grad.abs().sum() > 0


def test_double_precision_and_two_or_four_scales() -> None:
    assert pretrainer().double().eval().encode(clouds().double()).dtype == torch.float64
    two: dict = {"num_groups": [16, 6], "group_sizes": [4, 3], "embed_dims": [8, 16], "depths": [1, 1]}
    assert PointM2AE(**two, num_heads=2, decoder_dims=[16], decoder_depths=[1])(clouds())["loss"].isfinite()
    four: dict = {"num_groups": [32, 16, 8, 4], "group_sizes": [4] * 4, "embed_dims": [8] * 4, "depths": [1] * 4}
    decoder: dict = {"decoder_dims": [8] * 3, "decoder_depths": [1] * 3, "decoder_up_blocks": [1, 2]}
    assert PointM2AE(**four, **decoder, num_heads=2, patch_width=16)(clouds())["loss"].isfinite()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"depths": [1, 1]}, r"one entry a scale is needed in embed_dims, depths, found \[3, 2\]"),
        ({"num_groups": [8, 16, 4]}, "must fall"),
        ({"decoder_dims": [24]}, "3 scales take 2 entries in decoder_dims"),
        ({"decoder_dims": [16, 16]}, "must begin with 24"),
        ({"embed_dims": [8, 15, 24]}, "15 is not a multiple"),
    ],
)
def test_sizes_that_do_not_fit(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pretrainer(**options)


@pytest.mark.parametrize("radius", [(), (0.0, 0.0, 0.0)])
def test_without_radius_attention_is_global(radius: tuple) -> None:
    model = PointM2AEClassifier(5, local_radius=radius, **SIZES).eval()
    local = PointM2AEClassifier(5, local_radius=RADIUS, **SIZES).eval()
    local.load_state_dict(model.state_dict())
    points = clouds()
    wide = PointM2AEClassifier(5, local_radius=(99.0, 99.0, 99.0), **SIZES).eval()
    wide.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(points), wide(points))
    assert not torch.equal(model.encode(points), local.encode(points))


def test_poolings() -> None:
    tokens = torch.randn(2, 6, 24)
    added, joined = (PointM2AEClassifier(5, pooling, **SIZES).pool(tokens) for pooling in ("sum", "concat"))
    assert torch.equal(added, tokens.mean(1) + tokens.amax(1))
    assert torch.equal(joined, torch.cat([tokens.mean(1), tokens[:, 1:].amax(1)], dim=-1))


def segmenter(**options) -> PointM2AESegmenter:
    small = {**SIZES, "propagation_dims": [12, 10], "head_dims": [16, 12], "num_categories": 3}
    return PointM2AESegmenter(**{"num_parts": 5, **small, **options})


def test_a_label_for_every_point() -> None:
    model, points, category = segmenter().eval(), clouds(), torch.tensor([0, 2, 1])
    logits = model(points, category)
    assert logits.shape == (3, 128, 5)
    for i in range(3):
        torch.testing.assert_close(logits[i : i + 1], model(points[i : i + 1], category[i : i + 1]), rtol=0, atol=1e-5)
    assert not torch.allclose(logits, model(points, category.flip(0)))
    assert segmenter(num_categories=0).eval()(points).shape == (3, 128, 5)
    with pytest.raises(UserError, match="3 categories"):
        model(points)


@pytest.mark.parametrize("model", [PointM2AEClassifier(5, **SIZES), segmenter()])
def test_takes_the_encoder_of_our_pretrainer(model: PointM2AEClassifier | PointM2AESegmenter) -> None:
    pretrained = pretrainer()
    report = load_weights(model, pretrained.state_dict(), "pre-training", model.key_map)
    assert not report.unexpected and not report.reshaped
    assert all(key.startswith(("head.", "norm.")) for key in report.missing)
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(value, pretrained.encoder.state_dict()[key]), key
    whole = load_weights(model, model.state_dict(), "own", model.key_map)
    assert not (whole.missing or whole.unexpected or whole.unused)
