"""Every configuration of the Point-MAE family converts, builds, and has as many parameters as the original."""

import copy
from pathlib import Path

import numpy as np
import pytest
import yaml

from datasets.packed import write_packed
from models import MODELS
from tools.build import check_config
from tools.cli import main as run_main
from tools.convert_config import convert, main
from utils.config import load_config
from utils.errors import UserError

BASES: dict[str, dict] = {
    "ShapeNet-55": {
        "NAME": "ShapeNet",
        "DATA_PATH": "data/ShapeNet55-34/ShapeNet-55",
        "N_POINTS": 8192,
        "PC_PATH": "data/ShapeNet55-34/shapenet_pc",
    },
    "ModelNet40": {
        "NAME": "ModelNet",
        "DATA_PATH": "data/M",
        "N_POINTS": 8192,
        "NUM_CATEGORY": 40,
        "USE_NORMALS": False,
    },
    "ModelNet40FewShot": {"NAME": "ModelNetFewShot", "DATA_PATH": "data/F", "N_POINTS": 8192, "NUM_CATEGORY": 40},
    "ScanObjectNN_hardest": {"NAME": "ScanObjectNN_hardest", "ROOT": "data/S/main_split"},
    "ScanObjectNN_objectbg": {"NAME": "ScanObjectNN", "ROOT": "data/S/main_split"},
    "ScanObjectNN_objectonly": {"NAME": "ScanObjectNN", "ROOT": "data/S/main_split_nobg"},
}
ENCODER = {"trans_dim": 384, "encoder_dims": 384, "depth": 12, "drop_path_rate": 0.1, "num_heads": 6}
PARAMETERS = {"pretrain": 29_006_432, "modelnet": 22_099_752, "scan": 22_093_327}
FINETUNE = {  # file: data set, its test set, classes, patches, points, epochs, parameters
    "finetune_modelnet": ("ModelNet40", "ModelNet40", 40, 64, 1024, 300, PARAMETERS["modelnet"]),
    "finetune_modelnet_8k": ("ModelNet40", "ModelNet40", 40, 512, 8192, 300, PARAMETERS["modelnet"]),
    "finetune_scan_hardest": ("ScanObjectNN_hardest", "ScanObjectNN_hardest", 15, 128, 2048, 300, PARAMETERS["scan"]),
    "finetune_scan_objbg": ("ScanObjectNN_objectbg", "ScanObjectNN_objectbg", 15, 128, 2048, 300, PARAMETERS["scan"]),
    "finetune_scan_objonly": (
        "ScanObjectNN_objectonly",
        "ScanObjectNN_objectonly",
        15,
        128,
        2048,
        300,
        PARAMETERS["scan"],
    ),
    "fewshot": ("ModelNet40FewShot", "ModelNet40", 40, 64, 1024, 150, PARAMETERS["modelnet"]),
}
DATA = "${POINT_DATA_ROOT:-data}"
OURS: dict[str, dict] = {
    "ModelNet40": {"name": "modelnet40", "root": f"{DATA}/M", "classes": 40},
    "ModelNet40FewShot": {"name": "modelnet_fewshot", "root": f"{DATA}/F", "way": 5, "shot": 10, "fold": 0},
    "ScanObjectNN_hardest": {"name": "scanobjectnn", "root": f"{DATA}/S", "variant": "hardest"},
    "ScanObjectNN_objectbg": {"name": "scanobjectnn", "root": f"{DATA}/S", "variant": "objbg"},
    "ScanObjectNN_objectonly": {"name": "scanobjectnn", "root": f"{DATA}/S", "variant": "objonly"},
}


def split(base: str, **others) -> dict:
    return {"_base_": f"cfgs/dataset_configs/{base}.yaml", "others": others}


def common(lr: float, epochs: int, batch: int) -> dict:
    return {
        "optimizer": {"type": "AdamW", "kwargs": {"lr": lr, "weight_decay": 0.05}},
        "scheduler": {"type": "CosLR", "kwargs": {"epochs": epochs, "initial_epochs": 10}},
        "total_bs": batch,
        "step_per_update": 1,
        "max_epoch": epochs,
    }


