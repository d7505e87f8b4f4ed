"""Full-size models hold exactly the tensors of the official ones; official checkpoints load as upstream loads them."""

import functools
import json

import pytest
import torch
from torch import Tensor, nn

from models import MODELS, SAMPLERS
from models.layers.tensorflow import from_tensorflow
from tests.golden.fixtures import ABSENT, GOLDEN
from tools.optim import is_free_of_decay, parameter_groups
from utils.checkpoint import load_weights

pytestmark = pytest.mark.filterwarnings("ignore:for .*meta parameter")  # sizes are compared, nothing is copied
MANIFESTS = GOLDEN / "manifests"
PRETRAIN = {"name": "PointMAE"}
STRAY = 768  # parameters of a norm in the released SA3D that nothing uses
GM3D = {  # released student: depth of its predictor, parameters
    "gm3d_feature_student": (12, 51_077_984 - STRAY),
    "gm3d_points_student": (4, 36_891_488 - STRAY),
}
NUMBER_OF_PARAMETERS = {
    "point_mae_pretrain": 29_006_432,
    "point_transformer_finetune_modelnet": 22_099_752,
    "point_transformer_finetune_modelnet_8k": 22_099_752,
    "point_transformer_finetune_scan_hardest": 22_093_327,
    "point_transformer_fewshot": 22_099_752,
    "point_mae_partseg": 27_063_730,
    "gm3d_classifier_15": 22_093_327,
    "gm3d_classifier_40": 22_099_752,
    "point_m2ae_pretrain": 15_255_856,
    "point_m2ae_cls_modelnet40": 12_830_056,
    "point_m2ae_cls_scanobjectnn": 12_921_935,
    "point_m2ae_partseg": 25_474_354,
    "point_transformer_seg_shapenetpart": 19_397_362,
    "point_transformer_cls_modelnet40": 9_584_136,
    "pct_cls_modelnet40": 2_876_328,
    "pct_partseg_shapenetpart": 2_446_130,
    "nico_point_transformer_cls_modelnet40": 21_031_120,
}
CLASSIFIERS = {
    "point_transformer_finetune_modelnet": {"num_classes": 40},
    "point_transformer_finetune_modelnet_8k": {"num_classes": 40, "num_group": 512},
    "point_transformer_finetune_scan_hardest": {"num_classes": 15, "num_group": 128},
    "point_transformer_fewshot": {"num_classes": 40},
}
PARTS = {"num_parts": 50, "num_categories": 16}
MODEL_OF: dict[str, dict] = {
    "point_mae_pretrain": PRETRAIN,
    **{name: {"name": "PointMAEClassifier", **options} for name, options in CLASSIFIERS.items()},
    "point_mae_partseg": {"name": "PointMAESegmenter", "num_parts": 50, "num_categories": 16},
    "gm3d_classifier_15": {"name": "PointMAEClassifier", "num_classes": 15},
    "gm3d_classifier_40": {"name": "PointMAEClassifier", "num_classes": 40},
    "point_m2ae_pretrain": {"name": "PointM2AE"},
    "point_m2ae_cls_modelnet40": {"name": "PointM2AEClassifier", "num_classes": 40},
    "point_m2ae_cls_scanobjectnn": {"name": "PointM2AEClassifier", "num_classes": 15, "pooling": "concat"},
    "point_m2ae_partseg": {"name": "PointM2AESegmenter", "num_parts": 50, "num_categories": 16},
    "point_transformer_seg_shapenetpart": {"name": "PointTransformerSegmenter", **PARTS, "extra_channels": 3},
    "point_transformer_cls_modelnet40": {"name": "PointTransformerClassifier", "num_classes": 40, "extra_channels": 3},
    "pct_cls_modelnet40": {"name": "PCTClassifier", "num_classes": 40, "extra_channels": 3},
    "pct_partseg_shapenetpart": {"name": "PCTSegmenter", **PARTS},
    "nico_point_transformer_cls_modelnet40": {"name": "SortNetClassifier", "num_classes": 40, "extra_channels": 3},
}


