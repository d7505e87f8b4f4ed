"""Every registered model keeps the promises that training, probes and export rely on; Point-MAE keeps its own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import MODELS
from models.layers.extra import WithLosses
from models.masking import RandomMask
from models.point_mae import PointMAE, PointMAEClassifier
from utils.errors import UserError
from utils.random import BatchRandom
from utils.schema import parameters

# Small sizes for quick tests, where a model takes them; a model without an entry is tested with its defaults.
TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_group": 8, "group_size": 4}
TINY_SCALES = {
    "num_groups": [16, 8, 4],
    "group_sizes": [6, 4, 3],
    "embed_dims": [8, 16, 24],
    "depths": [1, 1, 2],
    "num_heads": 2,
    "patch_width": 16,
}
TINY_LEVELS = {"embed_dim": 8, "num_levels": 2, "attention_dim": 16, "num_neighbors": 4}
TINY_POINTS = {"dim": 16, "depth": 2, "num_neighbors": 4, "fuse_dim": 32}
TINY_SORTNET = {"local_dim": 16, "global_dim": 24, "num_sortnets": 2, "num_heads": 2, "cross_heads": 2}
SMALL: dict[str, dict] = {
    "PointMAE": {**TINY, "decoder_depth": 1, "decoder_num_heads": 2},
    "PointMAEClassifier": {**TINY, "head_dim": 16},
    "PointBERTClassifier": {**TINY, "token_width": 16, "head_dim": 16},
    "PointMAESegmenter": {**TINY, "local_dim": 16, "head_dim": 16},
    "PointM2AE": {**TINY_SCALES, "decoder_dims": [24, 16], "mask": RandomMask(0.5)},
    "PointM2AEClassifier": {**TINY_SCALES, "head_dim": 16},
    "PointNetClassifier": {"mlp": [8, 8, 8, 16, 32], "head": [32, 16]},
    "PointNetAutoEncoder": {"mlp": [8, 8], "bottleneck": 12, "decoder": [16], "num_points": 20},
    "PCRNet": {"mlp": [8, 8], "bottleneck": 12, "head": [16]},
    "SampledNetwork": {
        "sampler": {"name": "samplenet", "num_out": 12, "mlp": [8], "bottleneck": 8, "head": [8], "norm_head": False},
        "network": {"name": "PointNetClassifier", "num_classes": 5, "mlp": [8, 8, 8], "head": [8]},
    },
    "PointM2AESegmenter": {**TINY_SCALES, "propagation_dims": [16, 12], "head_dims": [16, 12]},
    "SimNeighbourhoodClassifier": {"depth": 2, "num_group": 8, "group_size": 4},
    "SimPointClassifier": {"depth": 2},
    "SimSegmenter": {"depth": 2},
    "PointTransformerClassifier": {**TINY_LEVELS, "head_dims": [16]},
    "PointTransformerSegmenter": {**TINY_LEVELS, "bottleneck_dim": 16, "head_dims": [16]},
    "PCTClassifier": {**TINY_POINTS, "num_groups": [16, 8]},
    "PCTSegmenter": {**TINY_POINTS, "embedding": "neighbor", "head_dims": [16, 16], "label_dim": 8},
    "SortNetClassifier": {**TINY_SORTNET, "num_kept": 8, "num_global": 8, "token_dim": 8},
    "Any2Point": {
        "tower": {"name": "vision", "embed_dim": 24, "depth": 2, "num_heads": 2, "grid": [4, 5]},
        "num_group": 8,
        "group_size": 4,
        "head_dim": 16,
    },
}
SMALL["SA3D"] = {
    "backbone": {"name": "PointMAE", **SMALL["PointMAE"]},
    "predictor_depth": 1,
    "predictor_hidden": 16,
}
NAMES = MODELS.names()
ANY_NUMBER = (
    "SimPointClassifier",
    "SimSegmenter",
    "PointNetClassifier",
    "PointNetAutoEncoder",
    "PCRNet",
)  # of points a cloud


def build(name: str, **options) -> nn.Module:
    extra: dict = {key: 5 for key in ("num_classes", "num_parts") if key in parameters(MODELS.get(name))}
    return MODELS.build({"name": name, **SMALL.get(name, {}), **extra, **options})


def cloud(batch: int = 2, num_points: int = 64) -> Tensor:
    return torch.randn(batch, num_points, 3)


def loss_of(out: Any) -> Tensor:
    """The model's own loss, or of any kind of answer the mean square; with what a model brings along while training."""
    if isinstance(out, WithLosses):
        return sum(map(loss_of, out.answers)) + out.losses.get("loss", 0)  # type: ignore[return-value]
    if isinstance(out, dict):
        return out["loss"] if "loss" in out else sum(loss_of(value) for value in out.values())  # type: ignore[return-value]
    return out.float().square().mean()


