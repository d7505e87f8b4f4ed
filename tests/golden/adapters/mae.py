"""Networks and operations of Point-MAE against what the official code computed."""

from typing import Any

import torch
from torch import nn

from extensions import ops
from models.layers.patch_embed import PatchEmbed
from models.layers.transformer import Transformer
from models.masking import RandomMask, block_mask, mask_from_permutation, split_by_mask
from models.point_mae import PointMAE, PointMAEClassifier
from tests.golden.fixtures import Fixture, KeyMap
from tools.tasks.classify import Classify
from utils.checkpoint import load_weights
from utils.random import BatchRandom


def load(model: nn.Module, fixture: Fixture, key_map: KeyMap, prefix: str = "param/") -> None:
    """The official parameters, all of them and nothing else; counters of BatchNorm may be left out."""
    report = load_weights(model, fixture.below_dict(prefix), fixture.name, key_map)
    missing = [key for key in report.missing if not key.endswith("num_batches_tracked")]
    assert not missing and not report.unexpected and not report.unused, report.summary()


def group(fixture: Fixture) -> None:
    points, size, number = fixture["in/points"], fixture.args["group_size"], fixture.args["num_group"]
    neighborhood, center, index = ops.group(points, number, size, skip_near_origin=True)
    fixture.check(neighborhood, "out/neighborhood")
    fixture.check(center, "out/center")
    fixture.check(index, "out/knn_idx")
    fixture.check(ops.farthest_point_sample(points, number, skip_near_origin=True), "out/fps_idx")
    fixture.check(ops.knn(center, points, size)[0].sqrt(), "out/knn_dist")
    if "out/fps_idx_without_origin_skip" in fixture:
        fixture.check(ops.farthest_point_sample(points, number), "out/fps_idx_without_origin_skip")


def chamfer(fixture: Fixture) -> None:
    x, y = fixture["in/xyz1"].requires_grad_(), fixture["in/xyz2"].requires_grad_()
    for distance, key in zip(ops.chamfer_distance(x, y, reduction="none"), ("dist1", "dist2")):
        fixture.check(distance, f"out/{key}")
    fixture.check(ops.knn(x, y, 1)[1][..., 0], "out/idx1")
    fixture.check(ops.knn(y, x, 1)[1][..., 0], "out/idx2")
    for mean, key in zip(ops.ChamferDistanceL2Split()(x, y), ("split1", "split2")):
        fixture.check(mean, f"out/{key}")
    for key, module in (("cdl1", ops.ChamferDistanceL1), ("cdl2", ops.ChamferDistanceL2)):
        loss = module()(x, y)
        fixture.check(loss, f"out/{key}")
        for gradient, name in zip(torch.autograd.grad(loss, (x, y)), ("xyz1", "xyz2")):
            fixture.check(gradient, f"out/{key}_grad_{name}")
        padded = module(ignore_zeros="sum")(fixture["in/iz_xyz1"], fixture["in/iz_xyz2"])
        fixture.check(padded, f"out/iz_{key}")


def encoder(fixture: Fixture) -> None:
    def key_map(key: str) -> str:
        return str(PointMAE.key_map(f"MAE_encoder.encoder.{key}")).removeprefix("encoder.embed.")

    model = PatchEmbed(fixture.args["encoder_channel"])
    load(model, fixture, key_map)
    patches = fixture["in/point_groups"].requires_grad_()
    fixture.check(model.eval()(patches), "out/eval")
    out = model.train()(patches)
    fixture.check(out, "out/train")
    (out * fixture["in/cotangent"]).sum().backward()
    assert patches.grad is not None
    fixture.check(patches.grad, "out/train_grad_points")
    fixture.check_gradients(model, "out/train_grad/", key_map)
    for key in fixture.below("out/after/"):
        fixture.check(model.state_dict()[key_map(key)], f"out/after/{key}")


def transformer(fixture: Fixture) -> None:
    args = fixture.args
    x, position = fixture["in/x"], fixture["in/pos"]

    encoder = Transformer(args["embed_dim"], args["enc_depth"], args["enc_heads"], args["mlp_ratio"])
    encoder.norm = nn.Identity()  # type: ignore[assignment]  # upstream has it outside of the encoder
    load(encoder, fixture, _below("MAE_encoder.blocks.", "encoder.transformer."), "param/encoder.")
    fixture.check(encoder.eval()(x, position), "out/encoder")

    decoder = Transformer(args["embed_dim"], args["dec_depth"], args["dec_heads"], args["mlp_ratio"])
    load(decoder, fixture, _below("MAE_decoder.", "decoder."), "param/decoder.")
    last = args["return_token_num"]
    fixture.check(decoder.eval()(x, position, last=last), f"out/decoder_last{last}")