def pretrain() -> dict:
    decoder = {"mask_ratio": 0.6, "mask_type": "rand", "decoder_depth": 4, "decoder_num_heads": 6}
    model = {"NAME": "Point_MAE", "group_size": 32, "num_group": 64, "loss": "cdl2"}
    parts = {name: split("ShapeNet-55", subset=name, npoints=1024) for name in ("train", "test")}
    data = {**parts, "val": copy.deepcopy(parts["test"])}
    model["transformer_config"] = ENCODER | decoder
    return common(0.001, 300, 128) | {"dataset": data, "model": model, "npoints": 1024, "consider_metric": "CDL1"}


def finetune(name: str) -> dict:
    base, test, classes, patches, points, epochs, _ = FINETUNE[name]
    data = {"train": split(base, subset="train"), "val": split(base, subset="test"), "test": split(test, subset="test")}
    model = {"NAME": "PointTransformer", "cls_dim": classes, "group_size": 32, "num_group": patches, **ENCODER}
    own = {"dataset": data, "model": model, "npoints": points, "grad_norm_clip": 10}
    return common(0.0005, epochs, 32) | own


HIERARCHY = {
    "group_sizes": [16, 8, 8],
    "num_groups": [512, 256, 64],
    "encoder_depths": [5, 5, 5],
    "encoder_dims": [96, 192, 384],
    "local_radius": [0.32, 0.64, 1.28],
    "drop_path_rate": 0.1,
    "num_heads": 6,
}


def m2ae_pretrain() -> dict:
    decoder = {"decoder_depths": [1, 1], "decoder_dims": [384, 192], "decoder_up_blocks": [1, 1]}
    model = {"NAME": "Point_M2AE", "mask_ratio": 0.8, **HIERARCHY, **decoder}
    theirs = pretrain() | {"model": model, "svm": {"modelnet40": {"NAME": "ModelNet40SVM", "num_points": 1024}}}
    theirs["scheduler"]["kwargs"]["epochs"] = 400
    theirs["dataset"]["train"]["others"]["npoints"] = 2048
    return theirs


def m2ae_finetune(scan: str | None) -> dict:
    """On ModelNet40, or on a variant of ScanObjectNN, which their one class tells by SPLIT."""
    theirs = finetune("finetune_scan_objbg" if scan else "finetune_modelnet")
    name, own = ("Point_M2AE_ScanObjectNN", {}) if scan else ("Point_M2AE_ModelNet40", {"smooth": 0.3})
    theirs["model"] = {"NAME": name, **HIERARCHY, **own}
    if scan:
        theirs["model"]["group_sizes"] = [32, 16, 16]
        for part in theirs["dataset"].values():
            part["others"]["SPLIT"] = scan
    return theirs


@pytest.fixture
def repository(tmp_path: Path):
    """Writes a configuration into a folder laid out as theirs, and returns its path."""
    folder = tmp_path / "theirs" / "cfgs"
    (folder / "dataset_configs").mkdir(parents=True)
    for name, base in BASES.items():
        (folder / "dataset_configs" / f"{name}.yaml").write_text(yaml.safe_dump(base))

    def write(config: dict | str, name: str = "config") -> Path:
        path = folder / f"{name}.yaml"
        path.write_text(config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False))
        return path

    return write


def count(config: dict) -> int:
    return sum(p.numel() for p in MODELS.build(config["model"], "model").parameters())


