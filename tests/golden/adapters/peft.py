"""Point-PEFT and DAPT against what the official code computed, one cloud at a time where it mixes those of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.layers.bottleneck import Bottleneck
from models.layers.patch_embed import PatchEmbed
from models.peft.apply import apply_peft, key_map_of
from models.peft.dapt import DAPT, official_name
from models.peft.geometry import Neighbourhoods, spreading
from models.peft.point_peft import PointPEFT
from models.peft.prior import retrieve
from models.point_m2ae_finetune import PointM2AEClassifier
from models.point_mae import PointMAEClassifier
from tests.golden.adapters.mae import load
from tests.golden.fixtures import Fixture

INNER = 18  # width of the local attention, a literal upstream
PROMPT_BLOCKS = 6  # likewise
IN_TRAINING_ORDER = {"ln1": "down", "ln2": "up"}


def tolerances(fixture: Fixture) -> dict[str, Any]:
    """These fixtures tell their tolerances in another place. Returns the configuration."""
    fixture.about.update(fixture.about["tolerance_float32"])
    return fixture.about["config"]


class Given(nn.Module):
    """Stands for the feature extractor: the recorded features."""

    def __init__(self, feature: Tensor):
        super().__init__()
        self.feature = feature

    def forward(self, points: Tensor) -> Tensor:
        return self.feature[: len(points)]


def pointpeft_bottleneck(fixture: Fixture, residual: bool) -> None:
    config = tolerances(fixture)
    model = Bottleneck(config["embed_dims"], config["reduction_dims"], residual=residual).eval()
    load(model, fixture, bottleneck_name)
    fixture.check(model(fixture["in/x"]), "out/y")


def bottleneck_name(key: str) -> str:
    return f"{IN_TRAINING_ORDER[key[:3]]}{key[3:]}"


def pointpeft_prior_prompt(fixture: Fixture) -> None:
    config = tolerances(fixture)
    feature, bank, k = fixture["in/cp_feat"], fixture["in/bank"], config["K"]
    similarity = nn.functional.normalize(feature, dim=-1) @ bank
    fixture.check(similarity, "out/similarity")
    values, index = similarity.topk(k, dim=-1)
    fixture.check(index, "out/topk_index")
    fixture.check(values.softmax(dim=-1), "out/topk_weight")
    prior = retrieve(feature, bank, k)
    fixture.check(prior, "out/cache_prompt")
    where = "param/blocks.blocks.0."
    adapter = Bottleneck(config["embed_dims"], config["reduction_dims"]).eval()
    load(adapter, fixture, bottleneck_name, f"{where}cp_adapter.")
    fixture.check(adapter(prior), "out/cp_adapter_out")
    fixture.check(fixture[f"{where}prompt_embeddings"] + adapter(prior), "out/prompt_layer0")


# ---------------------------------------------------------------- blocks


def one_block(fixture: Fixture, model: Any, **options: Any) -> tuple[PointPEFT, Any]:
    """The adaptation on a model whose first block has the recorded parameters."""
    config = tolerances(fixture)
    common = {"num_prompts": config["num_tokens"], "adapter_dim": config["adapter_dim"]}
    common |= {"inner_dim": INNER, "inner_heads": config["num_heads"], "bank": "build"}
    apply_peft(model, [{"name": "point_peft", **common, **options}])
    key_map, state = key_map_of(model), model.state_dict()
    for key in fixture.below("param/"):
        name = f"blocks.{key.removeprefix('shared.')}" if key.startswith("shared.") else f"blocks.blocks.0.{key}"
        ours = key_map(name)
        value = fixture[f"param/{key}"]
        assert ours in state and state[ours].shape == value.shape, f"{key} -> {ours}"
        state[ours].copy_(value)
    method = model.eval().peft.methods[0]
    assert isinstance(method, PointPEFT)
    return method, model.encoder.transformer.blocks[0]


def recorded_hoods(fixture: Fixture) -> Neighbourhoods:
    weights = spreading(fixture["in/center1"], fixture["in/center2"])
    return Neighbourhoods(fixture["in/knn_index_local"].long(), fixture["in/center_index_local"].long(), weights)


def classifier_around(config: dict, tokens: int) -> PointMAEClassifier:
    """A model of one block with the recorded sizes."""
    sizes = {"embed_dim": config["dim"], "num_heads": config["num_heads"], "num_group": tokens, "group_size": 2}
    return PointMAEClassifier(2, depth=1, **sizes)


def pointpeft_mae_block(fixture: Fixture, prompted: bool) -> None:
    config, x = tolerances(fixture), fixture["in/x"]
    tokens = fixture["in/center1"].shape[1]
    method, block = one_block(
        fixture,
        classifier_around(config, tokens),
        prompt_blocks=int(prompted),
        prior_dim=fixture["param/cp_adapter.ln1.bias"].shape[0],
        compat=["prompt_rows", "unused_weights"],
    )
    method.scene["prompted" if prompted else "plain", 0] = recorded_hoods(fixture)
    if prompted:
        method.scene["prior"] = fixture["in/cache_prompt"]
    of_stage: Any = method.stages[0]
    seen: dict[str, Tensor] = {}
    parts = of_stage.blocks[0]
    for name, module in (("attn_out", block.attn), ("mlp_out", block.mlp), ("adapter_out", parts.inner)):
        module.register_forward_hook(lambda _, args, out, name=name: seen.update({name: out}))
    parts.outer.register_forward_hook(lambda _, args, out: seen.update(before_adapter1=args[0], after_adapter1=out))
    out = method.step(0, 0, block, x, torch.zeros_like(x), None)
    fixture.check(out, "out/block_persample")
    for name in ("attn_out", "mlp_out", "adapter_out"):  # before clouds are mixed
        fixture.check(seen[name], f"out/{name}")
    for name in ("before_adapter1", "after_adapter1"):
        check_first(fixture, seen[name], f"out/{name}", everything=not prompted)
    check_first(fixture, out, "out/block", everything=not prompted)


def check_first(fixture: Fixture, actual: Tensor, key: str, everything: bool) -> None:
    """Upstream's slip leaves the first cloud of a batch as it is."""
    if everything:
        fixture.check(actual, key)
    else:
        fixture.arrays[f"{key}/first"] = fixture[key][:1]
        fixture.check(actual[:1], f"{key}/first")


