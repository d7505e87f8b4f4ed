"""Configurations of Point-MAE and Point-M2AE -> ours: python -m tools.convert_config in.yaml [out.yaml]

Reads that project's own YAML (NAME, kwargs, `_base_` below a data set, `others`), writes one complete file, and tells
where every value went, or why nowhere. Values are taken by dotted key; what is never taken is reported as left out.
"""

from __future__ import annotations

import fnmatch
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.build import check_config
from tools.cli import Parser, tell
from utils.config import dump_config, merge, parse_yaml
from utils.errors import UserError
from utils.schema import check_type, hint

Section = dict[str, Any]
ENCODER = {"trans_dim": "embed_dim", "depth": "depth", "num_heads": "num_heads", "drop_path_rate": "drop_path_rate"}
DECODER = {"decoder_depth": "decoder_depth", "decoder_num_heads": "decoder_num_heads"}
HIERARCHY = {"num_groups": "num_groups", "group_sizes": "group_sizes", "encoder_depths": "depths"}
HIERARCHY |= {"encoder_dims": "embed_dims", "num_heads": "num_heads", "drop_path_rate": "drop_path_rate"}
UPWARDS = {"decoder_depths": "decoder_depths", "decoder_dims": "decoder_dims"}
RADIUS = {"local_radius": "local_radius"}
MODELS = {  # theirs: task, our model, where the encoder's values stand, their key -> our option
    "Point_MAE": ("pretrain", "PointMAE", "model.transformer_config", ENCODER | DECODER),
    "PointTransformer": ("classify", "PointMAEClassifier", "model", ENCODER | {"cls_dim": "num_classes"}),
    "Point_M2AE": ("pretrain", "PointM2AE", "model", HIERARCHY | UPWARDS),
    "Point_M2AE_ModelNet40": ("classify", "PointM2AEClassifier", "model", HIERARCHY | RADIUS),
    "Point_M2AE_ScanObjectNN": ("classify", "PointM2AEClassifier", "model", HIERARCHY | RADIUS),
}
HEADS = {"Point_M2AE_ModelNet40": (40, "sum"), "Point_M2AE_ScanObjectNN": (15, "concat")}  # written into their code
VARIANTS = {"OBJ-BG": "objbg", "OBJ": "objonly", "PB": "hardest"}  # of ScanObjectNN, where one class reads all
SCHEDULERS = {  # theirs: ours, their argument -> our option
    "CosLR": ("cosine", {"initial_epochs": "warmup_epochs"}),
    "LambdaLR": ("decay", {"lr_decay": "decay", "decay_step": "decay_epochs", "lowest_decay": "lowest"}),
    "StepLR": ("step", {"step_size": "step_epochs", "gamma": "gamma"}),
    "function": ("constant", {}),
}
OPTIMIZERS = {  # what keeps every update the same when k gradients are averaged instead of summed
    "AdamW": "its steps do not depend on the size of gradients, so lr stays",
    "Adam": "lr stays, weight_decay is divided by it",
    "SGD": "lr is multiplied and weight_decay divided by it",
}
SAMPLING = {  # (task, their data set): steps for a training batch, for any other; sampling steps take num_points
    ("pretrain", "ShapeNet"): (("random_points", "normalize"), ("farthest_points", "normalize")),
    ("pretrain", "ModelNet"): (("normalize", "farthest_points"), ("normalize", "farthest_points")),
    ("classify", "ModelNet"): (("normalize", "resample"), ("normalize", "farthest_points")),
    ("classify", "ModelNetFewShot"): (("normalize", "resample"), ("normalize", "farthest_points")),
    ("classify", "ScanObjectNN"): (("resample",), ("farthest_points",)),
    ("classify", "ScanObjectNN_hardest"): (("resample",), ("farthest_points",)),
}
REASONS = {  # patterns of keys without a counterpart -> why; the first that fits
    "consider_metric": "the training loops there never read it",
    "dataset.*.N_POINTS": "the files know it",
    "dataset.*.NUM_CATEGORY": "the files know it",
    "dataset.*.USE_NORMALS": "the models read coordinates only",
    "dataset.*.bs": "changes no result; here data.eval_batch_size",
    "dataset.test.*": "only --test reads it there; here a run is tested on one set, what was dataset.val",
    "dataset.*_PATH": "not read while pre-training, or --data names packed files instead",
    "dataset.*.ROOT": "--data names packed files instead",
    "dataset.val.*": "nothing is evaluated while pre-training, as there; data.test adds probes at the end",
    "dataset.extra_train.*": "nothing reads it while pre-training there",
    "bnmscheduler.*": "the momentum of BatchNorm is constant here",
    "svm.*": "`--svm` probes the data of data.train and data.test",
    "model.local_radius": "no radius limits attention while pre-training there",
    "npoints": "pre-training samples as many points as dataset.train.others.npoints says",
    "grad_norm_clip": "pre-training there never clips",
}
SCHEDULE = "there lr changes once an epoch, one epoch late, and one epoch more is run; --faithful does so too"
SELECTION = (
    "there test accuracy chooses the weights, here a held-out tenth of the training data; --faithful does as there"
)
DIFFERENCES = {"pretrain": [SCHEDULE], "classify": [SCHEDULE, SELECTION]}
LAG: Section = {"compat": {"point_mae_schedule": True}}
FAITHFUL = {"pretrain": LAG, "classify": LAG | {"runner": {"select": "test"}, "data": {"val_fraction": 0.0}}}
SUMMED = "step_per_update: the gradients of {} batches are summed there and averaged here"
FEW_SHOT = "way, shot and fold are command line options there; here they are options of data.train and data.test"


