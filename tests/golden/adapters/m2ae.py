"""Networks of Point-M2AE against what the official code computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.hierarchy import Packed, Scale, back_project, group_scales, key_bias, pack, radius_bias
from models.layers.transformer import Blocks
from models.masking import count_masked
from models.point_m2ae import PointM2AE
from models.point_m2ae_finetune import PointM2AEClassifier, PointM2AESegmenter
from tests.golden.adapters.mae import load
from tests.golden.fixtures import Fixture
from tools.tasks.classify import Classify
from utils.random import BatchRandom

SIZES = {
    "group_sizes": "group_sizes",
    "num_groups": "num_groups",
    "encoder_depths": "depths",
    "encoder_dims": "embed_dims",
    "num_heads": "num_heads",
    "drop_path_rate": "drop_path_rate",
    "decoder_depths": "decoder_depths",
    "decoder_dims": "decoder_dims",
    "decoder_up_blocks": "decoder_up_blocks",
}


# shares of the largest value: a quarter and a half of what the fixtures allow (their own noise is up to 1e-4)
NOISE, GRADIENT_NOISE = 5e-5, 5e-4


def options(fixture: Fixture) -> dict:
    """The recorded sizes under our names."""
    config = fixture.about["config"]
    return {ours: config[key] for key, ours in SIZES.items() if not isinstance(config.get(key, ""), str)}


def pretrainer(fixture: Fixture, upstream: bool = False) -> PointM2AE:
    radius = fixture.about["config"]["local_radius"] if upstream else ()
    model = PointM2AE(**options(fixture), padding_radius=radius, first_token_leak=upstream)
    load(model, fixture, model.key_map)
    return model


def check_groups(fixture: Fixture, scales: list[Scale]) -> None:
    for i, scale in enumerate(scales):
        fixture.check(scale.index.int(), f"out/idx_s{i}")
        if f"out/center_s{i}" in fixture:
            fixture.check(scale.center, f"out/center_s{i}")


def check_masks(fixture: Fixture, masks: list[Tensor], prefix: str) -> None:
    for i, mask in enumerate(masks):
        fixture.check(mask, f"out/{prefix}_s{i}")


def m2ae_backprojection(fixture: Fixture) -> None:
    config, points = fixture.about["config"], fixture["in/points"]
    scales = group_scales(points, config["num_groups"], config["group_sizes"], skip_near_origin=True)
    fixture.check(order_in(points, scales[0].center), "out/fps_idx_s0")
    for i, scale in enumerate(scales):
        fixture.check(scale.index.short(), f"out/knn_idx_s{i}")
        if i > 0:
            fixture.check(order_in(scales[i - 1].center, scale.center), f"out/fps_idx_s{i}")
    for leak, prefix in ((False, "masked"), (True, "masked_upstream")):
        check_masks(fixture, back_project(fixture["in/mask_coarse"], scales, leak), prefix)


def order_in(points: Tensor, chosen: Tensor) -> Tensor:
    """Which of the points (B, N, 3) each of the chosen is."""
    return (chosen[:, :, None] == points[:, None]).all(-1).int().argmax(-1).int()


def m2ae_pretrain(fixture: Fixture) -> None:
    fixture.noise = NOISE
    model, points = pretrainer(fixture).eval(), fixture["in/points"]
    scales = model.group(points)
    check_groups(fixture, scales)
    for leak in (False, True):
        leaky = pretrainer(fixture, upstream=leak).eval()
        second = leaky.masks(scales, fixture["in/mask_coarse_b"])
        check_masks(fixture, second, f"masked_b_{'upstream' if leak else 'correct'}")
    check_masks(fixture, model.masks(scales, fixture["in/mask_coarse"]), "masked")
    for mode in ("eval", "train"):
        check_step(fixture, pretrainer(fixture), f"{mode}_padmask")
        check_step(fixture, pretrainer(fixture, upstream=True), f"{mode}_upstream")
    check_step(fixture, model, "eval_padmask_b_correct", "in/mask_coarse_b")
    model.first_token_leak = True
    fixture.check(model(points, fixture["in/mask_coarse_b"])["loss"], "out/eval_padmask_b_upstream/loss")
    check_features(fixture)


def check_step(fixture: Fixture, model: PointM2AE, variant: str, mask_key: str = "in/mask_coarse") -> None:
    """Everything on the way from points to loss, gradients, and statistics of BatchNorm."""
    model.train(variant.startswith("train"))
    prefix, points, mask = f"out/{variant}/", fixture["in/points"], fixture[mask_key]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    stages = forward_stages(model, points, mask)
    for key in fixture.below(prefix):
        if key in stages:
            fixture.check(stages[key], prefix + key)
    model.load_state_dict(before)
    out = model(points, mask)
    for key, ours in (("rec_points", "prediction"), ("gt_points", "target")):
        if prefix + key in fixture:
            fixture.check(out[ours], prefix + key)
    fixture.noise = 0.0
    fixture.check(out["loss"], prefix + "loss")
    out["loss"].backward()
    check_gradients(fixture, model, f"{prefix}grad/")
    for key in fixture.below(f"{prefix}after/"):
        fixture.check(model.state_dict()[str(model.key_map(key))], f"{prefix}after/{key}")


def check_gradients(fixture: Fixture, model: nn.Module, prefix: str) -> None:
    fixture.noise = GRADIENT_NOISE
    fixture.check_gradients(model, prefix, model.key_map)  # type: ignore[arg-type]
    fixture.noise = NOISE


def forward_stages(model: PointM2AE, points: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Tokens of every scale and stage in upstream's layout."""
    scales = model.group(points)
    masks = model.masks(scales, mask)
    packed = pack(masks)
    seen: dict[str, Tensor] = {}
    hooks = [
        propagation.register_forward_hook(lambda _, args, out, key=f"prop{j}": seen.update({key: out}))
        for j, propagation in enumerate(model.decoder.token_prop)
    ]
    encoded = model.encoder(scales, packed)
    coarse, *finer = model.decode(encoded, scales, masks, packed)
    for hook in hooks:
        hook.remove()
    for i, (tokens, pack_) in enumerate(zip(encoded, packed)):
        seen[f"enc_tokens_s{i}"] = tokens.masked_fill(~pack_.valid[..., None], 0)
        seen[f"enc_valid_s{i}"] = pack_.valid
    order = mask.int().argsort(dim=1, stable=True)[..., None].expand_as(coarse)  # upstream: visible, then hidden
    seen |= {f"dec_stage{j}": stage for j, stage in enumerate([coarse.gather(1, order), *finer])}
    return {**seen, "dec_norm": model.decoder.norm(finer[-1])}