def pointpeft_mae_modelnet_block(fixture: Fixture) -> None:
    config, x = tolerances(fixture), fixture["in/x"]
    run = fixture.about["run_args"]
    method, block = one_block(
        fixture,
        classifier_around(config, fixture["in/center1"].shape[1]),
        prompts="keys",
        ffn="gate",
        prior_dim=config["cp_adapter_dim"],
        propagate=run["propagate_cof"],
        center=run["center_cof"],
        pooling="mean_max" if run["if_maxmean"] else "max",
        compat=["double_softmax"],
    )
    method.scene["plain", 0] = recorded_hoods(fixture)
    method.scene["prior"] = retrieve(fixture["in/cp_feat"], fixture["in/bank"], config["num_tokens"] - 2)
    fixture.check(method.step(0, 0, block, x, torch.zeros_like(x), None), "out/block")


def pointpeft_m2ae_block(fixture: Fixture) -> None:
    config, x, run = tolerances(fixture), fixture["in/x"], fixture.about["run_args"]
    blocked = fixture["in/mask"][:, None].bool()
    bias = torch.zeros(blocked.shape).masked_fill_(blocked, -torch.inf)
    for key, compat in (("block_persample", ["shifted_mask"]), ("block_maskfixed_persample", [])):
        method, block = one_block(
            fixture,
            classifier_around(config, x.shape[1]),
            prompt_blocks=None,
            ffn="gate",
            prior_dim=fixture["param/cp_adapter.ln1.bias"].shape[0] if config["has_cp_adapter"] else 0,
            propagate=run["propagate_cof"],
            center=run["center_cof"],
            pooling="mean_max" if run["if_maxmean"] else "max",
            compat=["prompt_rows", *compat],
        )
        method.scene["prompted", 0] = recorded_hoods(fixture)
        if config["has_cp_adapter"]:
            method.scene["prior"] = fixture["in/cache_prompt"]
        out = method.step(0, 0, block, x, torch.zeros_like(x), bias)
        fixture.check(out, f"out/{key}")
        if compat:
            check_first(fixture, out, "out/block", everything=False)


# ---------------------------------------------------------------- classifiers