POINTNET = {"name": "PointNetClassifier", "num_classes": 40}
CLASSIFICATION = {"norm_output": True, "layout": "points", "bn_eps": 1e-3}
RECONSTRUCTION = {"mlp": [64, 128, 128, 256], "head": [256, 256], "norm_head": False, "layout": "points"}
SAMPLING: dict[str, dict] = {  # in `model`, or `sampler` where it is one alone; TensorFlow's names where they say so
    "samplenet_registration_64": {"sampler": {"name": "samplenet"}},
    "pcrnet_1024": {"model": {"name": "PCRNet"}},
    "pcrnet_1024_with_samplenet_64": {
        "model": {"name": "SampledNetwork", "sampler": {"name": "samplenet"}, "network": {"name": "PCRNet"}}
    },
    "samplenet_cls_sampler_32_tfnames": {"sampler": {"name": "samplenet", "num_out": 32, **CLASSIFICATION}},
    "samplenet_pointnet_cls_tfnames": {"model": {**POINTNET, "transforms": True}},
    "samplenet_pointnet_cls_basic_tfnames": {"model": POINTNET},
    "samplenet_autoencoder_2048_tfnames": {"model": {"name": "PointNetAutoEncoder"}},
    "samplenet_recon_sampler_64_tfnames": {"sampler": {"name": "samplenet", **RECONSTRUCTION}},
    "samplenet_recon_sampler_2048_tfnames": {"sampler": {"name": "samplenet", "num_out": 2048, **RECONSTRUCTION}},
}


def read(name: str) -> dict:
    path = next(MANIFESTS.glob(f"*/{name}.json"), None)
    if path is None:
        pytest.skip(f"no manifest {name} below {MANIFESTS}" if GOLDEN.is_dir() else ABSENT)
    return json.loads(path.read_text())


def checkpoint(name: str) -> dict[str, Tensor]:
    """Empty tensors of the official names and shapes; they take no memory."""
    return {key: torch.empty(shape, device="meta") for key, shape in read(name).items()}


@functools.cache
def build(name: str) -> nn.Module:
    with torch.device("meta"):
        return MODELS.build(MODEL_OF[name])


@pytest.mark.parametrize("name", MODEL_OF)
def test_parameters(name: str) -> None:
    model, official = build(name), checkpoint(name)
    report = load_weights(model, official, name, model.key_map)  # type: ignore[arg-type]
    assert report.unused == [key for key in official if key.endswith(".k_conv.weight")]  # the same tensor as q_conv
    assert len(report.loaded) == len(official) - len(report.unused)
    assert not (report.missing or report.unexpected or report.reshaped), report.summary()
    assert sum(p.numel() for p in model.parameters()) == NUMBER_OF_PARAMETERS[name]


def test_pretrained_weights_in_a_classifier() -> None:
    expected, model = read("map_point_mae_to_classifier"), build("point_transformer_finetune_modelnet")
    ours = model.key_map
    assert callable(ours)
    report = load_weights(model, checkpoint("point_mae_pretrain"), "pre-training", ours)
    assert report.loaded == sorted(ours(key) for key in expected["map"].values())
    assert all(ours(key) == ours(target) for key, target in expected["map"].items())
    assert report.missing == sorted(ours(key) for key in expected["classifier_keys_left_at_init"])
    assert sorted(report.unused) == sorted(expected["pretrain_keys_unused"])
    assert not report.unexpected and not report.reshaped
    assert (len(report.loaded), len(report.missing), len(report.unused)) == (156, 18, 53)


@pytest.mark.parametrize(
    "group, name",
    [("pretrain_no_decay", "point_mae_pretrain"), ("finetune_no_decay", "point_transformer_finetune_modelnet")],
)
def test_weight_decay(group: str, name: str) -> None:
    model = build(name)
    assert callable(model.key_map)
    free = {model.key_map(key) for key in read("point_mae_weight_decay_groups")[group]}
    assert {key for key, value in model.named_parameters() if is_free_of_decay(key, value)} == free


