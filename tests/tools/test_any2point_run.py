"""Any2Point from a tower's file through training, resuming and testing; the tower stays what the file holds."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import MODELS
from models.any2point.towers import vision_tower
from tests.helpers import checkpoint_of, finetune_config, folder_of, rows_of, run, write_config
from tools.build import load_into
from utils.checkpoint import read_checkpoint

SIZES: dict[str, Any] = {"embed_dim": 24, "depth": 1, "num_heads": 2, "grid": [4, 4]}


@pytest.fixture
def config(tmp_path):
    save_file(vision_tower(**SIZES).state_dict(), tmp_path / "tower.safetensors")
    settings = finetune_config(tmp_path)
    settings["model"] = {"name": "Any2Point", "tower": {"name": "vision", **SIZES}, "num_group": 8, "group_size": 4}
    return write_config(tmp_path, settings)


def log_of(config) -> str:
    return (folder_of(config) / "train.log").read_text()


@pytest.mark.filterwarnings("ignore")
def test_from_a_file_to_a_tested_model(config, capsys) -> None:
    file = config.parent / "tower.safetensors"
    assert run("finetune", config, "--finetune_model", "--ckpts", str(file)) == 0
    assert "at random and will stay so" not in log_of(config)
    frozen = sum(p.numel() for p in vision_tower(**SIZES).blocks.parameters())
    assert f"without the head), {frozen:,} frozen; " in log_of(config)
    state, tower = checkpoint_of(folder_of(config)), vision_tower(weights=str(file), **SIZES).state_dict()
    for key, value in tower.items():
        if key.startswith(("blocks.", "position")):
            assert torch.equal(state["model"][f"tower.{key}"], value), key
    assert len(state["optimizer"]["state"]) == sum(not key.startswith("tower.blocks.") for key in parameters_in(state))
    last = folder_of(config) / "ckpt-last.pth"
    before = next(row["value"] for row in rows_of(folder_of(config)) if row["metric"] == "acc")
    assert run("finetune", config, "--test", "--ckpts", str(last), "--exp_name", "tested") == 0
    assert next(row["value"] for row in rows_of(folder_of(config, "test_tested")) if row["metric"] == "acc") == before
    alone, given = folder_of(config) / "trained.safetensors", f"model.tower.weights={file}"
    held = load_file(alone)
    assert not any(key.startswith(("tower.blocks.", "tower.position")) for key in held) and "tower.cls_token" in held
    assert run("finetune", config, "--test", "--ckpts", str(alone), "--exp_name", "alone", given) == 0
    assert run("finetune", config, "--test", "--ckpts", str(alone), "--exp_name", "without_tower") == 2
    torch.manual_seed(7)
    save_file(vision_tower(**SIZES).state_dict(), config.parent / "another.safetensors")
    other = f"model.tower.weights={config.parent / 'another.safetensors'}"
    capsys.readouterr()
    assert run("finetune", config, "--test", "--ckpts", str(alone), "--exp_name", "another", other) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"of {file}, but these are" in told and "another.safetensors; name the" in told
    assert run("finetune", config, "--resume", "runner.epochs=3") == 0


def test_the_trained_part_on_a_fresh_tower(tmp_path) -> None:
    """Logits equal bit for bit."""
    save_file(vision_tower(**SIZES).state_dict(), tmp_path / "tower.safetensors")
    config = {"name": "Any2Point", "num_classes": 3, "num_group": 8, "group_size": 4}
    config["tower"] = {"name": "vision", "weights": str(tmp_path / "tower.safetensors"), **SIZES}
    first, points = MODELS.build(config), torch.randn(2, 64, 3)
    first.train()(points).sum().backward()  # statistics move
    save_file(first.trained_state(), tmp_path / "trained.safetensors")
    second = MODELS.build(config)
    load_into(second, read_checkpoint(tmp_path / "trained.safetensors"), "trained", whole=True)
    assert torch.equal(first.eval()(points), second.eval()(points))


def parameters_in(state) -> list[str]:
    """Names that are no buffers."""
    buffers = ("running_mean", "running_var", "num_batches_tracked", "tower.position")
    return [key for key in state["model"] if not key.endswith(buffers)]


@pytest.mark.filterwarnings("ignore")
def test_a_tower_at_random_is_told(config) -> None:
    assert run("finetune", config, "--scratch_model", "runner.epochs=1") == 0
    assert "frozen tensors (tower.blocks.0.norm1.weight, ...) are at random and will stay so" in log_of(config)
    file = config.parent / "tower.safetensors"
    named = f"model.tower.weights={file}"
    assert run("finetune", config, "--scratch_model", "runner.epochs=1", "--overwrite", named) == 0
    assert "at random and will stay so" not in log_of(config)


def test_a_file_of_another_size_is_told(config, capsys) -> None:
    words = ["--scratch_model", f"model.tower.weights={config.parent / 'tower.safetensors'}", "model.tower.grid=[5,5]"]
    assert run("finetune", config, *words) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "positions (1, 17, 24), but the tower has (1, 26, 24)" in told
    assert not folder_of(config).exists()