def adapted(fixture: Fixture, model: Any, feature: str, **options: Any) -> PointPEFT:
    apply_peft(model, [{"name": "point_peft", "inner_dim": INNER, "bank": "build", **options}])
    load(model, fixture, without_copies(model))
    method = model.eval().peft.methods[0]
    assert isinstance(method, PointPEFT)
    method.extractor = Given(fixture[feature])  # type: ignore[assignment]
    method.set_bank(fixture["in/bank"])
    return method


def without_copies(model: Any) -> Callable[[str], str | None]:
    """Upstream's names; what we keep of the backbone as it was is no part of them."""
    for method in model.peft.methods:
        if hasattr(method, "extractor"):
            method.extractor = None
    for name in [name for name, _ in model.peft.named_buffers(recurse=False)]:
        delattr(model.peft, name)
    model.peft._names.clear()
    return key_map_of(model)


def watch(blocks: nn.Module, seen: list[Tensor]) -> None:
    """Note what leaves every block."""
    step = blocks.step

    def watched(*args: Any) -> Tensor:
        seen.append(step(*args))  # type: ignore[operator]
        return seen[-1]

    blocks.step = watched  # type: ignore[assignment]


def check_hoods(fixture: Fixture, hoods: Neighbourhoods, index: str, center: str, groups: int) -> None:
    """Upstream counts rows through the whole batch."""
    offset = torch.arange(len(hoods.index))[:, None, None] * groups
    fixture.check((hoods.index + offset).flatten().to(fixture[index].dtype), index)
    fixture.check((hoods.center + offset[..., 0]).flatten().to(fixture[center].dtype), center)