def test_rates_of_gm3d() -> None:
    model = build("gm3d_classifier_40")
    assert callable(model.key_map)
    wanted = {model.key_map(key): value for key, value in read("gm3d_finetune_lr_scales").items()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: {"lr_scale": pytest.approx(group["lr_scale"]), "weight_decay": group["weight_decay"]}
        for group in parameter_groups(model, 0.05, layer_decay=0.75, gm3d=True)
        for parameter in group["params"]
    }
    assert found == wanted


@pytest.mark.parametrize("source", ["point_mae_pretrain", "point_transformer_finetune_modelnet"])
def test_pretrained_weights_in_a_segmenter(source: str) -> None:
    model = build("point_mae_partseg")
    report = load_weights(model, checkpoint(source), source, model.key_map)  # type: ignore[arg-type]
    assert report.loaded == sorted(key for key in model.state_dict() if key.startswith("encoder."))
    assert all(key.startswith("head.") for key in report.missing)
    assert not report.unexpected and not report.reshaped


def test_decay_of_point_m2ae() -> None:
    """Upstream's rule, meant for the mask token, spares all of token_embed and token_prop: 990 k weights."""
    model = build("point_m2ae_pretrain")
    spared = [(key, p.numel()) for key, p in model.named_parameters() if is_free_of_decay(key, p) and p.ndim > 1]
    assert {key.split(".")[1] for key, _ in spared if "." in key} == {"token_embed", "token_prop"}
    assert round(sum(number for key, number in spared if "." in key), -3) == 990_000


@pytest.mark.parametrize("name", ["point_m2ae_cls_modelnet40", "point_m2ae_partseg"])
def test_pretrained_weights_of_point_m2ae(name: str) -> None:
    model, official = build(name), checkpoint("point_m2ae_pretrain")
    report = load_weights(model, official, "pre-training", model.key_map)  # type: ignore[arg-type]
    assert report.loaded == sorted(key for key in model.state_dict() if key.startswith("encoder."))
    assert not report.unexpected and not report.reshaped
    kept = [key for key in official if key.startswith("h_encoder.")]
    norms = 0 if name == "point_m2ae_partseg" else 6
    assert len(report.loaded) == len(kept) - norms and len(report.unused) == len(official) - len(report.loaded)


@pytest.mark.parametrize("name", GM3D)
def test_released_students_of_sa3d(name: str) -> None:
    """All weights but the stray norm have their place; classifiers get the trained norm."""
    depth, number = GM3D[name]
    official = checkpoint(name)
    with torch.device("meta"):
        model = MODELS.build({"name": "SA3D", "backbone": PRETRAIN, "predictor_depth": depth})
    report = load_weights(model, official, name, model.key_map)
    assert sorted(report.unused) == ["norm_p.bias", "norm_p.weight"] and len(report.loaded) == len(official) - 2
    assert not report.unexpected and all(key.startswith("average.") for key in report.missing)
    assert sum(p.numel() for p in model._followed().parameters()) == number
    for target in ("point_transformer_finetune_modelnet", "point_mae_partseg", "point_mae_pretrain"):
        downstream = build(target)
        report = load_weights(downstream, official, name, downstream.key_map)  # type: ignore[arg-type]
        assert set(report.loaded) >= {key for key in downstream.state_dict() if key.startswith("encoder.")}
        assert not report.unexpected and {"norm_p.bias", "norm_p.weight"} <= set(report.unused)


@pytest.mark.parametrize("name", SAMPLING)
def test_samplers_and_their_networks(name: str) -> None:
    official, wanted = checkpoint(name), SAMPLING[name]
    with torch.device("meta"):
        model = MODELS.build(wanted["model"]) if "model" in wanted else SAMPLERS.build(wanted["sampler"])
    if name.endswith("tfnames"):
        first = next(iter(official)).partition("/")[0]
        official = from_tensorflow(official, first if first in ("sampler", "autoencoder") else "")
        assert len(official) == len(read(name))
    report = load_weights(model, official, name, getattr(model, "key_map", None))
    missing = [key for key in report.missing if not (name.endswith("tfnames") and key.endswith("num_batches_tracked"))]
    assert not (missing or report.unexpected or report.unused or report.reshaped), report.summary()