def test_pretraining_as_published(repository):
    config, said = convert(repository(pretrain()))
    assert count(config) == PARAMETERS["pretrain"]
    assert config["model"] == {
        "name": "PointMAE",
        "embed_dim": 384,
        "depth": 12,
        "num_heads": 6,
        "drop_path_rate": 0.1,
        "decoder_depth": 4,
        "decoder_num_heads": 6,
        "num_group": 64,
        "group_size": 32,
        "mask": {"name": "random", "ratio": 0.6},
        "loss": "cdl2",
    }
    assert config["data"]["train"] == {
        "name": "shapenet55",
        "root": "${POINT_DATA_ROOT:-data}/ShapeNet55-34",
        "lists": "ShapeNet-55",
        "clouds": "shapenet_pc",
        "split": "train",
    }
    assert config["data"]["augment"] == [
        {"name": "random_points", "num_points": 1024},
        {"name": "normalize"},
        {"name": "scale_translate"},
    ]
    assert config["optimizer"] == {"name": "AdamW", "lr": 0.001, "weight_decay": 0.05}
    assert config["scheduler"] == {"name": "cosine", "warmup_epochs": 10}
    assert config["runner"] == {"epochs": 300, "accumulate": 1, "select": "last"}
    assert config["data"]["batch_size"] == 128
    assert "compat" not in config
    assert any("--faithful" in line for line in said["to know"])


@pytest.mark.parametrize("name", FINETUNE)
def test_finetuning_as_published(repository, name):
    base, _, classes, patches, points, epochs, parameters = FINETUNE[name]
    config, _ = convert(repository(finetune(name), name))
    assert count(config) == parameters
    assert config["model"]["num_group"] == patches and config["model"]["num_classes"] == classes
    data = config["data"]
    assert data["train"] == OURS[base] | {"split": "train"}
    assert data["test"] == data["train"] | {"split": "test"}
    normalize = [] if "scan" in name else [{"name": "normalize"}]  # their ScanObjectNN is used as it comes
    sampling, rest = {"name": "resample", "num_points": points}, {"name": "farthest_points", "num_points": points}
    assert data["augment"] == [*normalize, sampling, {"name": "scale_translate"}]
    assert data["eval_transform"] == [*normalize, rest]
    assert config["runner"] == {"epochs": epochs, "accumulate": 1, "clip_grad": 10}


def test_the_hierarchical_pretraining_as_published(repository):
    config, said = convert(repository(m2ae_pretrain()))
    shipped = load_config("cfgs/pretrain/point_m2ae.yaml")[0]
    assert count(config) == 15_255_856
    assert config["model"] == dict(shipped.model) | {"decoder_up_blocks": [1]}
    assert config["scheduler"] == {"name": "cosine", "warmup_epochs": 10, "period": 400}
    assert config["data"]["augment"][0] == {"name": "random_points", "num_points": 2048}
    told = "\n".join(said["left out"])
    assert "model.local_radius" in told and "svm.modelnet40.NAME" in told and "not known" not in told


@pytest.mark.parametrize(
    ("scan", "variant", "parameters"),
    [
        (None, "", 12_830_056),
        ("OBJ-BG", "objbg", 12_921_935),
        ("OBJ", "objonly", 12_921_935),
        ("PB", "hardest", 12_921_935),
    ],
)
def test_hierarchical_classifiers_as_published(repository, scan, variant, parameters):
    config, _ = convert(repository(m2ae_finetune(scan)))
    name = f"m2ae_scan_{variant}" if scan else "m2ae_modelnet40"
    shipped = load_config(f"cfgs/finetune/{name}.yaml")[0]
    classes = 15 if scan else 40
    assert count(config) == parameters
    assert config["model"] == {"pooling": "sum", **shipped.model} | {"num_classes": classes}
    assert config["task"].get("label_smoothing", 0) == pytest.approx(shipped.task.get("label_smoothing", 0), abs=1e-4)
    if scan:
        assert config["data"]["train"]["variant"] == config["data"]["test"]["variant"] == variant