class Source:
    """Values of their file by dotted key, what has been moved where, and what there is to know."""

    def __init__(self, values: Mapping[str, Any]):
        self.left, self.moved, self.notes = dict(values), list[str](), list[str]()

    def take(self, key: str, kind: Any, target: str, *default: Any) -> Any:
        if key not in self.left:
            if not default:
                raise UserError(f"{key}: missing; a configuration of the Point-MAE family has it")
            return default[0]
        value = self.left.pop(key)
        check_type(value, kind, key)
        self.moved.append(f"{key} -> {target}: {value}")
        return value

    def take_name(self, key: str, target: str, known: Mapping[str, Any]) -> str:
        name = self.take(key, str, target)
        if name not in known:
            raise UserError(f"{key}: '{name}' cannot be converted.{hint(name, known)}")
        return name

    def leftovers(self) -> list[str]:
        grouped: dict[str, list[str]] = {}
        for key, value in self.left.items():
            fitting = (reason for pattern, reason in REASONS.items() if fnmatch.fnmatchcase(key, pattern))
            reason = next(fitting, "not known as a key of this family")
            grouped.setdefault(reason, []).append(f"{key} ({value})")
        return [f"{', '.join(keys)}: {reason}" for reason, keys in grouped.items()]


def convert(path: str | Path, data: str | None = None, faithful: bool = False) -> tuple[Section, dict[str, list[str]]]:
    """Our configuration, and what there is to say about it. `data`: packed files, with {split} in their path."""
    if data is not None and "{split}" not in data:
        raise UserError(f"--data {data}: write {{split}} where the files of training and test data differ")
    source = Source(read(Path(path)))
    name = source.take_name("model.NAME", "model.name", MODELS)
    task = MODELS[name][0]
    accumulate = source.take("step_per_update", int, "runner.accumulate", 1)
    if accumulate < 1:
        raise UserError(f"step_per_update: {accumulate}; expected at least 1")
    runner: Section = {"epochs": source.take("max_epoch", int, "runner.epochs"), "accumulate": accumulate}
    if task == "pretrain":
        runner["select"] = "last"
    else:
        runner["clip_grad"] = source.take("grad_norm_clip", float, "runner.clip_grad", 0.0) / accumulate
    model = model_section(source, name)
    config: Section = {
        "task": task_section(source, task, model),
        "model": model,
        "data": data_section(source, task, data),
        "optimizer": optimizer_section(source, accumulate),
        "scheduler": scheduler_section(source, runner["epochs"]),
        "runner": runner,
    }
    if faithful:
        config = merge(config, FAITHFUL[task])
    else:
        source.notes += DIFFERENCES[task]
    check_config(config)
    return config, {"translated": source.moved, "left out": source.leftovers(), "to know": source.notes}


def read(path: Path) -> Section:
    """Their file by dotted key; the `_base_` and `others` of a data set become one mapping."""
    config = load_mapping(path)
    check_type(config.get("dataset"), dict, "dataset")
    for split, cfg in config["dataset"].items():
        place = f"dataset.{split}"
        check_type(cfg, dict, place)
        base, others = cfg.pop("_base_", {}), cfg.pop("others", {})
        if isinstance(base, str):
            base = load_mapping(find(base, path, f"{place}._base_"))
        check_type(base, dict, f"{place}._base_")
        check_type(others, dict, f"{place}.others")
        config["dataset"][split] = {**base, **cfg, **others}
    return dict(flatten(config))


def load_mapping(path: Path) -> Section:
    try:
        config = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    check_type(config, dict, str(path))
    return config


def find(base: str, path: Path, key: str) -> Path:
    """Their paths count from the root of their repository: some folder above the file, or the current one."""
    for folder in (*path.resolve().parents, Path.cwd()):
        if (folder / base).is_file():
            return folder / base
    raise UserError(f"{key}: {base} is in no folder above {path}; convert the file where it lies in its repository")