def pointpeft_mae_cls(fixture: Fixture) -> None:
    config, points = tolerances(fixture), fixture["in/pts"]
    model = PointMAEClassifier(
        config["cls_dim"],
        embed_dim=config["trans_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        drop_path_rate=config["drop_path_rate"],
        num_group=config["num_group"],
        group_size=config["group_size"],
    )
    method = adapted(
        fixture,
        model,
        "in/cp_feat",
        num_prompts=fixture["param/prompt_cor"].shape[0],
        prompt_blocks=PROMPT_BLOCKS,
        adapter_dim=config["adapter_config"]["adapter_dim"],
        prior_dim=fixture["param/blocks.blocks.0.cp_adapter.ln1.bias"].shape[0],
        inner_heads=config["num_heads"],
        compat=["prompt_rows", "unused_weights"],
    )
    seen: list[Tensor] = []
    watch(model.encoder.transformer, seen)
    model.encoder.transformer.norm.register_forward_hook(
        lambda _, args, out: check_first(fixture, out, "out/final_norm", False) if len(out) > 1 else None
    )
    model.encoder.embed.register_forward_hook(
        lambda _, args, out: fixture.check(out, "out/tokens_embed") if len(out) > 1 else None
    )
    fixture.check(model(points), "out/logits_persample")
    fixture.check(torch.stack(seen), "out/block_outputs_persample")
    fixture.check(method.scene["prior"], "out/cache_prompt")
    fixture.check(method.scene["centers"][0], "out/center")
    groups = config["num_group"]
    check_hoods(fixture, method.scene["plain", 0], "out/group2_idx_flat", "out/group2_center_idx_flat", groups)
    check_hoods(
        fixture, method.scene["prompted", 0], "out/group2_prompt_idx_flat", "out/group2_prompt_center_idx_flat", groups
    )
    check_first(fixture, model(points), "out/logits", everything=False)
    method.set_bank(None)
    fixture.check(model(points[:1]), "out/logits_no_cache_sample0")


def pointpeft_m2ae_cls(fixture: Fixture) -> None:
    config, points, run = tolerances(fixture), fixture["in/pts"], fixture.about["run_args"]
    sizes = config["transformer_config"]
    for key, compat in (("logits_persample", ["shifted_mask"]), ("logits_maskfixed_persample", [])):
        model = PointM2AEClassifier(
            config["cls_dim"],
            "mean_max",
            num_groups=config["num_groups"],
            group_sizes=config["group_sizes"],
            embed_dims=sizes["encoder_dims"],
            depths=sizes["depths"],
            num_heads=sizes["num_heads"],
            drop_path_rate=sizes["drop_path_rate"],
        )
        method = adapted(
            fixture,
            model,
            "in/cp_feat2",
            num_prompts=fixture["param/prompt_cor"].shape[0],
            prompt_blocks=None,
            adapter_dim=config["adapter_config"]["adapter_dim"],
            prior_dim=fixture["param/blocks.2.blocks.0.cp_adapter.ln1.bias"].shape[0],
            inner_heads=sizes["num_heads"],
            ffn="gate",
            propagate=run["propagate_cof"],
            center=run["center_cof"],
            pooling="mean_max" if run["if_maxmean"] else "max",
            compat=["prompt_rows", *compat],
        )
        fixture.check(model(points), f"out/{key}")
        fixture.check(method.scene["prior"], "out/cache_prompt")
        for level, groups in enumerate(config["num_groups"]):
            check_hoods(
                fixture,
                method.scene["prompted", level],
                f"out/level{level}_idx_flat",
                f"out/level{level}_center_idx_flat",
                groups,
            )


# ---------------------------------------------------------------- DAPT


def dapt_adapter(fixture: Fixture) -> None:
    from models.peft.dapt import DynamicAdapter

    config = tolerances(fixture)
    model = DynamicAdapter(config["d_model"], config["bottleneck"], 0.0).eval()
    prefix, own = "blocks.blocks.0.Adapter_MLP.", "@stages.0.0.adapter."
    load(model, fixture, lambda key: official_name(prefix + key).removeprefix(own))
    x = fixture["in/x"]
    fixture.check(model(x), "out/y")
    fixture.check(torch.relu(model.score(model.norm(x))), "out/token_scale")


def dapt_block(fixture: Fixture) -> None:
    config, x = tolerances(fixture), fixture["in/x"]
    sizes = {"embed_dim": config["dim"], "num_heads": config["num_heads"], "num_group": x.shape[1] - 1, "group_size": 2}
    model = PointMAEClassifier(2, depth=1, **sizes)
    apply_peft(model, [{"name": "dapt", "rank": config["rank"]}])
    key_map, state = key_map_of(model), model.state_dict()
    for key in fixture.below("param/"):
        state[str(key_map(f"blocks.blocks.0.{key}"))].copy_(fixture[f"param/{key}"])
    method = model.eval().peft.methods[0]  # type: ignore[union-attr, index]
    assert isinstance(method, DAPT)
    out = method.step(0, 0, model.encoder.transformer.blocks[0], x, torch.zeros_like(x), None)
    fixture.check(torch.cat([out[:, :1], method.carried["out"], out[:, 1:]], dim=1), "out/y")


def dapt_cls(fixture: Fixture) -> None:
    config, points = tolerances(fixture), fixture["in/pts"]
    model = PointMAEClassifier(
        config["cls_dim"],
        embed_dim=config["trans_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        drop_path_rate=config["drop_path_rate"],
        num_group=config["num_group"],
        group_size=config["group_size"],
    )
    apply_peft(model, [{"name": "dapt", "rank": config["rank"], "dropout": config["drop_adapter_rate"]}])
    load(model, fixture, without_copies(model))
    norms: list[Tensor] = []
    norm = model.encoder.transformer.norm
    norm.register_forward_pre_hook(lambda _, args: norms.append(nn.LayerNorm.forward(norm, args[0])))  # not scaled yet
    fixture.check(
        PatchEmbed.forward(model.eval().encoder.embed, model.group(points)[0]), "out/tokens"
    )  # not scaled yet
    fixture.check(model.eval()(points), "out/logits")
    tokens, prompts = norms
    fixture.check(torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], dim=1), "out/final_norm")


ADAPTERS: dict[str, Callable[[Fixture], None]] = {
    "pointpeft_bottleneck_residual": lambda fixture: pointpeft_bottleneck(fixture, residual=True),
    "pointpeft_bottleneck_noresidual": lambda fixture: pointpeft_bottleneck(fixture, residual=False),
    "pointpeft_prior_prompt": pointpeft_prior_prompt,
    "pointpeft_mae_block_plain": lambda fixture: pointpeft_mae_block(fixture, prompted=False),
    "pointpeft_mae_block_prompt": lambda fixture: pointpeft_mae_block(fixture, prompted=True),
    "pointpeft_mae_modelnet_block": pointpeft_mae_modelnet_block,
    "pointpeft_m2ae_block": pointpeft_m2ae_block,
    "pointpeft_mae_cls": pointpeft_mae_cls,
    "pointpeft_m2ae_cls": pointpeft_m2ae_cls,
    "dapt_adapter": dapt_adapter,
    "dapt_block": dapt_block,
    "dapt_cls": dapt_cls,
}