def ask(model: nn.Module, points: Tensor) -> Any:
    """The answer to one cloud, or to as many as the model compares."""
    needed = [p for p in parameters(model.forward).values() if p.default is p.empty]
    return model(*[points] * max(1, len(needed)))


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward(name: str) -> None:
    model = build(name).train()
    loss = loss_of(ask(model, cloud()))
    assert loss.ndim == 0 and loss.isfinite()
    loss.backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key


SIZES = ("patch_width", "embed_dim", "embed_dims", "depth", "num_heads", "num_group", "group_size", "local_heads")


@pytest.mark.parametrize("name", NAMES)
def test_sizes_that_cannot_be(name: str) -> None:
    """One line that names the option, whatever the model."""
    for key in set(SIZES) & set(parameters(MODELS.get(name))):
        for value in (0, -1):
            wrong = [value, 8, 8] if key == "embed_dims" else value
            with pytest.raises(UserError, match=rf"^model\.{key}: .*; use at least 1( each)?$"):
                MODELS.build({"name": name, **SMALL.get(name, {}), key: wrong}, "model")


@pytest.mark.parametrize("key, heads", [("num_heads", 5), ("decoder_num_heads", 7)])
def test_heads_that_do_not_share(key: str, heads: int) -> None:
    with pytest.raises(UserError, match=rf"^model: embed_dim 384 is not a multiple of {key} {heads}$"):
        MODELS.build({"name": "PointMAE", key: heads}, "model")


@pytest.mark.parametrize("name", NAMES)
def test_same_result_twice_in_eval_mode(name: str) -> None:
    model, points = build(name).eval(), cloud()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        losses.append(loss_of(ask(model, points)))
    assert torch.equal(*losses)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch, num_points", [(1, 64), (3, 33)])
def test_features(name: str, batch: int, num_points: int) -> None:
    model, points = build(name).eval(), cloud(batch, num_points)
    tokens, vector = model.forward_features(points), model.encode(points)  # type: ignore[operator]
    assert tokens.ndim == 3 and tokens.shape[0] == batch and tokens.shape[2] == model.num_features
    assert vector.shape == (batch, model.num_features)
    assert vector.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_cloud_does_not_depend_on_its_batch(name: str) -> None:
    model, points = build(name).eval(), cloud(3)
    alone = torch.cat([model.encode(points[i : i + 1]) for i in range(3)])  # type: ignore[operator]
    torch.testing.assert_close(model.encode(points), alone, rtol=1e-4, atol=1e-5)  # type: ignore[operator]


@pytest.mark.parametrize("name", NAMES)
def test_weights_survive_a_round_trip(name: str) -> None:
    first, second, points = build(name).eval(), build(name).eval(), cloud()
    key_map = getattr(second, "key_map", str)
    second.load_state_dict(
        {key_map(key): value for key, value in first.state_dict().items() if key_map(key)}, strict=False
    )
    torch.testing.assert_close(first.encode(points), second.encode(points), rtol=0, atol=0)  # type: ignore[operator]


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_stays_near_float32(name: str) -> None:
    model, points = build(name).eval(), cloud()
    exact = model.encode(points)  # type: ignore[operator]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.encode(points).float()  # type: ignore[operator]
        loss = loss_of(ask(model.train(), points))
    assert (rough - exact).norm() < 0.05 * exact.norm()
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", sorted({*NAMES} - {*ANY_NUMBER}))
def test_too_few_points(name: str) -> None:
    with pytest.raises(UserError, match=r"more than the 3 points"):
        build(name)(cloud(2, 3))


def pretrainer(**options) -> PointMAE:
    return PointMAE(**{**SMALL["PointMAE"], **options})


