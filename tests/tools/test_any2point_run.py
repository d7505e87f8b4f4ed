"""Any2Point from a tower's file through training, resuming and testing; the tower stays what the file holds."""

import pytest
import torch
from safetensors.torch import save_file

from models.any2point.towers import vision_tower
from tests.helpers import checkpoint_of, finetune_config, folder_of, rows_of, run, write_config

SIZES = {"embed_dim": 24, "depth": 1, "num_heads": 2, "grid": [4, 4]}


@pytest.fixture
def config(tmp_path):
    save_file(vision_tower(**SIZES).state_dict(), tmp_path / "tower.safetensors")
    settings = finetune_config(tmp_path)
    settings["model"] = {"name": "Any2Point", "tower": {"name": "vision", **SIZES}, "num_group": 8, "group_size": 4}
    return write_config(tmp_path, settings)


def log_of(config) -> str:
    return (folder_of(config) / "train.log").read_text()


@pytest.mark.filterwarnings("ignore")
def test_from_a_file_to_a_tested_model(config) -> None:
    file = config.parent / "tower.safetensors"
    assert run("finetune", config, "--finetune_model", "--ckpts", str(file)) == 0
    assert "at random and will stay so" not in log_of(config)
    frozen = sum(p.numel() for p in vision_tower(**SIZES).blocks.parameters())
    assert f"parameters trained, {frozen:,} frozen" in log_of(config)
    state, tower = checkpoint_of(folder_of(config)), vision_tower(weights=str(file), **SIZES).state_dict()
    for key, value in tower.items():
        if key.startswith(("blocks.", "position")):
            assert torch.equal(state["model"][f"tower.{key}"], value), key
    assert len(state["optimizer"]["state"]) == sum(not key.startswith("tower.blocks.") for key in parameters_in(state))
    last = folder_of(config) / "ckpt-last.pth"
    before = next(row["value"] for row in rows_of(folder_of(config)) if row["metric"] == "acc")
    assert run("finetune", config, "--test", "--ckpts", str(last), "--exp_name", "tested") == 0
    assert next(row["value"] for row in rows_of(folder_of(config, "test_tested")) if row["metric"] == "acc") == before
    assert run("finetune", config, "--resume", "runner.epochs=3") == 0


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
