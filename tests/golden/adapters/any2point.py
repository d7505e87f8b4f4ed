"""Any2Point against what the official code computed; its attention across a batch is repeated in here alone."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from models.any2point.adapter import GuidedAdapter
from models.any2point.cells import cells_of
from models.any2point.model import Any2Point
from models.any2point.projection import ImageProjection, LineProjection, voxels
from models.any2point.tokenizer import PointPN
from models.layers.tower import Tower, TowerBlock
from tests.golden.fixtures import Fixture
from utils.checkpoint import load_weights

IMAGES = {"dino": (14, None), "audio": (16, (19, 12))}  # patch, and the grid that upstream reads the table with
POSITIONS = {"clip": "both", "dino": "each", "audio": "once"}


def modality(fixture: Fixture) -> str:
    return next(name for name in POSITIONS if f"any2point_{name}" in fixture.name)


def tower(fixture: Fixture, kind: str, depth: int, rows: int | None = None) -> Tower:
    """rows: of the position table; default that of the published tower."""
    args = fixture.about["config"]["model"]["encoder_args"]
    dim = args["embed_dim"]
    sizes = (dim, depth, args["num_heads"], int(dim * args["mlp_ratio"]))
    if kind == "clip":
        return Tower(*sizes, length=rows or 77, eps=1e-5, activation="quick_gelu")
    patch, grid = IMAGES[kind]
    side = math.isqrt((rows or 1370) - 1)
    grid = grid or (side, side)
    length = 1 + grid[0] * grid[1]
    eps = args["norm_args"]["eps"]
    return Tower(*sizes, length=length, grid=grid, patch=patch, prefix=1, eps=eps, layer_scale=kind == "dino")


def build(fixture: Fixture, depth: int | None = None, rows: int | None = None, **changes: Any) -> Any2Point:
    """The model of a fixture's configuration, as published but for leaks between clouds."""
    model, run, pn = (
        fixture.about["config"]["model"],
        fixture.about["run_args"],
        fixture.about["config"]["point_pn"],
    )
    args, kind = model["encoder_args"], modality(fixture)
    assert pn["embed_dim"] << pn["num_stages"] == args["embed_dim"]
    options = {
        "num_classes": model["cls_args"]["num_classes"],
        "tower": tower(fixture, kind, args["depth"] if depth is None else depth, rows),
        "num_group": pn["input_points"] >> pn["num_stages"],
        "group_size": pn["k_neighbors"],
        "depths": pn["LGA_block"],
        "last_hidden": pn["last_stage_bottleneck"],
        "scaling": "axis" if pn["type"] == "scan" else "cloud",
        "camera": -run.get("trans", -1.0),
        "direction": run.get("pos_cor", (1.0, 0.0, 0.0)),
        "voxel_size": run["coef_3dgird"],
        "cell_size": run.get("coef_2dgird", run.get("coef_1dgird")),
        "positions": POSITIONS[kind],
        "adapter_dim": args["adapter_args"]["adapter_dim"],
        "adapter_scale": run["scale_factor"],
        "local_dim": args.get("attn2d_dim", args.get("attn1d_dim")),
        "view_weight": run["coef_pro"],
        "cell_pooling": "mean_max" if run.get("maxmean_2d", run.get("maxmean_1d")) else "mean",
        "pooling": "_".join(args["global_feat"].split(",")),
        "head_dim": model["cls_args"]["mlps"][0],
        "compat": ("wrap", "empty_cells"),
    }
    return Any2Point(**{**options, **changes}).eval()


def table(fixture: Fixture) -> Tensor:
    """Rows of positions, without the class token's."""
    stored = fixture["in/pos_table"]
    return stored if stored.ndim == 2 else stored[0, 1:]


def span_of_batch(places: Tensor) -> Tensor:
    """Upstream stretches lines by the range over the whole batch; the model by that of each cloud."""
    return (places.amax() - places.amin()).reshape(1, 1, 1)


def check_partition(ids: Tensor, recorded: Tensor) -> None:
    """The same tokens together, whatever the numbers."""
    assert torch.equal(cells_of(ids).same, cells_of(recorded).same)


def virtual_projection(fixture: Fixture) -> None:
    center, stored = fixture["in/centers"], table(fixture)
    projection = build(fixture, depth=0, rows=fixture["in/pos_table"].shape[-2]).projection
    places = projection.coordinates(center)
    fixture.check(places, "out/view_coords")
    fixture.check(projection.cells(places), "out/view_grid_index")
    check_partition(voxels(center, fixture.about["run_args"]["coef_3dgird"]), fixture["out/voxel_id"])
    if isinstance(projection, LineProjection):
        span = span_of_batch(places)
        fixture.check(projection.codes(places, stored, span), "out/pe_mean")
        for view, expected in enumerate(fixture["out/pe_per_view"].unbind(1)):
            actual = projection.codes(places[:, view : view + 1], stored, span)
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)
        return
    assert isinstance(projection, ImageProjection)
    fixture.check(projection.samples(places, stored)[0], "out/pe_raw_sample0")
    fixture.check(projection.codes(places, stored), "out/pe_mean_corrected")
    projection.scramble = True
    fixture.check(projection.codes(places, stored), "out/pe_mean_upstream")


