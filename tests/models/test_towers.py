"""Frozen towers: from the files of their projects, from timm, or told in one sentence why not."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models import MODELS, TOWERS
from models.any2point import towers
from models.any2point.towers import tower_key
from models.layers.tower import Tower
from utils.checkpoint import load_weights
from utils.errors import UserError

WIDTH = 24
SIZES = {"embed_dim": WIDTH, "depth": 2, "num_heads": 2}
# Tensors of each kind of file, and others that lie beside them.
SHAPES = {"qkv": 3 * WIDTH, "fc1": 4 * WIDTH, "c_fc": 4 * WIDTH, "in_proj": 3 * WIDTH}


def shape_of(key: str) -> list[int]:
    """Of a tensor in a block."""
    outputs = next((size for word, size in SHAPES.items() if word in key), WIDTH)
    if "norm" in key or "ln_" in key or "ls" in key or key.endswith("bias"):
        return [outputs]
    return [outputs, 4 * WIDTH if "fc2" in key or "mlp.c_proj" in key else WIDTH]


def block(at: str, words: str) -> dict[str, list[int]]:
    return {at + key: shape_of(key) for key in words.split()}


CLIP = (
    "ln_1.weight ln_1.bias ln_2.weight ln_2.bias attn.in_proj_weight attn.in_proj_bias attn.out_proj.weight "
    "attn.out_proj.bias mlp.c_fc.weight mlp.c_fc.bias mlp.c_proj.weight mlp.c_proj.bias"
)
DINO = (
    "norm1.weight norm1.bias norm2.weight norm2.bias ls1.gamma ls2.gamma attn.qkv.weight attn.qkv.bias "
    "attn.proj.weight attn.proj.bias mlp.fc1.weight mlp.fc1.bias mlp.fc2.weight mlp.fc2.bias"
)
AUDIO = (
    "norm_1.weight norm_1.bias norm_2.weight norm_2.bias attn.in_proj_weight attn.in_proj_bias attn.out_proj.weight "
    "attn.out_proj.bias mlp.fc1.weight mlp.fc1.bias mlp.fc2.weight mlp.fc2.bias"
)
FILES: dict[str, dict[str, list[int]]] = {
    "text": {
        **block("transformer.resblocks.0.", CLIP),
        **block("transformer.resblocks.1.", CLIP),
        "ln_final.weight": [WIDTH],
        "ln_final.bias": [WIDTH],
        "positional_embedding": [77, WIDTH],
    },
    "vision": {
        **block("blocks.0.", DINO),
        **block("blocks.1.", DINO),
        "norm.weight": [WIDTH],
        "norm.bias": [WIDTH],
        "cls_token": [1, 1, WIDTH],
        "pos_embed": [1, 1370, WIDTH],
    },
    "audio": {
        **block("modality_trunks.audio.blocks.0.", AUDIO),
        **block("modality_trunks.audio.blocks.1.", AUDIO),
        "modality_heads.audio.0.weight": [WIDTH],
        "modality_heads.audio.0.bias": [WIDTH],
        "modality_preprocessors.audio.cls_token": [1, 1, WIDTH],
        "modality_preprocessors.audio.pos_embedding_helper.pos_embed": [1, 229, WIDTH],
    },
}
OTHERS: dict[str, dict[str, list[int]]] = {
    "text": {
        "visual.transformer.resblocks.0.ln_1.weight": [32],
        "visual.positional_embedding": [257, 32],
        "text_projection": [WIDTH, WIDTH],
        "token_embedding.weight": [100, WIDTH],
        "logit_scale": [],
    },
    "vision": {"patch_embed.proj.weight": [WIDTH, 3, 14, 14], "mask_token": [1, WIDTH], "head.weight": [10, WIDTH]},
    "audio": {
        "modality_trunks.audio.blocks.0.attn.bias_k": [1, 1, WIDTH],
        "modality_trunks.vision.blocks.0.norm_1.weight": [32],
        "modality_preprocessors.audio.rgbt_stem.proj.weight": [WIDTH, 1, 16, 16],
    },
}


def weights_of(name: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {key: torch.randn(shape, generator=generator) for key, shape in (FILES[name] | OTHERS[name]).items()}


@pytest.mark.parametrize("name", FILES)
def test_the_files_of_their_projects(name: str, tmp_path: Path) -> None:
    weights, path = weights_of(name), tmp_path / "tower.safetensors"
    save_file(weights, path)
    tower = TOWERS.build({"name": name, **SIZES, "weights": str(path)})
    assert tower.source == str(path)
    for key in FILES[name]:
        assert torch.equal(tower.state_dict()[str(tower_key(key))], weights[key]), key
    for key in OTHERS[name]:
        assert tower_key(key) is None


@pytest.mark.parametrize("name", FILES)
def test_the_same_file_as_a_checkpoint(name: str) -> None:
    """--ckpts takes it too; half precision is read."""
    weights = {key: value.half() for key, value in weights_of(name).items()}
    model = MODELS.build({"name": "Any2Point", "num_classes": 3, "tower": {"name": name, **SIZES}})
    report = load_weights(model, weights, "file", model.key_map)
    assert sorted(report.unused) == sorted(OTHERS[name]) and not report.unexpected
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad} | {"tower.position"}
    assert frozen <= set(report.loaded)
    assert model.tower.position.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_clip_as_it_is_distributed(tmp_path: Path) -> None:
    """A TorchScript archive in half precision."""

    class Holder(nn.Module):
        def __init__(self, parts: dict[str, Tensor]):
            super().__init__()
            below: dict[str, dict[str, Tensor]] = {}
            for key, value in parts.items():
                first, _, rest = key.partition(".")
                if rest:
                    below.setdefault(first, {})[rest] = value
                else:
                    self.register_buffer(first, value)
            for name, children in below.items():
                self.add_module(name, Holder(children))

    weights, path = {key: value.half() for key, value in weights_of("text").items()}, tmp_path / "ViT-L-14.pt"
    torch.jit.script(Holder(weights)).save(str(path))
    tower = TOWERS.build({"name": "text", **SIZES, "weights": str(path)})
    assert torch.equal(tower.position, weights["positional_embedding"].float())
    key = "transformer.resblocks.1.mlp.c_proj.weight"
    assert torch.equal(tower.blocks[1].mlp.fc2.weight, weights[key].float())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"grid": [16, 16]}, r"positions \(1, 1370, 24\), but the tower has \(1, 257, 24\); set tower.grid"),
        ({"prefix": 0}, r"but the tower has \(1, 1369, 24\)"),
        ({"depth": 1}, r"has blocks.1.* besides; set the sizes of the tower"),
        ({"depth": 3}, r"lacks blocks.2"),
        ({"layer_scale": False}, r"has blocks.0.ls1.gamma besides"),
        ({"pre_norm": True}, r"lacks norm_pre"),
        ({"mlp_ratio": 2}, r"sizes differ"),
        ({"embed_dim": 48}, r"positions \(1, 1370, 24\), but the tower has \(1, 1370, 48\)"),
        ({"grid": [37]}, r"tower.grid: \[37\]; name rows and columns"),
        ({"num_heads": 5}, r"24 is not a multiple of num_heads 5"),
    ],
)
def test_sizes_that_are_not_those_of_the_file(changes: dict, message: str, tmp_path: Path) -> None:
    save_file(weights_of("vision"), tmp_path / "tower.safetensors")
    with pytest.raises(UserError, match=message):
        TOWERS.build({"name": "vision", **SIZES, "weights": str(tmp_path / "tower.safetensors"), **changes})


def test_files_that_are_no_tower(tmp_path: Path) -> None:
    build = {"name": "vision", **SIZES}
    with pytest.raises(UserError, match="no such checkpoint"):
        TOWERS.build({**build, "weights": str(tmp_path / "absent.pth")})
    (tmp_path / "broken.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="damaged or not a checkpoint"):
        TOWERS.build({**build, "weights": str(tmp_path / "broken.safetensors")})
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="nothing fits the model"):
        TOWERS.build({**build, "weights": str(tmp_path / "other.pth")})
    torch.save({"weights": tmp_path}, tmp_path / "code.pth")  # a path is an object, not a tensor
    with pytest.raises(UserError, match="refused, nothing was executed"):
        TOWERS.build({**build, "weights": str(tmp_path / "code.pth")})


def test_timm_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        UserError, match=r"^tower 'timm' needs timm and a torchvision that fits torch, .*halted"
    ) as told:
        TOWERS.build({"name": "timm", "model": "vit_tiny_patch16_224"})
    assert "\n" not in str(told.value) and "tower 'vision'" in str(told.value)
    TOWERS.build({"name": "vision", **SIZES})  # all else works without it


def test_torchvision_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it fails when its binary does not fit torch: with a RuntimeError at import."""

    class Broken:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "timm":
                raise RuntimeError("operator torchvision::nms does not exist\nand more")

    for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(UserError, match=r"torchvision::nms does not exist\); install both together") as told:
        TOWERS.build({"name": "timm", "model": "vit_tiny_patch16_224"})
    assert "and more" not in str(told.value)