def test_the_written_file_is_what_was_converted(repository, tmp_path, capsys):
    source, target = repository(pretrain()), tmp_path / "ours.yaml"
    assert main([str(source), str(target)]) == 0
    config, _ = load_config(target)
    check_config(config)
    assert config.data.train.root == "data/ShapeNet55-34"
    assert target.read_text().startswith(f"# Converted from {source}")
    told = capsys.readouterr().out
    assert "optimizer.kwargs.lr -> optimizer.lr: 0.001" in told
    assert "consider_metric (CDL1): the training loops there never read it" in told
    assert main([str(source), str(target)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_without_a_target_the_screen_shows_the_file_alone(repository, capsys):
    assert main([str(repository(finetune("fewshot")))]) == 0
    printed = capsys.readouterr()
    check_config(yaml.safe_load(printed.out))
    assert "translated" in printed.err and "way, shot and fold" in printed.out


def leaves(config: dict, prefix: str = "") -> list[str]:
    """Dotted keys of all values, those of the `_base_` of a data set among them."""
    keys: list[str] = []
    for key, value in config.items():
        if key == "_base_":
            keys += [prefix + inherited for inherited in BASES[Path(value).stem]]
        elif isinstance(value, dict):
            keys += leaves(value, prefix if key == "others" else f"{prefix}{key}.")
        else:
            keys.append(prefix + key)
    return keys


@pytest.mark.parametrize("original", [pretrain(), finetune("finetune_scan_objbg"), finetune("fewshot")])
def test_no_value_is_dropped_silently(repository, original):
    original["surprise"] = {"deep": 3}
    _, said = convert(repository(original))
    told = "\n".join(said["translated"] + said["left out"])
    assert len(leaves(original)) >= 30
    assert [key for key in leaves(original) if f"{key} (" not in told and f"{key} -> " not in told] == []
    assert "surprise.deep (3): not known as a key of this family" in said["left out"]


def test_faithful_sets_the_switches(repository):
    config, said = convert(repository(finetune("finetune_modelnet")), faithful=True)
    assert config["compat"] == {"point_mae_schedule": True}
    assert config["runner"]["select"] == "test" and config["data"]["val_fraction"] == 0
    assert not any("--faithful" in line for line in said["to know"])
    config, _ = convert(repository(pretrain()), faithful=True)
    assert config["compat"] == {"point_mae_schedule": True} and config["runner"]["select"] == "last"


@pytest.mark.parametrize(("optimizer", "lr", "decay"), [("AdamW", 0.1, 0.04), ("Adam", 0.1, 0.01), ("SGD", 0.4, 0.01)])
def test_summed_gradients_become_averaged_ones(repository, optimizer, lr, decay):
    original = finetune("finetune_modelnet") | {"step_per_update": 4}
    original["optimizer"] = {"type": optimizer, "kwargs": {"lr": 0.1, "weight_decay": 0.04}}
    original["optimizer"]["kwargs"] |= {"momentum": 0.9} if optimizer == "SGD" else {}
    config, said = convert(repository(original))
    assert config["optimizer"]["lr"] == pytest.approx(lr) and config["optimizer"]["weight_decay"] == pytest.approx(
        decay
    )
    assert config["runner"]["accumulate"] == 4 and config["runner"]["clip_grad"] == 2.5
    assert any("step_per_update" in line and "4 batches" in line for line in said["to know"])
    assert config["optimizer"].get("nesterov", False) == (optimizer == "SGD")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            {"type": "LambdaLR", "kwargs": {"decay_step": 21, "lr_decay": 0.76, "lowest_decay": 0.02}},
            {"name": "decay", "decay": 0.76, "decay_epochs": 21, "lowest": 0.02},
        ),
        (
            {"type": "StepLR", "kwargs": {"step_size": 50, "gamma": 0.5}},
            {"name": "step", "step_epochs": 50, "gamma": 0.5},
        ),
        ({"type": "function"}, {"name": "constant"}),
    ],
)
def test_other_schedules(repository, theirs, ours):
    config, _ = convert(repository(pretrain() | {"scheduler": theirs}))
    assert config["scheduler"] == ours


def test_block_masks_whole_sets_and_a_schedule_that_ends_elsewhere(repository):
    original = pretrain()
    original["model"]["transformer_config"]["mask_type"] = "block"
    original["dataset"]["train"]["others"]["whole"] = True
    original["scheduler"]["kwargs"]["epochs"] = 400
    config, said = convert(repository(original))
    assert config["model"]["mask"] == {"name": "block", "ratio": 0.6}
    assert config["data"]["train"]["split"] == "whole"
    assert config["scheduler"]["period"] == 400 and config["runner"]["epochs"] == 300
    assert "scheduler.kwargs.epochs -> scheduler.period: 400" in said["translated"]


