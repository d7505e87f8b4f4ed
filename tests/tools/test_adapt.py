"""Adaptations on the command line: training, resuming, the file of the adaptation alone, memory banks, counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models import MODELS
from tests.golden.fixtures import ABSENT, GOLDEN
from tests.helpers import assert_same, changed, checkpoint_of, finetune_config, folder_of, rows_of, run, write_config
from tools import adapt, memory_bank
from tools.build import check_config
from utils.config import load_config, to_plain
from utils.errors import UserError

ROOT = Path(__file__).parents[2]
POINT_PEFT = {"name": "point_peft", "num_prompts": 4, "adapter_dim": 4, "prior_dim": 2, "bank": "build"}


@pytest.fixture
def pretrained(tmp_path) -> Path:
    """A checkpoint of the backbone."""
    model = MODELS.build(finetune_config(tmp_path)["model"], num_classes=3)
    path = tmp_path / "pretrained.pth"
    torch.save({"model": {k: v for k, v in model.state_dict().items() if k.startswith("encoder.")}}, path)
    return path


def config_of(folder: Path, *entries: dict, **changes) -> Path:
    return write_config(folder, changed(finetune_config(folder), {"peft": list(entries), **changes}))


@pytest.mark.filterwarnings("ignore")
def test_train_test_and_put_on_again(tmp_path, pretrained, capsys) -> None:
    config = config_of(tmp_path, POINT_PEFT)
    assert run("finetune", config, "--finetune_model", "--ckpts", str(pretrained), "--exp_name", "a") == 0
    assert "memory bank: " in capsys.readouterr().out
    folder = folder_of(config, "a")
    best = [row["value"] for row in rows_of(folder) if row["selection"].startswith("best")]
    state = checkpoint_of(folder)
    assert len(state["optimizer"]["state"]) == sum(len(group["params"]) for group in state["optimizer"]["param_groups"])
    start = torch.load(pretrained, weights_only=True)["model"]
    fixed = [key for key in start if key.endswith("qkv.weight") or "embed.first.0" in key]
    assert fixed and all(torch.equal(state["model"][key], start[key]) for key in fixed)

    assert run("finetune", config, "--test", "--ckpts", str(folder / "ckpt-best.pth"), "--exp_name", "a") == 0
    assert [row["value"] for row in rows_of(folder_of(config, "test_a"))] == best
    alone = str(folder / adapt.ADAPTER)
    args = ("--test", "--ckpts", str(pretrained), "--adapter", alone, "--exp_name", "b")
    assert run("finetune", config, *args) == 0
    assert [row["value"] for row in rows_of(folder_of(config, "test_b"))] == best

    tensors, metadata = adapt.read_adapter(alone)
    assert json.loads(metadata["peft"]) == [POINT_PEFT]
    assert not any("extractor" in key or "original" in key or "qkv" in key for key in tensors if "shared" not in key)
    other = tmp_path / "other.pth"
    torch.save(
        {"model": {key: value + 1 if value.is_floating_point() else value for key, value in start.items()}}, other
    )
    assert run("finetune", config, "--test", "--ckpts", str(other), "--adapter", alone, "--exp_name", "c") == 2
    assert "made for backbone" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, pretrained) -> None:
    for name, epochs in (("whole", 2), ("parts", 1)):
        config = config_of(tmp_path, POINT_PEFT, {"name": "lora", "rank": 2})
        args = ("--finetune_model", "--ckpts", str(pretrained), "--exp_name", name, f"runner.epochs={epochs}")
        constant = ("scheduler={name: constant}", "runner.ema_decay=0.5")
        assert run("finetune", config, *args, *constant) == 0
    assert (
        run("finetune", config, "--resume", "--finetune_model", "--exp_name", "parts", "runner.epochs=2", *constant)
        == 0
    )
    whole, parts = (checkpoint_of(folder_of(config, name)) for name in ("whole", "parts"))
    for key in ("model", "ema", "optimizer", "rng"):
        assert_same(whole[key], parts[key], key)


@pytest.mark.filterwarnings("ignore")
def test_a_bank_must_fit_the_backbone(tmp_path, pretrained, capsys) -> None:
    bank = tmp_path / "bank.pth"
    config = config_of(tmp_path, {**POINT_PEFT, "bank": str(bank)})
    finetune = ("--finetune_model", "--ckpts", str(pretrained), "runner.epochs=1")
    assert run("finetune", config, *finetune, "--exp_name", "none") == 2
    assert "tools.memory_bank" in capsys.readouterr().err
    assert memory_bank.main(["--config", str(config), "--ckpts", str(pretrained)]) == 0
    made = torch.load(bank, weights_only=True)
    assert made["bank"].shape == (24, made["meta"]["clouds"]) and made["meta"]["pooling"] == "max"
    torch.testing.assert_close(made["bank"].norm(dim=0), torch.ones(made["bank"].shape[1]))
    assert run("finetune", config, *finetune, "--exp_name", "fits") == 0
    assert run("finetune", config, "--scratch_model", "--seed", "5", "--exp_name", "other") == 2
    assert "made with backbone" in capsys.readouterr().err
    torch.save(made["bank"], bank)  # the official form: a bare tensor
    assert run("finetune", config, *finetune, "--exp_name", "bare") == 0
    assert "cannot be checked" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_merged_weights_are_a_plain_checkpoint(tmp_path, pretrained) -> None:
    config = config_of(tmp_path, {"name": "lora", "rank": 2})
    assert run("finetune", config, "--finetune_model", "--ckpts", str(pretrained), "--exp_name", "a") == 0
    alone, merged = folder_of(config, "a") / adapt.ADAPTER, tmp_path / "merged.pth"
    assert (
        adapt.main(
            [
                *("--config", str(config)),
                *("--ckpts", str(pretrained)),
                *("--adapter", str(alone)),
                *("--merge", str(merged)),
            ]
        )
        == 0
    )
    assert run("finetune", config, "--test", "--ckpts", str(merged), "--exp_name", "m", "peft=null") == 0
    best = [row["value"] for row in rows_of(folder_of(config, "a")) if row["selection"].startswith("best")]
    assert [row["value"] for row in rows_of(folder_of(config, "test_m"))] == pytest.approx(best)


@pytest.mark.parametrize(
    "section, match",
    [
        ({"name": "lora"}, "a list"),
        ([], "a list"),
        ([{"name": "lorra"}], "lora"),
        ([{"name": "lora", "rnk": 2}], "peft.0.rnk"),
        ([{"name": "vpt"}, {"name": "lora", "rank": "x"}], "peft.1.rank"),
    ],
)
def test_mistakes_in_the_section(tmp_path, section, match) -> None:
    with pytest.raises(UserError, match=match):
        check_config({**finetune_config(tmp_path), "peft": section})


def test_wrong_files(tmp_path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"not one")
    for name in ("x.safetensors", "absent.safetensors"):
        with pytest.raises(UserError):
            adapt.read_adapter(tmp_path / name)


# ---------------------------------------------------------------- published sizes

PUBLISHED = {  # configuration, classes, further options: trained, manifest
    ("point_peft_scan_hardest", 15, ""): (773_017, "pointpeft_mae_scan"),
    ("point_peft_m2ae_scan_hardest", 15, ""): (661_046, "pointpeft_m2ae_scan"),
    ("point_peft_bert_scan_hardest", 15, ""): (706_201, None),
    ("point_peft_modelnet40", 40, ""): (853_308, "pointpeft_mae_modelnet_recovered"),
    ("dapt_scan_hardest", 15, ""): (1_087_771, "dapt_scan_hardest"),
    ("dapt_modelnet40", 40, ""): (1_069_716, "dapt_modelnet"),
    ("idpt_scan_hardest", 15, ""): (1_696_783, None),
    ("methods_scan_hardest", 15, ""): (360_463, None),
    ("methods_scan_hardest", 15, "peft=[{name: linear_probe}]"): (267_535, None),
    ("methods_scan_hardest", 15, "peft=[{name: bitfit}]"): (307_215, None),
    ("methods_scan_hardest", 15, "peft=[{name: adapter}]"): (862_735, None),
    ("methods_scan_hardest", 15, "peft=[{name: lora, rank: 32}]"): (857_359, None),
}


@pytest.mark.parametrize("case", PUBLISHED, ids=lambda case: f"{case[0]} {case[2]}".strip())
def test_published_sizes(case) -> None:
    name, classes, override = case
    trained, manifest = PUBLISHED[case]
    config = to_plain(load_config(ROOT / "cfgs" / "peft" / f"{name}.yaml", [override] if override else [])[0])
    check_config(config)
    with torch.device("meta"):
        model = MODELS.build(config["model"], num_classes=classes)
        adapt.adapt(model, config)
    assert adapt.count(model).trained == trained
    if name == "point_peft_scan_hardest":
        assert adapt.count(model).unused == 62_268 and adapt.count(model).frozen == 21_787_392
    if manifest:
        check_names(model, manifest)


def check_names(model, manifest: str) -> None:
    """The same tensors by name and shape, and the same of them trained."""
    path = GOLDEN / "manifests" / "peft" / f"{manifest}.json"
    if not path.is_file():
        pytest.skip(f"no manifest {path}" if GOLDEN.is_dir() else ABSENT)
    official, key_map = json.loads(path.read_text())["params"], adapt.key_map(model)
    own, named = model.state_dict(), dict(model.named_parameters())
    for key, about in official.items():
        ours = key_map(key)
        assert ours in own, f"{key} -> {ours}"
        assert own[ours].numel() == torch.Size(about["shape"]).numel(), key
        if about["kind"] == "parameter":
            assert named[ours].requires_grad == about["trainable"], key
    ours_only = set(named) - {key_map(key) for key in official}
    assert all(".extractor." in key for key in ours_only), sorted(ours_only)[:5]
