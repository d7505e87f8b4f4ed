"""The frozen towers: sizes, the files they come in, and timm as one more source."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from models.layers.tower import Activation, Tower
from utils.checkpoint import load_weights, read_checkpoint, weights_in
from utils.errors import UserError, first_line
from utils.schema import Whole


def text_tower(
    weights: str | None = None,
    embed_dim: int = 768,
    depth: int = 12,
    num_heads: int = 12,
    mlp_ratio: float = 4.0,
    length: int = 77,
    drop_path_rate: float = 0.0,
) -> Tower:
    """A CLIP-style text transformer; default: that of CLIP ViT-L/14. Attention without the causal mask."""
    hidden = int(embed_dim * mlp_ratio)
    tower = Tower(
        embed_dim,
        depth,
        num_heads,
        hidden,
        length,
        eps=1e-5,
        activation="quick_gelu",
        drop_path_rate=drop_path_rate,
    )
    return filled(tower, weights)


def vision_tower(
    weights: str | None = None,
    embed_dim: int = 768,
    depth: int = 12,
    num_heads: int = 12,
    mlp_ratio: float = 4.0,
    grid: Sequence[int] = (37, 37),
    patch: int = 14,
    prefix: Whole = 1,
    eps: float = 1e-6,
    layer_scale: bool = True,
    activation: Activation = "gelu",
    pre_norm: bool = False,
    drop_path_rate: float = 0.0,
) -> Tower:
    """A plain vision transformer; default: DINOv2 ViT-B/14 at 518 pixels. grid: rows and columns of patches."""
    rows, columns = checked_grid(grid)
    tower = Tower(
        embed_dim,
        depth,
        num_heads,
        int(embed_dim * mlp_ratio),
        prefix + rows * columns,
        (rows, columns),
        patch,
        prefix,
        eps,
        layer_scale,
        activation,
        pre_norm,
        drop_path_rate,
    )
    return filled(tower, weights)


def audio_tower(
    weights: str | None = None,
    embed_dim: int = 768,
    depth: int = 12,
    num_heads: int = 12,
    mlp_ratio: float = 4.0,
    grid: Sequence[int] = (12, 19),
    patch: int = 16,
    drop_path_rate: float = 0.0,
) -> Tower:
    """A transformer on spectrograms; default: ImageBind's, 12 mel bands by 19 times (upstream: [19, 12])."""
    return vision_tower(
        weights, embed_dim, depth, num_heads, mlp_ratio, grid, patch, layer_scale=False, drop_path_rate=drop_path_rate
    )


def timm_tower(model: str, pretrained: bool = True, weights: str | None = None, drop_path_rate: float = 0.0) -> Tower:
    """Sizes, and unless `weights` names a file also the weights, of a vision transformer of timm."""
    source = create_timm(model, pretrained and weights is None)
    family = {kind.__name__ for kind in type(source).__mro__}
    if "VisionTransformer" not in family or source.pos_embed is None:
        raise UserError(f"tower.model: '{model}' has no plain blocks with a table of positions; use a ViT or DeiT")
    block, state = source.blocks[0], source.state_dict()
    embed = source.patch_embed
    prefix = 0 if getattr(source, "no_embed_class", False) else source.num_prefix_tokens
    tower = Tower(
        source.embed_dim,
        len(source.blocks),
        block.attn.num_heads,
        block.mlp.fc1.out_features,
        source.pos_embed.shape[1],
        (embed.grid_size[0], embed.grid_size[1]),
        embed.patch_size[0],
        prefix,
        block.norm1.eps,
        "blocks.0.ls1.gamma" in state,
        "quick_gelu" if "quick" in type(block.mlp.act).__name__.lower() else "gelu",
        "norm_pre.weight" in state,
        drop_path_rate,
    )
    fill(tower, state, f"timm {model}")  # also tells whether the blocks are plain ones
    tower.source = f"timm {model}" if pretrained else None
    return filled(tower, weights)


def create_timm(model: str, pretrained: bool) -> Any:
    """The one place that needs timm."""
    try:
        timm = importlib.import_module("timm")
    except Exception as error:  # a torchvision that does not fit its torch raises nearly anything
        raise UserError(
            f"tower 'timm' needs timm and a torchvision that fits torch, which do not import ({first_line(error)}); "
            "install both together with torch, or use tower 'vision' with weights from a file"
        ) from error
    try:
        return timm.create_model(model, pretrained=pretrained)
    except Exception as error:  # unknown names, no network, broken downloads
        raise UserError(
            f"tower.model: timm could not make '{model}' ({first_line(error)}); see timm.list_models('vit*'), or name "
            "a file in tower.weights"
        ) from error


def checked_grid(grid: Sequence[int]) -> tuple[int, int]:
    if len(grid) != 2 or min(grid) < 2:
        raise UserError(f"tower.grid: {list(grid)}; name rows and columns of patches, at least 2 each, e.g. [37, 37]")
    return grid[0], grid[1]


def filled(tower: Tower, weights: str | None) -> Tower:
    """With the weights of a file, if one is named."""
    if weights is not None:
        fill(tower, weights_in(read_checkpoint(weights), weights), weights)
        tower.source = weights
    return tower


def fill(tower: Tower, weights: dict[str, Tensor], source: str) -> None:
    """All of the tower must be in the file, and all of the file's blocks in the tower."""
    table = next((value for key, value in weights.items() if tower_key(key) == "position"), None)
    if table is not None and table.shape != tower.position.shape:
        raise UserError(
            f"{source}: positions {tuple(table.shape)}, but the tower has {tuple(tower.position.shape)}; set "
            "tower.grid (rows and columns of patches), tower.prefix, tower.length, tower.embed_dim to those of the file"
        )
    report = load_weights(tower, weights, source, tower_key)
    optional = {"cls_token"}  # a text has none
    missing = [key for key in report.missing if key not in optional]
    extra = [key for key in report.unexpected if str(tower_key(key)).startswith("blocks.")]
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"has {extra[0]} besides"
        raise UserError(f"{report.summary()}: {what}; set the sizes of the tower to those of the file")


# Names of whole towers of other projects, tried in turn; what else such files hold is not needed.
OFFICIAL = (
    (r"(?:transformer\.)?resblocks\.(.+)", r"blocks.\1"),  # CLIP, text
    (r"ln_final\.(.+)", r"norm.\1"),
    (r"positional_embedding|pos_embed", "position"),
    (r"modality_trunks\.audio\.(blocks\..+)", r"\1"),  # ImageBind
    (r"modality_heads\.audio\.0\.(.+)", r"norm.\1"),
    (r"modality_preprocessors\.audio\.(cls_token)", r"\1"),
    (r"modality_preprocessors\.audio\..*pos_embed", "position"),
)
IN_BLOCKS = (
    (".ln_1.", ".norm1."),
    (".ln_2.", ".norm2."),
    (".norm_1.", ".norm1."),
    (".norm_2.", ".norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.in_proj_", ".attn.qkv."),
    (".attn.out_proj.", ".attn.proj."),
)
OWN = re.compile(r"(blocks|norm|norm_pre)\.|(cls_token|position)$")


def tower_key(key: str) -> str | None:
    """A key of CLIP, DINOv2, ImageBind or timm in our words; None for what no tower here has."""
    for pattern, ours in OFFICIAL:
        if re.fullmatch(pattern, key):
            key = re.sub(pattern, ours, key)
            break
    for official, ours in IN_BLOCKS:
        key = key.replace(official, ours)
    return None if key.endswith((".bias_k", ".bias_v")) or not OWN.match(key) else key


def freeze(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(False)