def check_features(fixture: Fixture) -> None:
    points, model = fixture["in/points"], pretrainer(fixture).eval()
    scales = model.group(points)
    nothing = torch.zeros_like(fixture["in/mask_coarse"])
    assert count_masked(nothing) == 0
    check_masks(fixture, back_project(nothing, scales), "svm_uncovered")
    fixture.check(model.encode(points), "out/svm_feature_padmask")
    fixture.check(pretrainer(fixture, upstream=True).eval().encode(points), "out/svm_feature_upstream")
    tokens = model.encoder(scales)[-1]
    fixture.check(tokens.mean(dim=1) + tokens.amax(dim=1), "out/svm_feature_alltokens")


def m2ae_local_attention(fixture: Fixture) -> None:
    fixture.noise = NOISE
    config, xyz = fixture.about["config"], fixture["in/xyz"]
    model = Blocks(config["dim"], config["num_heads"], [0.0] * config["depth"], config["mlp_ratio"])
    load(model, fixture, str)
    tokens, position = fixture["in/tokens"], fixture["in/pos"]
    fixture.check(model.eval()(tokens, position), "out/tokens_unmasked")
    for j, radius in enumerate(fixture["in/radius"].tolist()):
        bias = radius_bias(xyz, radius)
        fixture.check(bias[:, 0].isinf(), f"out/blocked_r{j}")
        fixture.check(model(tokens, position, bias), f"out/tokens_r{j}")
    valid = fixture["in/valid"]
    everything = torch.arange(valid.shape[1]).expand_as(valid)
    alone = model(tokens, position, key_bias(Packed(everything, valid, padded=True, total=int(valid.sum()))))
    fixture.check(alone.masked_fill(~valid[..., None], 0), "out/tokens_keypad")