def test_outputs_of_the_pretrainer() -> None:
    model, points = pretrainer(num_group=7, group_size=5), cloud(3, 33)
    out = model(points)
    hidden = int(0.6 * 7)
    assert out["prediction"].shape == out["target"].shape == (3, hidden, 5, 3)
    assert out["center"].shape == (3, 7, 3) and out["hidden"].shape == (3, hidden)
    patches, center = model.group(points)
    expected = torch.stack([patch[index] for patch, index in zip(patches, out["hidden"])])
    assert torch.equal(out["target"], expected) and torch.equal(out["center"], center)


def test_masks_repeat_with_their_source() -> None:
    model, points = pretrainer(), cloud()
    first, second, other = (model(points, rng=BatchRandom(seed))["hidden"] for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_hidden_patches_leave_no_trace_in_the_tokens() -> None:
    """In eval mode the decoded tokens depend on visible patches and on centres only."""
    model = pretrainer().eval()
    mask = torch.tensor([[True, False] * 4])
    neighborhood, center = model.group(cloud(1))
    visible = mask.logical_not().nonzero()[:, 1][None]
    changed = torch.where(mask[..., None, None], neighborhood + 1, neighborhood)
    assert torch.equal(model.encoder(neighborhood, center, visible), model.encoder(changed, center, visible))


def test_a_given_mask() -> None:
    model, points = pretrainer(), cloud()
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[0, [1, 2, 5]] = mask[1, [0, 3, 7]] = True
    assert model(points, mask=mask)["hidden"].tolist() == [[1, 2, 5], [0, 3, 7]]
    mask[0, 0] = True
    with pytest.raises(UserError, match=r"same number of patches, found \[3, 4\]"):
        model(points, mask=mask)


def test_nothing_hidden_is_refused() -> None:
    for model, mask in ((pretrainer(mask=RandomMask(0.0)), None), (pretrainer(), torch.zeros(2, 8, dtype=torch.bool))):
        with pytest.raises(UserError, match="hides none of the 8 patches"):
            model(cloud(), mask=mask)


def test_losses_differ_by_their_norm() -> None:
    first, second = pretrainer(loss="cdl1").eval(), pretrainer(loss="cdl2").eval()
    second.load_state_dict(first.state_dict())
    points, mask = cloud(), torch.tensor([[True, False] * 4] * 2)
    out1, out2 = first(points, mask=mask), second(points, mask=mask)
    assert torch.equal(out1["prediction"], out2["prediction"]) and out1["loss"] != out2["loss"]


def test_points_may_be_double_half_or_strided() -> None:
    model, points = pretrainer().eval(), cloud()
    expected = model.encode(points)
    strided = points.mT.contiguous().mT
    assert not strided.is_contiguous()
    torch.testing.assert_close(model.encode(strided), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.encode(points.bfloat16()).isfinite().all()
    double = pretrainer().double().eval()
    assert double.encode(points.double()).dtype == torch.float64


def test_classifier_reads_class_token_and_maximum() -> None:
    model = PointMAEClassifier(num_classes=5, **SMALL["PointMAEClassifier"]).eval()
    seen: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(cloud())
    (features,) = seen
    assert features.shape == (2, 48)
    with torch.no_grad():
        model.cls_token.add_(1.0)
    model(cloud())
    assert not torch.equal(seen[0][:, :24], seen[1][:, :24])


def test_wrong_width() -> None:
    with pytest.raises(UserError, match="embed_dim 25 is not a multiple of num_heads 2"):
        pretrainer(embed_dim=25)


@pytest.mark.parametrize("name", ["PointMAE", "PointM2AE"])
def test_embedding_visible_patches_alone(name: str) -> None:
    """The same network once its BatchNorm is frozen; hidden patches do not enter statistics while it trains."""
    torch.manual_seed(0)
    model, other = build(name), build(name, embed="visible_only")
    other.load_state_dict(model.state_dict())
    points = cloud()
    groups = model.group(points)  # type: ignore[operator]
    number = (groups[-1].center if isinstance(groups, list) else groups[1]).shape[1]
    mask = (torch.arange(number) < number // 2).expand(2, number)
    torch.testing.assert_close(model.eval()(points, mask)["loss"], other.eval()(points, mask)["loss"])
    losses = [m.train()(points, mask)["loss"] for m in (model, other)]
    assert all(loss.isfinite() for loss in losses) and not torch.equal(*losses)
    losses[1].backward()