def _below(official: str, ours: str) -> KeyMap:
    """The key map of the whole model for one part of it."""
    return lambda key: str(PointMAE.key_map(official + key)).removeprefix(ours)


def point_mae_masks(fixture: Fixture) -> None:
    center, ratio = fixture["in/center"], fixture.args["mask_ratio"]
    num_masked = RandomMask(ratio).num_masked(center.shape[1])
    fixture.check(mask_from_permutation(fixture["in/rand_permutation"], num_masked), "out/rand")
    fixture.check(block_mask(center, fixture["in/block_seed_index"], num_masked), "out/block")
    fixture.check(RandomMask(0.0)(center, BatchRandom(0)), "out/noaug")


def point_mae_pretrain(fixture: Fixture) -> None:
    points, mask = fixture["in/points"], fixture["in/mask"]
    for mode in ("eval", "train"):
        for loss in ("cdl1", "cdl2"):
            if f"out/{mode}/{loss}" in fixture:
                model = pretrainer(fixture, loss).train(mode == "train")
                out = model(points, mask=mask)
                fixture.check(out["loss"], f"out/{mode}/{loss}")
                out["loss"].backward()
                fixture.check_gradients(model, f"out/{mode}/{loss}_grad/", model.key_map)
        if fixture.below(f"out/{mode}/"):
            _check_stages(fixture, pretrainer(fixture).train(mode == "train"), f"out/{mode}/")
    if fixture.below("out/vis/"):
        _check_reconstruction(fixture, pretrainer(fixture).eval())


def pretrainer(fixture: Fixture, loss: Any = None) -> PointMAE:
    args, sizes = fixture.args, fixture.args["transformer_config"]
    model = PointMAE(
        embed_dim=sizes["trans_dim"],
        depth=sizes["depth"],
        num_heads=sizes["num_heads"],
        drop_path_rate=sizes["drop_path_rate"],
        decoder_depth=sizes["decoder_depth"],
        decoder_num_heads=sizes["decoder_num_heads"],
        num_group=args["num_group"],
        group_size=args["group_size"],
        mask=RandomMask(sizes["mask_ratio"]),
        loss=loss or args["loss"],
    )
    load(model, fixture, model.key_map)
    return model


def _check_stages(fixture: Fixture, model: PointMAE, prefix: str) -> None:
    """What the forward passes on its way from points to loss."""
    mask = fixture["in/mask"]
    neighborhood, center = model.group(fixture["in/points"])
    visible, hidden = split_by_mask(mask, int(mask[0].sum()))
    x_vis = model.encoder(neighborhood, center, visible)
    x_rec = model.decode(x_vis, center, visible, hidden)
    fixture.check(neighborhood, f"{prefix}neighborhood")
    fixture.check(model.encoder.embed(neighborhood), f"{prefix}tokens")
    fixture.check(x_vis, f"{prefix}x_vis")
    fixture.check(x_rec, f"{prefix}x_rec")
    fixture.check(model.head(x_rec).mT, f"{prefix}head")  # upstream: a convolution, channels first


def _check_reconstruction(fixture: Fixture, model: PointMAE) -> None:
    """What upstream draws: true visible patches, then rebuilt ones; but the centres of hidden patches come first."""
    points, mask = fixture["in/points"], fixture["in/mask"]
    seen, rebuilt = (part.reshape(1, -1, 3) for part in model.reconstruct(points, mask))  # upstream joins the clouds
    fixture.check(torch.cat([seen, rebuilt], dim=1), "out/vis/ret1_full_points")
    fixture.check(seen, "out/vis/ret2_visible_points")
    _, center = model.group(points)
    fixture.check(torch.cat([center[mask], center[~mask]]), "out/vis/full_center")


def point_transformer_cls(fixture: Fixture) -> None:
    args = fixture.args
    model = PointMAEClassifier(
        num_classes=args["cls_dim"],
        embed_dim=args["trans_dim"],
        depth=args["depth"],
        num_heads=args["num_heads"],
        drop_path_rate=args["drop_path_rate"],
        num_group=args["num_group"],
        group_size=args["group_size"],
    ).eval()
    load(model, fixture, model.key_map)
    batch = {"points": fixture["in/points"], "label": fixture["in/label"]}
    fixture.check(model(batch["points"]), "out/logits")
    figures = Classify().losses(model, batch, BatchRandom(0))
    fixture.check(figures["loss"], "out/loss")
    fixture.check(figures["acc"], "out/acc")
    figures["loss"].backward()
    fixture.check_gradients(model, "out/grad/", model.key_map)


ADAPTERS = {
    "group": group,
    "chamfer": chamfer,
    "encoder": encoder,
    "transformer": transformer,
    "point_mae_masks": point_mae_masks,
    "point_mae_pretrain": point_mae_pretrain,
    "point_transformer_cls": point_transformer_cls,
}
