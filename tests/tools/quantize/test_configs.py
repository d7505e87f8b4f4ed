"""Every configuration in cfgs/quantize: reads, checks, and runs on a small tree; the experiment and its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models import MODELS
from tools.build import check_config
from tools.cli import main
from tools.quantize.check import with_policy
from tools.quantize.plot import labels, pareto
from tools.quantize.reproduce import Settings, steps, without_start
from tools.quantize.table import CASES, write_tables
from utils.config import load_config, to_plain

ROOT = Path(__file__).parents[3]
PATHS = sorted((ROOT / "cfgs" / "quantize").glob("*.yaml"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_is_a_configuration(path: Path) -> None:
    own_policy = path.stem.startswith("linear")
    config = to_plain(load_config(path, [] if own_policy else ["quantize.policy=null"])[0])
    check_config(with_policy(config))
    assert config["model"]["name"] in MODELS.names()
    assert ("search" in config) == path.stem.startswith("search")
    assert (config["task"]["name"] == "distill") == path.stem.startswith("distill")


@pytest.mark.parametrize("name", CASES)
def test_the_three_configurations_of_a_case_agree(name: str) -> None:
    case = CASES[name]
    models = []
    for path in (case.float_config, case.search_config, case.finetune_config, case.distill_config):
        config = to_plain(load_config(ROOT / path, [] if path == case.float_config else ["quantize.policy=null"])[0])
        models.append((config["model"], config["data"]))
    assert all(each == models[0] for each in models)


def test_the_commands_of_the_experiment(tmp_path, monkeypatch) -> None:
    for key, value in {"HAQ_ROOT": str(tmp_path), "SEEDS": "2", "AGENTS": "ddpg random", "EPOCHS": "4"}.items():
        monkeypatch.setenv(key, value)
    found = list(steps(CASES["point_mae"], Settings()))
    folders = [str(step.folder.relative_to(tmp_path)) for step in found]
    assert len(set(folders)) == len(folders) == 2 + 2 + 2 * (3 + 2 + 2 + 2)
    assert folders[0] == "lpsb19_seg_small/float-seed0" and "search_point_mae/ddpg" in folders
    assert all("--test" in step.words for step in found if step.folder.name.startswith("test_"))
    words = without_start(["a", "--ckpts", "b", "c", "--scratch_model", "--resume"])
    assert words == ["a", "c", "--resume"]


def result(folder: Path, value: float, **more) -> None:
    folder.mkdir(parents=True)
    rows = [{"metric": "instance_iou", "value": value, "split": "test", **more}]
    (folder / "results.json").write_text(json.dumps({"rows": rows}))


def test_the_table_and_the_plot(tmp_path) -> None:
    result(tmp_path / "lpsb19_seg_small/float-seed0", 70.0)
    result(tmp_path / "lpsb19_seg_small/float-seed1", 72.0)
    for seed in (0, 1):
        result(tmp_path / f"finetune_point_mae/test_uniform3-seed{seed}", 60.0 + seed, bytes=1000, float_bytes=9000)
    text = write_tables(tmp_path, ["point_mae"], 2, ["ddpg"]).read_text()
    assert "| float | 71.00 ± 1.41 | 2 | 9,000 | 1.0 |" in text
    assert "| uniform 3 | 60.50 ± 0.71 | 2 | 1,000 | 9.0 |" in text and "HAQ" not in text
    picture = (tmp_path / "pareto_point_mae.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 1000
    assert pareto([(1, 5, "a"), (2, 4, "b"), (3, 6, "c"), (1, 3, "d")]) == [(1, 5, "a"), (3, 6, "c")]


def test_no_text_covers_another() -> None:
    dots = [((100.0, 200.0), "one"), ((100.0, 198.0), "two"), ((102.0, 200.0), "three"), ((890.0, 200.0), "away")]
    placed = {name: corner for _, corner, name in labels(dots)}
    heights = sorted(placed[name][1] for name in ("one", "two", "three"))
    assert heights[1] - heights[0] >= 13 and heights[2] - heights[1] >= 13
    assert placed["away"][1] == 194 and placed["away"][0] < 890 - 24


def test_a_search_of_the_quick_start(tmp_path) -> None:
    """The shipped search, float network first, on few small clouds."""
    small = ["model.embed_dim=24", "model.depth=1", "model.num_heads=2", "model.num_group=8", "model.group_size=8"]
    data = ["data.train={size: 64, num_points: 64}", "data.test={size: 32, num_points: 64}"]
    words = [*small, *data, "data.label_fraction=1", "data.val_fraction=0.5", "data.batch_size=16", "device=cpu"]
    root = ["--root", str(tmp_path)]
    float_words = ["--config", str(ROOT / "cfgs/finetune/quickstart.yaml"), "--scratch_model", *root, *words]
    assert main("finetune", [*float_words, "runner.epochs=1"]) == 0
    start = ["--ckpts", str(tmp_path / "quickstart/default/ckpt-last.pth"), *root, *words]
    search = ["--config", str(ROOT / "cfgs/quantize/search_quickstart.yaml"), *start, "search.episodes=2"]
    assert main("finetune", search) == 0
    policy = f"quantize.policy={tmp_path / 'search_quickstart/default/policy.yaml'}"
    for name in ("finetune", "distill"):
        config = ["--config", str(ROOT / f"cfgs/quantize/{name}_quickstart.yaml"), *start, policy, "runner.epochs=1"]
        assert main("finetune", config) == 0
    config = ["--config", str(ROOT / "cfgs/quantize/linear_w8a8_quickstart.yaml"), *start, "runner.epochs=1"]
    assert main("finetune", config) == 0
