"""Point Transformer and PCT against what the official code computed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from extensions import ops
from models.layers.vector_attention import Level, TransitionDown, TransitionUp, VectorAttention
from models.pct import PCTClassifier, PCTSegmenter
from models.point_transformer import PointTransformerClassifier, PointTransformerSegmenter, rename
from models.sortnet import SortNetClassifier
from tests.golden.adapters.mae import load
from tests.golden.fixtures import Fixture
from tests.golden.recipe import load as load_recipe
from tests.golden.recipe import recipe

CATEGORIES = 16
TIED = {"q_conv.weight": "k_conv.weight"}


def pt_block(fixture: Fixture) -> None:
    args, xyz = fixture.args, fixture["in/xyz"]
    model = VectorAttention(args["d_points"], args["d_model"])
    load(model, fixture, lambda key: rename(f"first.{key}", ()).removeprefix("first."))
    neighbors = ops.knn(xyz, xyz, args["k"])[1]
    fixture.check(neighbors, "out/knn_idx")
    features = fixture["in/features"]
    fixture.check(model(features, xyz, neighbors), "out/features")
    fixture.check(model.attend(model.enter(features), xyz, neighbors)[0], "out/attn")


def down_key(key: str) -> str:
    return rename(f"backbone.transition_downs.0.{key}", ()).removeprefix("encoder.downs.0.")


def pt_transition_down(fixture: Fixture) -> None:
    args, xyz, features = fixture.args, fixture["in/xyz"], fixture["in/features"]
    joined, hidden, out = args["channels"]
    assert hidden == out
    model = TransitionDown(joined - 3, out).train(fixture.about["mode"].startswith("train"))
    load(model, fixture, down_key)
    starts = fixture["in/fps_start"].tolist() if "in/fps_start" in fixture else [0] * len(xyz)
    each = [ops.farthest_point_sample(cloud[None], args["k"], start=start) for cloud, start in zip(xyz, starts)]
    chosen = torch.cat(each)
    level = Level(xyz, ops.knn(xyz, xyz, args["nneighbor"])[1], chosen)
    fixture.check(model(features, level), "out/features")
    for key, value in (("fps_idx", chosen), ("xyz", ops.gather_points(xyz, chosen))):
        if f"out/{key}" in fixture:
            fixture.check(value, f"out/{key}")
    if "out/knn_idx" in fixture:
        fixture.check(ops.gather_points(level.neighbors, chosen), "out/knn_idx")
    for key in fixture.below("out/after_"):
        fixture.check(model.state_dict()[down_key(key)], f"out/after_{key}")


def pt_transition_up(fixture: Fixture) -> None:
    args = fixture.args
    assert args["do"] == args["d2"]
    model = TransitionUp(args["d1"], args["do"]).eval()
    load(model, fixture, lambda key: rename(f"ups.0.{key}", ()).removeprefix("ups.0."))
    coarse, coarse_xyz, fine, xyz = (
        fixture[f"in/{key}"] for key in ("features_coarse", "xyz_coarse", "features_fine", "xyz_fine")
    )
    fixture.check(model(coarse, coarse_xyz, fine, xyz), "out/features")
    single = model(coarse[:, :1], coarse_xyz[:, :1], fine, xyz)
    fixture.check(single, "out/features_from_single_coarse_point")


def check_stages(fixture: Fixture, model, points: Tensor, features: Tensor | None, category: Tensor | None) -> None:
    levels, outputs = model.encoder(points, features, category)
    for stage, (level, found) in enumerate(zip(levels, outputs)):
        fixture.check(level.xyz, f"out/stage{stage}_xyz")
        values = {"features": found, "features_mean": found.mean(1), "features_absmax": found.abs().amax(1)}
        for key, value in values.items():
            if f"out/stage{stage}_{key}" in fixture:
                fixture.check(value, f"out/stage{stage}_{key}")


def segmenter(fixture: Fixture) -> PointTransformerSegmenter:
    args = fixture.args
    return PointTransformerSegmenter(
        args["classes"],
        CATEGORIES,
        args["input_dim"] - 3 - CATEGORIES,
        num_levels=args["nblocks"],
        attention_dim=args["dim"],
        num_neighbors=args["k"],
    )


def pt_seg(fixture: Fixture) -> None:
    model = segmenter(fixture).eval()
    load(model, fixture, model.key_map)
    check_segmenter(fixture, model)
    joined = fixture["in/x"]  # coordinates, normals, and the category as a one-hot row at every point
    assert torch.equal(joined[:, 0, -CATEGORIES:].argmax(-1), fixture["in/category"])
    assert torch.equal(joined[..., :-CATEGORIES], fixture["in/points"])


def check_segmenter(fixture: Fixture, model: PointTransformerSegmenter) -> None:
    (points, features), category = fixture["in/points"].tensor_split([3], dim=-1), fixture["in/category"]
    fixture.check(model(points, category, features), "out/logits")
    check_stages(fixture, model, points, features, category)
    if "out/backbone_features" in fixture:
        fixture.check(model.forward_features(points, features, category), "out/backbone_features")


def pt_seg_grad(fixture: Fixture) -> None:
    weights = Fixture(fixture.path.with_name(fixture.path.name.replace("pt_seg_grad", "pt_seg")), fixture.folder)
    model = segmenter(fixture).train()
    load(model, weights, model.key_map)
    points, features, told = fixture["in/x"].tensor_split([3, -CATEGORIES], dim=-1)
    logits = model(points, told[:, 0].argmax(-1), features)
    fixture.check(logits, "out/logits")
    loss = F.cross_entropy(logits.flatten(0, 1), fixture["in/target"].flatten())
    fixture.check(loss, "out/loss")
    loss.backward()
    fixture.check_gradients(model, "out/grad/", model.key_map)


def pt_cls(fixture: Fixture) -> None:
    args = fixture.args
    model = PointTransformerClassifier(
        args["num_class"],
        args["input_dim"] - 3,
        num_levels=args["nblocks"],
        attention_dim=args["transformer_dim"],
        num_neighbors=args["nneighbor"],
    ).eval()
    load(model, fixture, model.key_map)
    points, features = fixture["in/points"].tensor_split([3], dim=-1)
    fixture.check(model(points, features), "out/logits")
    check_stages(fixture, model, points, features, None)


def pct_cls(fixture: Fixture) -> None:
    args = fixture.args
    model = PCTClassifier(
        args["num_class"],
        args["input_dim"] - 3,
        dim=4 * args["base"],
        num_groups=args["sg_points"],
        num_neighbors=args["nsample"],
        fuse_dim=16 * args["base"],
    ).eval()
    load_recipe(model, fixture.below_dict("param/"), fixture.name, unused=".k_conv.weight")
    points, features = fixture["in/points"].tensor_split([3], dim=-1)
    seen: dict[str, Tensor] = {}
    encoder = model.encoder
    for name, module in (("local0", encoder.groups[0]), ("local1", encoder.groups[1]), ("embed", encoder.embed)):
        module.register_forward_hook(lambda m, i, out, name=name: seen.update({name: out}))
    for number, layer in enumerate(encoder.layers, 1):
        layer.register_forward_hook(lambda m, i, out, n=number: seen.update({f"sa{n}": out, f"sa{n}_in": i[0]}))
    fixture.check(model(points, features), "out/logits")
    fixture.check(seen["local0"].mT, "out/local0")  # upstream: channels first
    fixture.check(seen["local1"].mT, "out/local1")
    fixture.check(seen["sa1"].mT, "out/sa1_output")
    torch.testing.assert_close(seen["sa1_in"].mT, fixture["in/sa1_input"], rtol=1e-4, atol=2e-5)
    fixture.check(torch.cat([seen[f"sa{n}"] for n in range(1, 5)], dim=-1).mT, "out/attention_concat")
    check_groups(fixture, points, seen["embed"])


def check_groups(fixture: Fixture, points: Tensor, x: Tensor) -> None:
    """The centres, and what upstream lays out for every neighbour before its first layer."""
    first, second = fixture.args["sg_points"]
    centers = ops.farthest_point_sample(points, first)
    xyz = ops.gather_points(points, centers)
    fixture.check(xyz, "out/sg0_xyz")
    fixture.check(xyz[:, :second], "out/sg1_xyz")
    around = ops.gather_points(x, ops.knn(xyz, points, fixture.args["nsample"])[1])
    center = ops.gather_points(x, centers)[:, :, None].expand_as(around)
    fixture.check(torch.cat([around - center, center], dim=-1), "out/sg0_features")


def pt_seg_full_recipe(fixture: Fixture) -> None:
    model = PointTransformerSegmenter(50, CATEGORIES, extra_channels=3).eval()
    load_recipe(model, recipe(fixture, "point_transformer_seg_shapenetpart"), fixture.name)
    with torch.no_grad():
        check_segmenter(fixture, model)


def pt_cls_full_recipe(fixture: Fixture) -> None:
    model = PointTransformerClassifier(40, extra_channels=3).eval()
    load_recipe(model, recipe(fixture, "point_transformer_cls_modelnet40"), fixture.name)
    with torch.no_grad():
        fixture.check(model(*fixture["in/points"].tensor_split([3], dim=-1)), "out/logits")


def pct_cls_full_recipe(fixture: Fixture) -> None:
    model = PCTClassifier(40, extra_channels=3).eval()
    load_recipe(model, recipe(fixture, "pct_cls_modelnet40", TIED), fixture.name, unused=".k_conv.weight")
    with torch.no_grad():
        fixture.check(model(*fixture["in/points"].tensor_split([3], dim=-1)), "out/logits")


def pct_partseg_full_recipe(fixture: Fixture) -> None:
    model = PCTSegmenter(50, CATEGORIES).eval()
    load_recipe(model, recipe(fixture, "pct_partseg_shapenetpart", TIED), fixture.name, unused=".k_conv.weight")
    with torch.no_grad():
        fixture.check(model(fixture["in/points"], fixture["in/category"]).mT, "out/logits")


def nico_cls_full_recipe(fixture: Fixture) -> None:
    args = fixture.args
    points, features = fixture["in/points"].tensor_split([3], dim=-1)
    model = SortNetClassifier(
        40,
        features.shape[-1],
        args["local_dim"],
        args["global_dim"],
        num_sortnets=args["m"],
        num_kept=args["k"],
        num_global=args["global_k"],
        cross_heads=args["n_head"],
        token_dim=args["reduce_dim"],
    ).eval()
    load_recipe(model, recipe(fixture, "nico_point_transformer_cls_modelnet40"), fixture.name)
    kept: dict[int, Tensor] = {}
    for number, sortnet in enumerate(model.sortnets):
        sortnet.register_forward_hook(lambda m, i, out, n=number: kept.update({n: out[1]}))
    with torch.no_grad():
        fixture.check(model(points, features), "out/logits")
    for number, indices in kept.items():
        fixture.check(indices, f"out/topk{number}")


ADAPTERS = {
    "pt_block": pt_block,
    "pt_transition_down": pt_transition_down,
    "pt_transition_up": pt_transition_up,
    "pt_seg": pt_seg,
    "pt_seg_grad": pt_seg_grad,
    "pt_cls": pt_cls,
    "pct_cls": pct_cls,
    "pt_seg_full_recipe": pt_seg_full_recipe,
    "pt_cls_full_recipe": pt_cls_full_recipe,
    "pct_cls_full_recipe": pct_cls_full_recipe,
    "pct_partseg_full_recipe": pct_partseg_full_recipe,
    "nico_cls_full_recipe": nico_cls_full_recipe,
}
