"""Full-size Any2Point and Point-BERT hold, and train, exactly the official tensors."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models import MODELS
from tests.golden.fixtures import ABSENT, GOLDEN
from utils.checkpoint import load_weights

pytestmark = pytest.mark.filterwarnings("ignore:for .*meta parameter")  # sizes are compared, nothing is copied
SCAN = {"num_classes": 15}
MODELNET = {"num_classes": 40, "head_bias": True, "pooling": "cls_max"}
CASES: dict[str, tuple[str, dict, int, int, int]] = {  # tower, options, total, trained, of these without the head
    "any2point_clip_lang": ("text", {**SCAN, "adapter_dim": 16}, 86_466_407, 1_411_943, 948_312),
    "any2point_dinov2_vision": ("vision", {**SCAN, "adapter_dim": 8}, 86_337_287, 1_264_391, 800_760),
    "any2point_imagebind_audio": ("audio", {**SCAN, "adapter_dim": 12}, 86_392_631, 1_338_167, 874_536),
    "any2point_clip_lang_modelnet": ("text", {**MODELNET, "adapter_dim": 16}, 86_473_344, 1_418_880, 948_312),
    "any2point_dinov2_modelnet": ("vision", {**MODELNET, "adapter_dim": 8}, 86_344_224, 1_271_328, 800_760),
    "any2point_imagebind_modelnet": ("audio", {**MODELNET, "adapter_dim": 8}, 86_325_792, 1_271_328, 800_760),
}


def read(name: str) -> dict:
    path = GOLDEN / "manifests" / "peft" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"no manifest {path}" if GOLDEN.is_dir() else ABSENT)
    return json.loads(path.read_text())


def empty(shapes: dict) -> dict[str, Tensor]:
    """Tensors of these names and shapes; they take no memory."""
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def build(options: dict) -> nn.Module:
    with torch.device("meta"):
        return MODELS.build(options)


def key_map_of(model: nn.Module) -> Callable[[str], "str | None"]:
    assert callable(model.key_map)
    return model.key_map


@pytest.mark.parametrize("name", CASES)
def test_any2point(name: str) -> None:
    tower, options, total, trained, without_head = CASES[name]
    model, official = build({"name": "Any2Point", "tower": {"name": tower}, **options}), read(name)
    entries, key_map = official["params"], key_map_of(model)
    report = load_weights(model, empty({key: entry["shape"] for key, entry in entries.items()}), name, key_map)
    assert report.missing == ["tower.position"] and len(report.loaded) == len(entries), report.summary()
    by_name = dict(model.named_parameters())
    numbers = {key: p.numel() for key, p in by_name.items() if p.requires_grad}
    assert sum(p.numel() for p in by_name.values()) == total == official["_total_params"]
    assert sum(numbers.values()) == trained == official["_trainable_params"]
    assert sum(number for key, number in numbers.items() if not key.startswith("head.")) == without_head
    assert set(numbers) == {key_map(key) for key, entry in entries.items() if entry["trainable"]}


def test_point_bert() -> None:
    model, official = build({"name": "PointBERTClassifier", "num_classes": 40}), read("pointbert_modelnet_cls")
    shapes = {key: entry["shape"] for key, entry in official["params"].items()}
    report = load_weights(model, empty(shapes), "official", key_map_of(model))
    assert len(report.loaded) == len(shapes) and not report.missing, report.summary()
    assert sum(p.numel() for p in model.parameters()) == 22_065_960 == official["_total_params"]


def test_pre_trained_point_bert() -> None:
    """Every tensor of the classifier but the head's is in the query transformer; the rest of the file is left out."""
    model = build({"name": "PointBERTClassifier", "num_classes": 40})
    official = empty(read("pointbert_pretrain_transformer_q"))
    others = {key.replace("_q.", "_k."): value for key, value in official.items()} | empty(
        {"dvae.codebook": [8192, 256]}
    )
    report = load_weights(model, {**official, **others}, "official", key_map_of(model))
    assert all(key.startswith("head.") for key in report.missing) and not report.unexpected and not report.reshaped
    assert len(report.unused) == len(others) + 7  # mask token, token and contrastive heads