def flatten(config: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if prefix.count(".") > 20:
            raise UserError(f"{prefix}{key}: nested too deep for a configuration")
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def task_section(source: Source, task: str, model: Section) -> Section:
    if task == "pretrain":
        return {"name": task, "probe": False}
    section: Section = {"name": task}
    smooth, classes = source.take("model.smooth", float, "task.label_smoothing", 0.0), model["num_classes"]
    if smooth:  # theirs goes to the wrong classes alone, PyTorch's to all
        section["label_smoothing"] = smooth * classes / (classes - 1)
    return section


def model_section(source: Source, name: str) -> Section:
    _, ours, place, options = MODELS[name]
    section: Section = {"name": ours}
    for key, option in options.items():
        section[option] = source.take(f"{place}.{key}", Any, f"model.{option}")
    return section | (point_mae if name in ("Point_MAE", "PointTransformer") else point_m2ae)(source, name, section)


def point_m2ae(source: Source, name: str, section: Section) -> Section:
    if name in HEADS:
        classes, pooling = HEADS[name]
        return {"num_classes": source.take("model.cls_dim", int, "model.num_classes", classes), "pooling": pooling}
    up = source.take("model.decoder_up_blocks", list, "model.decoder_up_blocks, as many as their code reads")
    mask = {"name": "random", "ratio": source.take("model.mask_ratio", float, "model.mask.ratio")}
    return {"decoder_up_blocks": up[: len(section["num_groups"]) - 2], "mask": mask}


def point_mae(source: Source, name: str, section: Section) -> Section:
    place = MODELS[name][2]
    own: Section = {}
    for option in ("num_group", "group_size"):
        own[option] = source.take(f"model.{option}", int, f"model.{option}")
    if source.take(f"{place}.encoder_dims", int, "model.embed_dim") != section["embed_dim"]:
        raise UserError(f"{place}.encoder_dims: differs from trans_dim, which no model of this family allows")
    if name == "Point_MAE":
        kind = "random" if source.take(f"{place}.mask_type", str, "model.mask.name") == "rand" else "block"
        own["mask"] = {"name": kind, "ratio": source.take(f"{place}.mask_ratio", float, "model.mask.ratio")}
        own["loss"] = source.take("model.loss", str, "model.loss")
    return own


def data_section(source: Source, task: str, data: str | None) -> Section:
    key = "npoints" if task == "classify" else "dataset.train.npoints"
    points = source.take(key, int, "data.augment, data.eval_transform")
    train, name = data_set(source, "train", "train", task, data)
    # while training for classification they test on dataset.val; pre-training evaluates nothing
    test = data_set(source, "val", "test", task, data)[0] if task == "classify" else None
    total = source.take("total_bs", int, "data.batch_size")
    section: Section = {"train": train, "test": test} if test else {"train": train, "val_fraction": 0.0}
    section["batch_size"] = source.take("dataset.train.bs", int, "data.batch_size, instead of total_bs", total)
    for key, steps in zip(("augment", "eval_transform"), SAMPLING[task, name]):
        section[key] = [{"name": step} | ({} if step == "normalize" else {"num_points": points}) for step in steps]
    section["augment"].append({"name": "scale_translate"})
    source.notes += [FEW_SHOT] if name == "ModelNetFewShot" else []
    return section


def data_set(source: Source, split: str, target: str, task: str, data: str | None) -> tuple[Section, str]:
    """Our data set, and the name of theirs; `data` puts packed files in its place."""
    known = {name: None for of_task, name in SAMPLING if of_task == task}
    place, ours = f"dataset.{split}", f"data.{target}"
    name = source.take_name(f"{place}.NAME", f"{ours}.name", known)
    part = source.take(f"{place}.subset", str, f"{ours}.split")
    if source.take(f"{place}.whole", bool, f"{ours}.split, training and test clouds in one", False):
        part = "whole"
    if data is not None:
        return {"name": "packed", "path": data, "split": part}, name
    make = {"ShapeNet": shapenet, "ModelNet": modelnet, "ModelNetFewShot": few_shot}.get(name, scanobjectnn)
    return make(source, place, ours, name) | {"split": part}, name


def shapenet(source: Source, place: str, ours: str, _: str) -> Section:
    """DATA_PATH is the folder of the lists, PC_PATH that of the clouds; here both are named below one root."""
    lists = Path(source.take(f"{place}.DATA_PATH", str, f"{ours}.root, {ours}.lists"))
    clouds = Path(source.take(f"{place}.PC_PATH", str, f"{ours}.clouds", f"{lists.parent}/shapenet_pc"))
    section: Section = {"name": "shapenet55", "root": our_root(lists.parent), "lists": lists.name}
    return section | {"clouds": os.path.relpath(clouds, lists.parent)}


def modelnet(source: Source, place: str, ours: str, _: str) -> Section:
    root = Path(source.take(f"{place}.DATA_PATH", str, f"{ours}.root"))
    classes = source.take(f"{place}.NUM_CATEGORY", int, f"{ours}.classes", 40)
    return {"name": "modelnet40", "root": our_root(root), "classes": classes}


def few_shot(source: Source, place: str, ours: str, _: str) -> Section:
    root = Path(source.take(f"{place}.DATA_PATH", str, f"{ours}.root"))
    return {"name": "modelnet_fewshot", "root": our_root(root), "way": 5, "shot": 10, "fold": 0}


def scanobjectnn(source: Source, place: str, ours: str, name: str) -> Section:
    """ROOT is main_split or main_split_nobg; with the name of the data set, or with SPLIT, it says which variant."""
    folder = Path(source.take(f"{place}.ROOT", str, f"{ours}.root, {ours}.variant"))
    if f"{place}.SPLIT" in source.left:
        variant = VARIANTS[source.take_name(f"{place}.SPLIT", f"{ours}.variant", VARIANTS)]
        return {"name": "scanobjectnn", "root": our_root(folder.parent), "variant": variant}
    bare = folder.name.endswith("_nobg")
    variant = ("hardest_nobg" if bare else "hardest") if name.endswith("hardest") else "objonly" if bare else "objbg"
    return {"name": "scanobjectnn", "root": our_root(folder.parent), "variant": variant}


def our_root(path: Path) -> str:
    """data/ there is the folder that POINT_DATA_ROOT names here."""
    inside = path.parts[:1] == ("data",)
    return "/".join(("${POINT_DATA_ROOT:-data}", *path.parts[1:])) if inside else path.as_posix()


def optimizer_section(source: Source, accumulate: int) -> Section:
    name = source.take_name("optimizer.type", "optimizer.name", OPTIMIZERS)
    section: Section = {"name": name, "lr": source.take("optimizer.kwargs.lr", float, "optimizer.lr")}
    section["weight_decay"] = source.take("optimizer.kwargs.weight_decay", float, "optimizer.weight_decay", 0.0)
    for key in [key for key in source.left if key.startswith("optimizer.kwargs.")]:
        option = key.removeprefix("optimizer.kwargs.")
        section[option] = source.take(key, Any, f"optimizer.{option}")
    if name == "SGD":
        section["nesterov"] = True  # theirs always is
    if accumulate > 1:
        source.notes.append(f"{SUMMED.format(accumulate)}; {OPTIMIZERS[name]}; a clipping threshold is divided by it")
        section["lr"] *= accumulate if name == "SGD" else 1
        section["weight_decay"] /= accumulate if name != "AdamW" else 1
    return section


def scheduler_section(source: Source, epochs: int) -> Section:
    ours, options = SCHEDULERS[source.take_name("scheduler.type", "scheduler.name", SCHEDULERS)]
    section: Section = {"name": ours}
    for key, option in options.items():
        section[option] = source.take(f"scheduler.kwargs.{key}", Any, f"scheduler.{option}")
    if ours == "cosine":
        end = source.take("scheduler.kwargs.epochs", int, "scheduler.period", epochs)
        section |= {"period": end} if end != epochs else {}
    return section


def render(config: Section, said: dict[str, list[str]], path: str) -> str:
    lines = [f"Converted from {path} (Point-MAE family) by tools.convert_config"]
    lines += [f"{heading}: {line}" for heading in ("left out", "to know") for line in said[heading]]
    return "".join(f"# {' '.join(line.split())}\n" for line in lines) + dump_config(config)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m tools.convert_config", description="Point-MAE's configuration files -> ours")
    parser.add_argument("source", help="a YAML file of the Point-MAE family, where it lies in its repository")
    parser.add_argument("target", nargs="?", help="file to write; the screen if none is named")
    parser.add_argument("--data", metavar="x_{split}.npz", help="packed files to train and test on")
    parser.add_argument("--faithful", action="store_true", help="schedule and selection of weights as they were")
    args = parser.parse_args(argv)
    try:
        config, said = convert(args.source, args.data, args.faithful)
        text = render(config, said, args.source)
        if args.target and Path(args.target).exists():
            raise UserError(f"{args.target}: exists already; name another file")
        if args.target:
            Path(args.target).write_text(text, encoding="utf-8")
    except (UserError, OSError) as error:
        return tell(str(error))
    print(f"wrote {args.target}" if args.target else text)
    for heading, lines in said.items():
        print(heading, *(lines or ["nothing"]), sep="\n  ", file=sys.stdout if args.target else sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