def change(config: dict, dotted: str, value) -> dict:
    *parents, last = dotted.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[last] = value
    return config


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("model.NAME", "Point_M3AE", "model.NAME: 'Point_M3AE' cannot be converted"),
        ("model.NAME", ["Point_MAE"], "model.NAME: expected a text"),
        ("model", 3, "model.NAME: missing"),
        ("dataset", "ShapeNet", "dataset: expected"),
        ("dataset.train", None, "dataset.train: expected"),
        ("dataset.train._base_", "cfgs/nowhere.yaml", "dataset.train._base_: cfgs/nowhere.yaml is in no folder above"),
        ("dataset.train._base_", 7, "dataset.train._base_: expected"),
        ("dataset.train._base_", {"NAME": "KITTI"}, "dataset.train.NAME: 'KITTI' cannot be converted"),
        ("dataset.train.others", [1], "dataset.train.others: expected"),
        ("optimizer.type", "Lion", "optimizer.type: 'Lion' cannot be converted"),
        ("optimizer.kwargs.lr", "fast", "optimizer.kwargs.lr: expected a number"),
        ("optimizer.kwargs.speed", 1, "optimizer.speed: optimizer 'AdamW' has no such option"),
        ("scheduler.type", "OneCycle", "scheduler.type: 'OneCycle' cannot be converted"),
        ("step_per_update", 0, "step_per_update: 0; expected at least 1"),
        ("total_bs", "many", "total_bs: expected an integer"),
        ("model.loss", "emd", "model.loss: expected one of"),
        ("model.transformer_config.encoder_dims", 256, "encoder_dims: differs from trans_dim"),
        ("model.transformer_config.depth", "deep", "model.depth: expected an integer"),
    ],
)
def test_wrong_values_are_told_in_one_line(repository, capsys, key, value, told):
    assert main([str(repository(change(pretrain(), key, value)))]) == 2
    printed = capsys.readouterr()
    assert told in printed.err and printed.err.count("\n") == 1 and not printed.out


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [1", "\x00", "dataset: {}\na: &a {b: *a}\n"])
def test_files_that_are_no_configuration(repository, capsys, text):
    assert main([str(repository(text))]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_no_value_gets_out_of_its_comment(repository, tmp_path):
    source = repository(pretrain() | {"remark": "first\nseed: 7"})
    assert main([str(source), str(tmp_path / "ours.yaml")]) == 0
    assert "seed" not in load_config(tmp_path / "ours.yaml")[0]


def test_missing_file_and_data_without_split(repository, capsys, tmp_path):
    assert main([str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: cannot be read" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"\{split\}"):
        convert(repository(pretrain()), data="all.npz")


def test_a_converted_file_trains(repository, tmp_path):
    """Theirs, with a small model -> ours -> one epoch on packed clouds."""
    rng = np.random.default_rng(0)
    for part, number in (("train", 40), ("test", 12)):
        points = rng.normal(size=(number, 96, 3)).astype(np.float32)
        write_packed(tmp_path / f"tiny_{part}.npz", points, np.arange(number) % 4, list("abcd"))
    original = finetune("finetune_modelnet") | {"npoints": 64, "max_epoch": 1, "total_bs": 8}
    small = {"trans_dim": 24, "encoder_dims": 24, "depth": 1, "num_heads": 2, "num_group": 8, "group_size": 8}
    original["model"] |= small | {"cls_dim": 4}
    target = tmp_path / "tiny.yaml"
    source = repository(original)
    assert main([str(source), str(target), "--faithful", "--data", str(tmp_path / "tiny_{split}.npz")]) == 0
    root = tmp_path / "experiments"
    assert run_main("finetune", ["--config", str(target), "--scratch_model", "--root", str(root), "device=cpu"]) == 0
    assert len((root / "tiny" / "default" / "metrics.jsonl").read_text().splitlines()) == 2  # one epoch more, as theirs