def classifier(fixture: Fixture, pooling: Literal["sum", "concat"]) -> None:
    fixture.noise, num_classes = NOISE, fixture["out/logits"].shape[1]
    model = PointM2AEClassifier(
        num_classes, pooling, local_radius=fixture.about["config"]["local_radius"], **options(fixture)
    ).eval()
    load(model, fixture, model.key_map)
    batch = {"points": fixture["in/points"], "label": fixture["in/labels"]}
    scales = model.group(batch["points"])
    check_groups(fixture, scales)
    for i, (scale, radius) in enumerate(zip(scales, model.encoder.local_radius)):
        fixture.check(radius_bias(scale.center, radius)[:, 0].isinf(), f"out/blocked_s{i}")
    fixture.check(model.encoder(scales)[-1], "out/tokens_last_scale_before_norm")
    fixture.check(model.pool(model.forward_features(batch["points"])), "out/feature")
    fixture.check(model(batch["points"]), "out/logits")
    # upstream spreads the smoothing over the other classes, PyTorch over all of them
    smoothing = fixture.about["config"]["smooth"] * num_classes / (num_classes - 1) if pooling == "sum" else 0.0
    figures = Classify(label_smoothing=smoothing).losses(model, batch, BatchRandom(0))
    fixture.noise = 0.0
    fixture.check(figures["loss"], "out/loss")
    fixture.check(figures["acc"], "out/acc_percent")
    figures["loss"].backward()
    check_gradients(fixture, model, "out/grad/")


def m2ae_partseg(fixture: Fixture) -> None:
    fixture.noise = NOISE
    config, points = fixture.about["config"], fixture["in/points"]
    model = PointM2AESegmenter(
        config["num_parts"],
        config["num_categories"],
        local_radius=config["local_radius"],
        propagation_dims=config["propagation_mlp"],
        head_dims=config["head_widths"],
        **options(fixture),
    ).eval()
    load(model, fixture, model.key_map)
    scales = model.group(points)
    check_groups(fixture, scales)
    for i, (scale, tokens) in enumerate(zip(scales, model.encoder(scales))):
        fixture.check(tokens.mT, f"out/enc_s{i}")  # upstream: channels first
        carried = model.head.propagations[i](points, scale.center, tokens, own=points)
        fixture.check(carried.mT, f"out/upsampled_s{i}")
    scores = model(points, fixture["in/category"]).log_softmax(dim=-1)
    fixture.check(scores, "out/log_probs")
    loss = F.nll_loss(scores.flatten(0, 1), fixture["in/labels"].flatten())
    fixture.check(loss, "out/loss")
    loss.backward()
    check_gradients(fixture, model, "out/grad/")


ADAPTERS: dict[str, Callable[[Fixture], None]] = {
    "m2ae_backprojection": m2ae_backprojection,
    "m2ae_pretrain": m2ae_pretrain,
    "m2ae_local_attention": m2ae_local_attention,
    "m2ae_cls_modelnet40": lambda fixture: classifier(fixture, "sum"),
    "m2ae_cls_scanobjectnn": lambda fixture: classifier(fixture, "concat"),
    "m2ae_partseg": m2ae_partseg,
}
