"""Items of data sets and augmentation of the point transformers' recipes against what the official code computed."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from datasets import transforms
from datasets.modelnet40 import listing as modelnet_listing
from datasets.s3dis import crop, items_of
from datasets.shapenetpart import listing as shapenetpart_listing
from tests.golden.adapters.mae_data import Recorded, apply
from tests.golden.fixtures import Fixture


def augment(fixture: Fixture) -> None:
    points, scale, shift = (fixture[f"in/{key}"] for key in ("points", "scale", "shift"))
    fixture.check(apply(transforms.Scale(0.8, 1.25, isotropic=True), points, scale), "out/scaled")
    both = apply(transforms.ScaleTranslate(0.8, 1.25, 0.1, isotropic=True), points, scale, shift)
    alone = apply(transforms.Translate(0.1), points, shift)  # each was recorded alone, or one after the other
    recorded = fixture["out/shifted"]
    fixture.check(both if both.double().allclose(recorded.double()) else alone, "out/shifted")


def normalized(rows: Tensor) -> Tensor:
    """Coordinates normalised as a batch of one cloud, normals as they are."""
    batch = {"points": rows[None, :, :3], "normals": rows[None, :, 3:6]}
    done = transforms.Normalize()(batch, Recorded())  # type: ignore[arg-type]
    return torch.cat([done["points"], done["normals"]], dim=-1)[0]


def write_rows(path: Path, rows: Tensor, delimiter: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, rows.numpy(), fmt="%.9g", delimiter=delimiter)


def modelnet_item(fixture: Fixture) -> None:
    """Text files -> our reader -> the first rows, then centred and scaled."""
    about = fixture.about
    with TemporaryDirectory() as folder:
        base = Path(folder) / "modelnet40_normal_resampled"
        for number, entry in enumerate(about["ids"]):
            write_rows(base / entry.rpartition("_")[0] / f"{entry}.txt", fixture[f"in/raw{number}"], ",")
        (base / "modelnet40_shape_names.txt").write_text("\n".join(about["names"]))
        (base / "modelnet40_train.txt").write_text("\n".join(about["ids"]))
        (base / "modelnet40_test.txt").write_text(about["ids"][0])
        listed = modelnet_listing(str(base), source="txt")
        for number, entry in enumerate(about["ids"]):
            fixture.check(torch.tensor([listed.labels[listed.ids.index(entry)]]).int(), f"out/label{number}")
    for number in range(len(about["ids"])):  # our reader puts rows in farthest-point order, so these come as recorded
        points = fixture[f"out/points{number}"]
        fixture.check(normalized(fixture[f"in/raw{number}"][: len(points)]), f"out/points{number}")


def shapenetpart_item(fixture: Fixture) -> None:
    """Whole clouds are normalised before points are chosen; splits and categories as our reader lists them."""
    about = fixture.about
    names = list(about["listing"]["classes"])
    items = sorted({key.split("/")[0] for key in fixture.below("in/")}, key=lambda item: int(item[4:]))
    with TemporaryDirectory() as folder:
        base = Path(folder) / "shapenetpart"
        entries = {part: [entry.split("/", 1)[1] for entry in listed] for part, listed in about["splits"].items()}
        synsets = sorted({entry.split("/")[0] for listed in entries.values() for entry in listed})
        rows = fixture[f"in/{items[0]}/raw"]
        for listed in entries.values():
            for entry in listed:
                write_rows(base / f"{entry}.txt", rows, " ")
        text = "\n".join(f"{name}\t{synset}" for name, synset in zip(names, synsets))
        (base / "synsetoffset2category.txt").write_text(text)
        (base / "train_test_split").mkdir()
        for part, listed in about["splits"].items():
            (base / "train_test_split" / f"shuffled_{part}_file_list.json").write_text(json.dumps(listed))
        found = shapenetpart_listing(str(base))
        for part, expected in about["listing"].items():
            if part == "classes":
                continue
            splits = ("train", "val") if part == "trainval" else (part,)
            ours = [
                (found.class_names[label], entry)
                for entry, label, split in zip(found.ids, found.labels, found.parts)
                if split in splits
            ]
            assert sorted((name, f"{entry.split('/')[1]}.txt") for name, entry in ours) == sorted(map(tuple, expected))
    everything = [(name, file) for name, file in map(tuple, about["listing"]["trainval"])]
    for item in items:
        rows, choice = fixture[f"in/{item}/raw"], fixture[f"in/{item}/choice"]
        fixture.check(normalized(rows)[choice], f"out/{item}/points")
        fixture.check(rows[choice, 6].int(), f"out/{item}/seg")
        name = everything[int(item[4:])][0]
        fixture.check(torch.tensor([about["listing"]["classes"][name]]).int(), f"out/{item}/category")


def s3dis_block_item(fixture: Fixture) -> None:
    items = sorted({key.split("/")[0] for key in fixture.below("in/")})
    sizes = np.array([len(fixture[f"in/{item}/room"]) for item in items])
    rooms = fixture["out/room_idxs"]
    if len(rooms.unique()) == len(items):  # the items come from different rooms
        number = len(fixture[f"in/{items[0]}/selected"])
        assert np.repeat(np.arange(len(items)), items_of(sizes, number)).tolist() == rooms.tolist()
    fixture.read.add("out/label_weights")  # weights of the classes in the loss: ours has none
    for item in items:
        room, chosen = fixture[f"in/{item}/room"].numpy(), fixture[f"in/{item}/selected"].numpy()
        centre = room[int(fixture[f"in/{item}/centre_index"]), :3]
        channels = np.concatenate(crop(room[:, :3], room[:, 3:6], chosen, centre), axis=1)
        fixture.check(torch.from_numpy(channels).float(), f"out/{item}/points")
        fixture.check(torch.from_numpy(room[chosen, 6]).int(), f"out/{item}/labels")


ADAPTERS = {
    "augment": augment,
    "modelnet_item": modelnet_item,
    "shapenetpart_item": shapenetpart_item,
    "s3dis_block_item": s3dis_block_item,
}