class OfTimm:
    """What a test replaces `create_timm` by: a small model instead of a published one."""

    def __init__(self, **options):
        self.vit = pytest.importorskip("timm.models.vision_transformer")
        sizes = {"img_size": 64, "patch_size": 16, "embed_dim": WIDTH, "depth": 2, "num_heads": 2}
        self.model = self.vit.VisionTransformer(**sizes, num_classes=3, **options).eval()

    def __call__(self, name: str, pretrained: bool):
        return self.model


@pytest.mark.parametrize(
    "options, prefix",
    [
        ({"init_values": 0.1}, 1),
        ({"pre_norm": True}, 1),
        ({"reg_tokens": 4, "no_embed_class": True}, 0),
        ({"class_token": False, "global_pool": "avg", "fc_norm": False}, 0),
        ({"act_layer": "quick_gelu"}, 1),
    ],
)
def test_blocks_of_timm(options: dict, prefix: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our blocks with timm's weights compute what timm's compute."""
    made = OfTimm(**options)
    monkeypatch.setattr(towers, "create_timm", made)
    tower = TOWERS.build({"name": "timm", "model": "small"}).eval()
    assert isinstance(tower, Tower)
    assert (tower.grid, tower.patch, tower.prefix) == ((4, 4), 16, prefix) and tower.codes.shape == (16, WIDTH)
    x = torch.randn(2, 7, WIDTH)
    expected = made.model.norm(made.model.blocks(made.model.norm_pre(x)))
    out = tower.norm_pre(x)
    for each in tower.blocks:
        out = each(out)
    torch.testing.assert_close(tower.norm(out), expected, atol=1e-5, rtol=1e-4)


def test_towers_of_timm_that_are_not_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "create_timm", OfTimm(qk_norm=True))
    with pytest.raises(UserError, match=r"has blocks.0.attn.q_norm.weight besides"):
        TOWERS.build({"name": "timm", "model": "small"})
    monkeypatch.setattr(towers, "create_timm", lambda *_: nn.Linear(2, 2))
    with pytest.raises(UserError, match="'other' has no plain blocks with a table of positions"):
        TOWERS.build({"name": "timm", "model": "other"})


def test_names_that_timm_does_not_know() -> None:
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=r"could not make 'no_such_model' \(.*\); see timm.list_models"):
        TOWERS.build({"name": "timm", "model": "no_such_model", "pretrained": False})
