"""Samplers in front of task networks on the command line: classification, retrieval, reconstruction, registration."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.loader import Loader
from models.pcrnet import PCRNet
from models.sampled import SampledNetwork
from models.samplers.plain import FPSSampler, RandomSampler
from models.samplers.samplenet import SampleNet
from tests.helpers import ROOT, changed, finetune_config, folder_of, metrics_of, rows_of, run, write_config, write_data
from tools.build import build_data, build_model, build_task, check_config
from tools.plot import plot_lines
from tools.splits import DataSplits
from tools.tasks.register import Register, area, fixed_angles
from utils.errors import UserError
from utils.metrics import rank_by_distance
from utils.quaternion import from_euler, matrix, rotate_cloud

NETWORK = {"name": "PointNetClassifier", "mlp": [8, 8, 8, 8, 16], "head": [12, 10]}
SAMPLER = {"name": "samplenet", "num_out": 8, "bottleneck": 8, "mlp": [8, 8], "head": [16]}
SAMPLED = {"name": "SampledNetwork", "sampler": SAMPLER, "network": NETWORK}


@pytest.fixture
def config(tmp_path: Path) -> dict:
    changes = {"model": NETWORK, "optimizer": {"name": "Adam", "lr": 1e-2}, "data.val_fraction": 0.25}
    return changed(finetune_config(tmp_path), {**changes, "scheduler": {"name": "constant"}})


def figures(folder: Path) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in rows_of(folder)}


@pytest.mark.filterwarnings("ignore")
def test_classifier_then_sampler_then_baselines_and_retrieval(config: dict, tmp_path: Path) -> None:
    task = write_config(tmp_path, config, "task.yaml")
    assert run("finetune", task, "--scratch_model") == 0
    weights = str(folder_of(task) / "ckpt-last.pth")
    sampled = write_config(tmp_path, changed(config, {"model": SAMPLED}), "sampled.yaml")
    assert run("finetune", sampled, "--finetune_model", "--ckpts", weights) == 0
    record = metrics_of(folder_of(sampled))[-1]
    total = record["train/task"] + 0.01 * record["train/simplification"] + 0.01 * record["train/projection"]
    assert record["train/loss"] == pytest.approx(total, rel=1e-4)
    both = [torch.load(path, weights_only=True)["model"] for path in (weights, folder_of(sampled) / "ckpt-last.pth")]
    assert all(torch.equal(value, both[1][f"network.{key}"]) for key, value in both[0].items())

    whole = str(folder_of(sampled) / "ckpt-last.pth")
    assert run("finetune", sampled, "--test", "--ckpts", whole) == 0
    tested = figures(folder_of(sampled, "test_default"))
    assert tested["acc"] == pytest.approx(rows_of(folder_of(sampled))[0]["value"])
    for name in ("fps", "random"):  # nothing to train, so nothing to optimise
        options = [f"model.sampler={{name: {name}, num_out: 8}}", "--exp_name", name]
        assert run("finetune", sampled, "--test", "--ckpts", weights, *options) == 0
        assert 0 <= figures(folder_of(sampled, f"test_{name}"))["acc"] <= 100
    assert run("finetune", sampled, "--test", "--ckpts", whole, "--exp_name", "map", "task={name: retrieve}") == 0
    found = folder_of(sampled, "test_map")
    assert 0 < figures(found)["map"] <= 100 and (found / "precision_recall.png").stat().st_size > 0
    assert len(next(row for row in rows_of(found) if row["metric"] == "map")["curve"]) == 2


@pytest.mark.filterwarnings("ignore")
def test_a_sampler_that_learns_nothing_cannot_be_trained(config: dict, tmp_path: Path, capsys) -> None:
    model = {**SAMPLED, "sampler": {"name": "fps", "num_out": 8}}
    path = write_config(tmp_path, changed(config, {"model": model}))
    assert run("finetune", path, "--scratch_model") == 2
    assert "every parameter is frozen" in capsys.readouterr().err
    assert run("finetune", path, "--scratch_model", "model.frozen=false") == 0  # the network can


@pytest.mark.filterwarnings("ignore")
def test_progressive_training_sums_over_its_prefixes(config: dict, tmp_path: Path) -> None:
    options = {"sizes": [2, 4, 8], "eval_size": 4, "alpha": 0.0, "lmbda": 0.0}
    sampler = {**SAMPLER, "name": "samplenet_progressive", **options}
    path = write_config(tmp_path, changed(config, {"model": {**SAMPLED, "sampler": sampler}}))
    assert run("finetune", path, "--scratch_model") == 0
    record = metrics_of(folder_of(path))[-1]
    assert record["train/loss"] == pytest.approx(record["train/task"])
    assert record["train/task"] > 1.5  # three cross entropies of three classes


@pytest.mark.filterwarnings("ignore")
def test_resume_with_a_frozen_network(config: dict, tmp_path: Path) -> None:
    path = write_config(tmp_path, changed(config, {"model": SAMPLED}))
    assert run("finetune", path, "--scratch_model", "--exp_name", "once", "runner.epochs=2") == 0
    assert run("finetune", path, "--scratch_model", "--exp_name", "twice", "runner.epochs=1") == 0
    assert run("finetune", path, "--resume", "--exp_name", "twice", "runner.epochs=2") == 0
    first, second = (
        torch.load(folder_of(path, name) / "ckpt-last.pth", weights_only=True)["model"] for name in ("once", "twice")
    )
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model.sampler.num_uot": 3}, "model.sampler.num_uot: .* Did you mean 'num_out'"),
        ({"model.sampler.name": "samplnet"}, "model.sampler.name: unknown sampler 'samplnet'. Did you mean"),
        ({"model.network.name": "PointNet"}, "model.network.name: unknown model 'PointNet'"),
        ({"model.network.widths": [3]}, "model.network.widths: .* no such option"),
        ({"data.classes": "class0"}, "data.classes: expected a list"),
    ],
)
def test_mistakes_are_told_with_their_place(config: dict, changes: dict, message: str) -> None:
    wrong = changed(config, {"model": SAMPLED, **changes})
    with pytest.raises(UserError, match=message):
        check_config(wrong)


def test_sizes_of_the_data_reach_the_network_inside(config: dict) -> None:
    config = changed(config, {"model": SAMPLED})
    data = build_data(config, torch.device("cpu"), 0)
    model: Any = build_model(config, data)
    assert model.network.head.out_features == 3
    with pytest.raises(UserError, match=r"model\.network\.num_classes: 2, but the data have 3"):
        build_model(changed(config, {"model.network.num_classes": 2}), data)


def test_one_class_of_the_data(tmp_path: Path) -> None:
    train = {"name": "packed", "path": str(write_data(tmp_path / "a.npz"))}
    data = DataSplits(train=train, test=train, classes=["class1"], val_fraction=0.0, batch_size=4)
    assert data.num_classes == 3 and set(data.train.dataset.class_labels) == {1}
    assert data.test is not None and len(data.test.dataset) == 12
    with pytest.raises(UserError, match="no class 'class9'"):
        DataSplits(train=train, classes=["class9"], batch_size=4)


# ---------------------------------------------------------------- retrieval


def test_average_precision_by_hand() -> None:
    vectors = np.array([[0.0], [1.0], [2.5], [10.0]])
    ranking = rank_by_distance(vectors, np.array([0, 1, 0, 2]))
    assert ranking.precision.tolist() == [0.5, 0.5]  # class 1 and 2 are alone: no queries
    assert ranking.figures() == {"map": 50.0, "map_micro": 50.0}


def test_average_precision_against_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(40, 3)), rng.integers(0, 4, 40)
    ranking = rank_by_distance(vectors, labels)
    for query in range(40):
        others = np.arange(40) != query
        score = -np.linalg.norm(vectors - vectors[query], axis=1)
        expected = average_precision_score((labels == labels[query])[others], score[others])
        assert ranking.precision[query] == pytest.approx(expected)
    recall, precision = ranking.curve()
    assert recall[0] == 0 and recall[-1] == 1 and (np.diff(precision) <= 1e-12).all()
    with pytest.raises(UserError, match="no class has two"):
        rank_by_distance(vectors[:3], np.arange(3))


# ---------------------------------------------------------------- reconstruction


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loss", ["chamfer", "emd"])
def test_reconstruction_and_its_mean_of_ratios(config: dict, tmp_path: Path, loss: str) -> None:
    network = {"name": "PointNetAutoEncoder", "mlp": [8], "bottleneck": 8, "decoder": [16], "num_points": 16}
    config = changed(config, {"task": {"name": "reconstruct", "loss": loss}, "runner.epochs": 1})
    task = write_config(tmp_path, changed(config, {"model": network}), "task.yaml")
    assert run("finetune", task, "--scratch_model") == 0
    weights = str(folder_of(task) / "ckpt-last.pth")
    model = {"name": "SampledNetwork", "sampler": {"name": "fps", "num_out": 8}, "network": network}
    config = changed(config, {"model": model})
    path = write_config(tmp_path, config, "sampled.yaml")
    assert run("finetune", path, "--test", "--ckpts", weights) == 0
    found = figures(folder_of(path, "test_default"))

    data: Any = build_data(config, torch.device("cpu"), 0)
    task_of: Any = build_task(config)
    built: Any = build_model(config, data).eval()
    state = torch.load(weights, weights_only=True)["model"]
    built.network.load_state_dict(state)
    points = next(data.test.epoch())["points"]
    with torch.no_grad():
        sampled, whole = task_of.errors(built(points), points), task_of.errors(built.network(points), points)
    assert found["nre"] == pytest.approx(float((sampled / whole).mean()), rel=1e-4)
    assert found["error"] == pytest.approx(float(sampled.mean()), rel=1e-4)
    assert found["error_all_points"] == pytest.approx(float(whole.mean()), rel=1e-4)


# ---------------------------------------------------------------- registration


def registration(folder: Path, **changes) -> dict:
    network = {"name": "PCRNet", "mlp": [8, 8], "bottleneck": 16, "head": [16]}
    return changed(finetune_config(folder), {"task": {"name": "register"}, "model": network, **changes})


@pytest.mark.filterwarnings("ignore")
def test_registration_with_and_without_a_sampler(tmp_path: Path) -> None:
    config = registration(tmp_path, **{"data.augment": [{"name": "unit_cube"}], "runner.epochs": 1})
    config = changed(config, {"data.eval_transform": [{"name": "unit_cube"}], "task.test_repeats": 2})
    task = write_config(tmp_path, config, "task.yaml")
    assert run("finetune", task, "--scratch_model") == 0
    found = figures(folder_of(task))
    assert found["rot_err_samplenet"] == pytest.approx(2 * found["rot_err"]) and 0 <= found["rot_err"] <= 180
    assert found["consistency"] < 1e-6 and 0 <= found["auc"] <= 1  # the same points in both clouds
    weights = str(folder_of(task) / "ckpt-last.pth")
    model = {"name": "SampledNetwork", "sampler": SAMPLER, "network": config["model"]}
    for sampled in (0, 1):
        path = write_config(tmp_path, changed(config, {"model": {**model, "sampled": sampled}}), f"both{sampled}.yaml")
        assert run("finetune", path, "--finetune_model", "--ckpts", weights) == 0
        assert figures(folder_of(path))["consistency"] > 0
    options = ["task.supervised=false", "--exp_name", "unsupervised"]
    assert run("finetune", path, "--finetune_model", "--ckpts", weights, *options) == 0


class Oracle(torch.nn.Module):
    """Knows the rotations, and errs by a fixed one."""

    def __init__(self, truth: torch.Tensor):
        super().__init__()
        self.truth, self.place = truth, 0

    def forward(self, template, source):
        quaternion = self.truth[self.place : self.place + len(template)]
        self.place += len(template)
        translation = torch.zeros(len(template), 3)
        return {"quaternion": -quaternion, "translation": translation, "template": template, "source": source}


def test_figures_of_a_perfect_registration(tmp_path: Path) -> None:
    train = {"name": "packed", "path": str(write_data(tmp_path / "a.npz"))}
    data: Any = DataSplits(train=train, val_fraction=0.5, batch_size=4)
    task = Register()
    number = len(data.val.dataset)
    truth = from_euler(fixed_angles(number, np.pi / 4, 0)).float()
    data.val = Loader(data.val.dataset, number, torch.device("cpu"))
    found = task.evaluate(Oracle(truth), data.val, data, nullcontext)
    assert found["rot_err"] < 0.1 and found["auc"] > 0.995 and found["loss"] < 1e-4 and found["trans_err"] == 0


def test_area_under_the_curve() -> None:
    assert area(np.array([0.0, 0.0])) == 1
    assert area(np.array([200.0])) == 0
    assert area(np.array([90.0])) == pytest.approx(0.5)
    assert area(np.array([0.0, 360.0])) == 0.5


def test_iterations_compose() -> None:
    torch.manual_seed(0)
    once, twice = (PCRNet(mlp=[8], bottleneck=12, head=[16], iterations=i).eval() for i in (1, 2))
    twice.load_state_dict(once.state_dict())
    template, source = torch.randn(2, 2, 30, 3)
    first = once(template, source)["quaternion"]
    second = once(rotate_cloud(first, template), source)["quaternion"]
    expected = matrix(second) @ matrix(first)
    torch.testing.assert_close(matrix(twice(template, source)["quaternion"]), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="iterations"):
        PCRNet(iterations=0)


def official_checkpoint(folder: Path, num_out: int = 8) -> tuple[Path, SampledNetwork]:
    """As the official registration saves it: PCRNet's names, and the sampler's below `sampler.`."""
    model = SampledNetwork(SampleNet(num_out, bottleneck=16), PCRNet(mlp=[8] * 4, bottleneck=16, head=[16] * 5)).eval()
    names = {"mlp": ("conv", "bn"), "head": ("fc", "bn_fc"), "regress": ("fc", ""), "project": ("", "")}
    official = {}
    for key, value in model.state_dict().items():
        part, module, *rest = key.split(".")
        prefix = "sampler." if part == "sampler" else "feat." if module == "mlp" else ""
        if module == "project":
            official["sampler.project._temperature"] = value
            continue
        number, kind, leaf = rest
        name = names[module][kind == "norm"] + str(int(number) + 1)
        convolution = module == "mlp" and kind == "linear" and leaf == "weight"
        official[f"{prefix}{name}.{leaf}"] = value[..., None] if convolution else value
    torch.save(official, folder / "exp_model_best.pth")
    return folder / "exp_model_best.pth", model


@pytest.mark.filterwarnings("ignore")
def test_official_registration_checkpoint_is_tested_as_it_is(tmp_path: Path) -> None:
    path, model = official_checkpoint(tmp_path)
    network = {"name": "PCRNet", "mlp": [8] * 4, "bottleneck": 16, "head": [16] * 5}
    sampler = {"name": "samplenet", "num_out": 8, "bottleneck": 16}
    config = registration(tmp_path, model={"name": "SampledNetwork", "sampler": sampler, "network": network})
    run_file = write_config(tmp_path, config)
    assert run("finetune", run_file, "--test", "--ckpts", str(path)) == 0
    loaded = json.loads((folder_of(run_file, "test_default") / "results.json").read_text())["rows"]
    data: Any = build_data(config, torch.device("cpu"), 0)
    expected = Register()._figures(model, data.test, data, nullcontext, 5, 1)
    assert {row["metric"]: row["value"] for row in loaded} == pytest.approx(expected, rel=1e-4)


# ---------------------------------------------------------------- line charts


def test_a_chart_shows_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    plot_lines({"one": [(8, 1.0), (64, 3.0)], "two": [(8, 2.0, 0.5), (64, 2.0)]}, path, log_x=True, title="A title 12%")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 1000
    plot_lines({"flat": [(1, 0.0)]}, path)
    for wrong in ({}, {"one": [(0.0, float("nan"))]}):
        with pytest.raises(UserError, match="nothing to draw"):
            plot_lines(wrong, path)
    with pytest.raises(UserError, match="above 0"):
        plot_lines({"one": [(0, 1), (1, 2)]}, path, log_x=True)


def test_fps_in_front_leaves_the_task_alone() -> None:
    net = PCRNet(mlp=[8], bottleneck=12, head=[16])
    model = SampledNetwork(FPSSampler(8), net).eval()
    template, source = torch.randn(2, 2, 30, 3)
    pose = model(template, source)
    for sampler in (RandomSampler(8), FPSSampler(8, start="random")):  # not the same places in both
        pair: list[Any] = [each.indices for each in SampledNetwork(sampler, net).eval().sample(template, template)]
        assert not torch.equal(*pair)
    assert pose["template"].shape == pose["source"].shape == (2, 8, 3)


def test_the_snippet_of_the_docs_works_in_a_loop_of_ones_own() -> None:
    text = (ROOT / "docs" / "samplenet.md").read_text(encoding="utf-8")
    code = text.split("<!-- snippet -->\n```python\n")[1].split("```")[0]
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(96, 4))
    batches = [(torch.randn(6, 50, 3), torch.arange(6) % 4) for _ in range(3)]
    names: dict[str, Any] = {
        "task_model": network,
        "task_loss": torch.nn.functional.cross_entropy,
        "batches": batches,
    }
    before = [parameter.clone() for parameter in network.parameters()]
    exec(code, names)
    assert all(map(torch.equal, before, network.parameters()))
    assert names["sampler"].project.temperature != 1
    chosen, cloud = names["chosen"], batches[-1][0]
    assert torch.equal(chosen.points, torch.stack([each[row] for each, row in zip(cloud, chosen.indices)]))
    assert len([line for line in code.splitlines() if line.strip() and "import" not in line]) <= 10
