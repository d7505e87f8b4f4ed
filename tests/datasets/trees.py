"""Small trees of the named data sets, in the formats in which people have them on disk."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import h5py
import numpy as np

from datasets.shapenetpart import SYNSETS as PART_SYNSETS
from datasets.shapes.categories import PART_CATEGORY

ABC = ["02691156", "02747177", "03001627"]  # airplane, trash bin, chair


def cloud(seed: int, points: int, columns: int = 3) -> np.ndarray:
    """Points on an ellipsoid of its own, then unit normals."""
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(points, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return np.concatenate([normals * rng.uniform(0.3, 1, 3), normals], axis=1)[:, :columns].astype(np.float32)


def write_shapenet55(root: Path, train: int = 12, test: int = 6, points: int = 64) -> Path:
    (root / "shapenet_pc").mkdir(parents=True)
    (root / "ShapeNet-55").mkdir()
    for part, begin, count in (("train", 0, train), ("test", train, test)):
        names = [f"{ABC[i % 3]}-{i:04d}-uuid.npy" for i in range(begin, begin + count)]
        for i, name in enumerate(names):
            np.save(root / "shapenet_pc" / name, cloud(begin + i, points))
        (root / "ShapeNet-55" / f"{part}.txt").write_text("\n".join(names) + "\n")
    return root


def write_modelnet_text(root: Path, train: int = 8, test: int = 4, points: int = 64) -> Path:
    names = ["airplane", "night_stand", "xbox"]
    root.mkdir(parents=True, exist_ok=True)
    (root / "modelnet40_shape_names.txt").write_text("\n".join(names) + "\n")
    for part, begin, count in (("train", 1, train), ("test", train + 1, test)):
        ids = [f"{name}_{number:04d}" for name in names for number in range(begin, begin + count)]
        (root / f"modelnet40_{part}.txt").write_text("\n".join(ids) + "\n")
        for i, entry in enumerate(ids):
            path = root / entry.rpartition("_")[0] / f"{entry}.txt"
            path.parent.mkdir(exist_ok=True)
            np.savetxt(path, cloud(100 * begin + i, points, 6), fmt="%.6f", delimiter=",")
    return root


def write_modelnet_pickles(root: Path, train: int = 12, test: int = 6, points: int = 64, protocol: int = 4) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "modelnet40_shape_names.txt").write_text("airplane\nnight_stand\nxbox\n")
    for part, count in (("train", train), ("test", test)):
        clouds = [cloud(i + 50 * count, points, 6) for i in range(count)]
        labels = [np.array([i % 3], np.int32) for i in range(count)]
        content = pickle.dumps([clouds, labels], protocol=protocol)
        (root / f"modelnet40_{part}_8192pts_fps.dat").write_bytes(content)
    return root


def write_modelnet_hdf5(root: Path, train: int = 10, test: int = 6, points: int = 64) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "shape_names.txt").write_text("airplane\nbathtub\nbed\n")
    for part, files, count in (("train", 2, train), ("test", 1, test)):
        lines = [f"data/modelnet40_ply_hdf5_2048/ply_data_{part}{number}.h5\n" for number in range(files)]
        (root / f"{part}_files.txt").write_text("".join(lines))
        for number in range(files):
            with h5py.File(root / f"ply_data_{part}{number}.h5", "w") as file:
                clouds = np.stack([cloud(100 * number + i + count, points) for i in range(count)])
                file.create_dataset("data", data=clouds, compression="gzip")
                file["label"] = (np.arange(count) % 3).astype(np.uint8)[:, None]
    return root


def write_fewshot(
    root: Path, way: int = 5, shot: int = 10, fold: int = 0, points: int = 64, spelling: str = "_"
) -> Path:
    folder = root / f"{way}way{spelling}{shot}shot"
    folder.mkdir(parents=True, exist_ok=True)
    originals = [7, 3, 20, 11, 30, 1, 2, 4, 5, 6][:way]
    content = {
        part: [
            (cloud(1000 * i + label, points, 6), label, originals[label]) for i in range(count) for label in range(way)
        ]
        for part, count in (("train", shot), ("test", 20))
    }
    (folder / f"{fold}.pkl").write_bytes(pickle.dumps(content))
    return root


def write_scanobjectnn(root: Path, train: int = 30, test: int = 15, points: int = 64) -> Path:
    for folder in ("main_split", "main_split_nobg"):
        (root / folder).mkdir(parents=True)
        for suffix in ("", "_augmentedrot_scale75"):
            for stem, count in (("training", train), ("test", test)):
                with h5py.File(root / folder / f"{stem}_objectdataset{suffix}.h5", "w") as file:
                    seed = 7 * len(folder) + len(suffix) + count
                    file["data"] = np.stack([cloud(seed + 100 * i, points) for i in range(count)])
                    file["label"] = np.arange(count) % 15
                    file["mask"] = np.zeros((count, points), np.int64)
    return root


def write_shapenetpart(root: Path, each: tuple[int, int, int] = (2, 1, 1), points: int = 60) -> Path:
    """`each`: clouds of every category in train, val and test; sizes differ from cloud to cloud."""
    from datasets.shapes.categories import CATEGORIES

    (root / "train_test_split").mkdir(parents=True)
    lines = [f"{name}\t{synset}" for name, synset in zip(CATEGORIES, PART_SYNSETS)]
    (root / "synsetoffset2category.txt").write_text("\n".join(lines) + "\n")
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for label, synset in enumerate(PART_SYNSETS):
        (root / synset).mkdir()
        parts = np.flatnonzero(np.array(PART_CATEGORY) == label)
        numbers = iter(range(1000))
        for part, count in zip(lists, each):
            for _ in range(count):
                number = next(numbers)
                size = points + 7 * number + label
                seg = parts[np.arange(size) % len(parts)][:, None]
                table = np.concatenate(
                    [cloud(100 * label + number, size, 6) + np.array([1, 2, 3, 0, 0, 0]), seg], axis=1
                )
                np.savetxt(root / synset / f"t{number}.txt", table, fmt="%.6f")
                lists[part].append(f"shape_data/{synset}/t{number}")
    for part, entries in lists.items():
        path = root / "train_test_split" / f"shuffled_{part}_file_list.json"
        path.write_text(json.dumps(entries[::-1]))
    return root


def write_s3dis_rooms(root: Path, points: int = 3000) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for number in range(1, 7):
        rng = np.random.default_rng(number)
        for room in ("office_1", "hallway_2"):
            xyz = rng.uniform(0, (3, 2, 2.5), (points, 3))
            rgb, seg = rng.integers(0, 256, (points, 3)), rng.integers(0, 13, (points, 1))
            np.save(root / f"Area_{number}_{room}.npy", np.concatenate([xyz, rgb, seg], axis=1))
    return root


def write_s3dis_blocks(root: Path, blocks: int = 12, points: int = 64) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    rooms = [f"Area_{1 + i % 6}_office_{1 + i // 6}" for i in range(2 * blocks)]
    for number in range(2):
        rng = np.random.default_rng(number)
        with h5py.File(root / f"ply_data_all_{number}.h5", "w") as file:
            file["data"] = rng.uniform(0, 1, (blocks, points, 9)).astype(np.float32)
            file["label"] = rng.integers(0, 13, (blocks, points)).astype(np.uint8)
    (root / "all_files.txt").write_text("".join(f"{root.name}/ply_data_all_{n}.h5\n" for n in range(2)))
    (root / "room_filelist.txt").write_text("\n".join(rooms) + "\n")
    return root