class AcrossBatch(nn.Module):
    """Attention among the clouds of a batch at equal places, as upstream's text tower computes it."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x.transpose(0, 1)).transpose(0, 1)


def guided_adapter_block(fixture: Fixture) -> None:
    model = build(fixture, depth=1)
    weights = fixture.below_dict("param/")
    named = {
        key.removeprefix("shared.") if key.startswith("shared.") else f"blocks.0.{key}": value
        for key, value in weights.items()
    }
    report = load_weights(model, named, fixture.name, model.key_map)
    assert len(report.loaded) == len(weights), report.summary()
    block, adapter = model.tower.blocks[0], model.adapters[0]
    assert isinstance(block, TowerBlock) and isinstance(adapter, GuidedAdapter)
    views, voxel = cells_of(fixture["in/view_grid_index"]), cells_of(fixture["in/voxel_id"])
    clip = "out/block_tokenattn" in fixture
    if clip:
        x = block.attend(fixture["in/x"])
        fixture.check(adapter(x, block.feed(x), model.local, views, voxel), "out/block_tokenattn")
        block.attn = AcrossBatch(block.attn)  # type: ignore[assignment]
    x = block.attend(fixture["in/x"])
    fed = block.feed(x)
    fixture.check(adapter(x, fed, model.local, views, voxel), "out/block")
    fixture.check(adapter.bottleneck(fed), "out/adapter_out")
    tokens = (x + fed + adapter.scale * adapter.bottleneck(fed))[:, 1:]
    gathered = adapter.of_voxels(tokens, voxel).flatten(0, 1)
    number = fixture["in/voxel_id"].flatten().tolist()
    rows = torch.stack([gathered[number.index(row)] for row in range(len(fixture["out/voxel_feat"]))])
    fixture.check(rows, "out/voxel_feat")
    fixture.check(model.local[0](tokens, views.view(0))[:1], "out/view0_local_attn")
    for key in fixture.below("out/view"):
        if key.endswith("_cell_feat"):
            view = int(key.split("_")[0])
            fixture.check(adapter.of_view(view, tokens, model.local[view], views.view(view))[:1], f"out/view{key}")


def pointpn(fixture: Fixture) -> None:
    model = build(fixture, depth=0)
    weights = {f"patch_embed.{key}": value for key, value in fixture.below_dict("param/").items()}
    report = load_weights(model, weights, fixture.name, model.key_map)
    assert len(report.loaded) == len(weights), report.summary()
    tokenizer, pooled = model.tokenizer, []
    assert isinstance(tokenizer, PointPN)
    for stage in tokenizer.stages:
        stage.register_forward_hook(lambda m, i, out: pooled.append(out[1].mT))
    points = fixture["in/pts"]
    center, tokens = tokenizer(points)
    fixture.check(center, "out/centers")
    fixture.check(tokens.mT, "out/tokens")
    first = fixture["out/raw_embed"].shape[-1]
    fixture.check(tokenizer.embed(points[0, :first]).mT[None], "out/raw_embed")
    for number, features in enumerate(pooled[:-1]):
        fixture.check(features, f"out/stage{number}_pooled")


def cls(fixture: Fixture) -> None:
    model = build(fixture, rows=fixture["in/pos_table"].shape[-2])
    weights = {**fixture.below_dict("param/"), "positional_embedding": fixture["in/pos_table"]}
    report = load_weights(model, weights, fixture.name, model.key_map)
    assert report.missing in ([], ["tower.position"]) and len(report.loaded) == len(weights), report.summary()
    points = fixture["in/pts"]
    center, tokens = model.tokenizer(points)
    fixture.check(center, "out/centers")
    fixture.check(tokens.mT, "out/tokens")
    if isinstance(model.projection, LineProjection):
        stages(fixture, model, "_tokenattn")
        for block in model.tower.blocks:
            assert isinstance(block, TowerBlock)
            block.attn = AcrossBatch(block.attn)  # type: ignore[assignment]
        stages(fixture, model, "")
    else:
        assert isinstance(model.projection, ImageProjection)
        fixture.check(model(points), "out/logits_pefixed")
        model.projection.scramble = True
        fixture.check(model(points), "out/logits")
        stages(fixture, model, "")


def stages(fixture: Fixture, model: Any2Point, suffix: str) -> None:
    """Codes, blocks, the final norm and the logits."""
    center, tokens = model.tokenizer(fixture["in/pts"])
    places = model.projection.coordinates(center)
    codes = (
        model.projection.codes(places, model.tower.codes, span_of_batch(places))
        if isinstance(model.projection, LineProjection)
        else model.projection.codes(places, model.tower.codes)
    )
    outputs: list[Tensor] = []
    hooks = [each.register_forward_hook(lambda m, i, out: outputs.append(out)) for each in model.adapters]
    out = model.transform(tokens, codes, *model.neighbours(center, places))
    for hook in hooks:
        hook.remove()
    fixture.check(codes, "out/pe_mean")
    recorded = fixture[f"out/block_outputs{suffix}"]
    fixture.check(torch.stack(outputs, dim=int(recorded.shape[0] != len(outputs))), f"out/block_outputs{suffix}")
    if not suffix:
        fixture.check(out, "out/final_norm")
    fixture.check(model.classify(out), f"out/logits{suffix}")


KINDS = {
    "virtual_projection": virtual_projection,
    "guided_adapter_block": guided_adapter_block,
    "pointpn": pointpn,
    "cls": cls,
}
ADAPTERS = {f"any2point_{name}_{kind}": check for name in POSITIONS for kind, check in KINDS.items()}
