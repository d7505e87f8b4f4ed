"""Small data, configurations and runs for the tests: three classes of twelve clouds, a few thousand weights."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tools.cli import main

ROOT = Path(__file__).parents[1]
MODEL = {"embed_dim": 24, "depth": 1, "num_heads": 2, "num_group": 8, "group_size": 8}


def write_data(
    path: Path, clouds: int = 36, num_points: int = 64, classes: int = 3, seed: int = 0, **arrays: Any
) -> Path:
    """Packed file of random clouds, each class stretched along its own axis; `arrays` replace or join what is in it."""
    rng = np.random.default_rng(seed)
    labels = np.arange(clouds) % classes
    stretch = 1 + 2 * np.eye(3)[labels % 3]
    content: dict[str, Any] = {
        "points": (rng.normal(size=(clouds, num_points, 3)) * stretch[:, None]).astype(np.float32),
        "labels": labels,
        "names": np.array([f"class{i}" for i in range(classes)]),
    }
    np.savez(path, **{key: value for key, value in (content | arrays).items() if value is not None})
    return path


def pretrain_config(folder: Path) -> dict[str, Any]:
    """Points-only pre-training without a probe, on data that are written to `folder`."""
    return {
        "task": {"name": "pretrain", "probe": False},
        "model": {"name": "PointMAE", **MODEL, "decoder_depth": 1, "decoder_num_heads": 2},
        "data": {
            "train": {"name": "packed", "path": str(write_data(folder / "train.npz"))},
            "batch_size": 8,
            "augment": [{"name": "scale_translate"}],
        },
        "optimizer": {"name": "AdamW", "lr": 1e-3, "weight_decay": 0.05},
        "scheduler": {"name": "cosine", "warmup_epochs": 1},
        "runner": {"epochs": 2},
        "device": "cpu",
    }


def finetune_config(folder: Path) -> dict[str, Any]:
    config = pretrain_config(folder)
    config["task"] = {"name": "classify"}
    config["model"] = {"name": "PointMAEClassifier", **MODEL, "head_dim": 16}
    config["data"]["test"] = {"name": "packed", "path": str(write_data(folder / "test.npz", clouds=9, seed=1))}
    return config


def changed(config: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The same with dotted keys set."""
    for dotted, value in changes.items():
        node, (*parents, last) = config, dotted.split(".")
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = copy.deepcopy(value)
    return config


def write_config(folder: Path, config: Mapping[str, Any], name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
    return path


def run(mode: str, config: Path, *argv: str) -> int:
    """The command line in this process; folders of runs lie beside the configuration."""
    try:
        return main(mode, arguments(config, *argv))
    except SystemExit as stop:  # argparse
        return int(stop.code or 0)


def start(mode: str, config: Path, *argv: str, processes: int = 1) -> subprocess.Popen:
    """The command line in a process of its own, or in several under torchrun."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.Popen(
        [*launcher, str(ROOT / f"main_{mode}.py"), *arguments(config, *argv)],
        cwd=config.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that everything it started can be killed with it
    )


def arguments(config: Path, *argv: str) -> list[str]:
    return ["--config", str(config), "--root", str(config.parent / "experiments"), *argv]


def folder_of(config: Path, exp_name: str = "default") -> Path:
    return config.parent / "experiments" / config.stem / exp_name


def metrics_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def rows_of(folder: Path) -> list[dict]:
    return json.loads((folder / "results.json").read_text())["rows"]


def checkpoint_of(folder: Path, name: str = "ckpt-last.pth") -> dict[str, Any]:
    return torch.load(folder / name, weights_only=True)


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Equal to the last bit, through dictionaries and lists."""
    assert type(a) is type(b), where
    if isinstance(a, Mapping):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (left, right) in enumerate(zip(a, b)):
            assert_same(left, right, f"{where}.{index}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where
