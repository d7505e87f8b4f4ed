"""python -m tools.sample: a person's own clouds, by a trained sampler or by a plain one."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from datasets.files import read_cloud, write_ply
from models.samplers.progressive import ProgressiveSampleNet
from models.samplers.samplenet import SampleNet
from tests.tools.test_samplenet import official_checkpoint
from tools.sample import main

TINY: dict = {"num_out": 6, "bottleneck": 8, "mlp": [8], "head": [8]}


@pytest.fixture
def cloud(tmp_path: Path) -> np.ndarray:
    points = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32) * 30 + 100
    write_ply(tmp_path / "in.ply", points)
    return points


def checkpoint(folder: Path, name: str = "samplenet", transforms: tuple = (), **options) -> tuple[Path, SampleNet]:
    cls = {"samplenet": SampleNet, "samplenet_progressive": ProgressiveSampleNet}[name]
    sampler = cls(**TINY, **options).eval()
    config = {
        "model": {"name": "SampledNetwork", "sampler": {"name": name, **TINY, **options}},
        "data": {"eval_transform": list(transforms)},
    }
    weights = {f"sampler.{key}": value for key, value in sampler.state_dict().items()}
    torch.save({"model": weights, "config": config}, folder / "run.pth")
    return folder / "run.pth", sampler


def sample(*words: object) -> int:
    return main([str(word) for word in words])


def rows_in(found: np.ndarray, cloud: np.ndarray) -> bool:
    """Exact points of the cloud, each once."""
    places = [np.flatnonzero((cloud == row).all(1)) for row in found]
    return all(len(place) for place in places) and len({int(place[0]) for place in places}) == len(found)


def form_of(cloud: np.ndarray, folder: Path, extension: str) -> Path:
    path = folder / f"cloud{extension}"
    if extension in (".xyz", ".txt"):
        np.savetxt(path, cloud, fmt="%.9g")
    elif extension == ".npy":
        np.save(path, cloud)
    elif extension == ".npz":
        np.savez(path, points=cloud[None])
    elif extension == ".h5":
        with h5py.File(path, "w") as file:
            file["data"] = cloud[None]
    elif extension == ".obj":
        path.write_text("".join(f"v {x:.9g} {y:.9g} {z:.9g}\n" for x, y, z in cloud))
    elif extension == ".off":
        path.write_text(f"OFF\n{len(cloud)} 0 0\n" + "".join(f"{x:.9g} {y:.9g} {z:.9g}\n" for x, y, z in cloud))
    else:
        write_ply(path, cloud)
    return path


@pytest.mark.parametrize("extension", [".ply", ".off", ".obj", ".xyz", ".npy", ".txt", ".h5", ".npz"])
def test_every_format_in(extension: str, cloud: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    assert sample(form_of(cloud, tmp_path, extension), out, "--method", "fps", "-n", 7) == 0
    assert rows_in(np.load(out), cloud) and len(np.load(out)) == 7


@pytest.mark.parametrize("extension", [".ply", ".xyz", ".txt", ".npy", ".npz", ".h5"])
def test_every_format_out(extension: str, cloud: np.ndarray, tmp_path: Path) -> None:
    out, again = tmp_path / f"out{extension}", tmp_path / "again.npy"
    assert sample(tmp_path / "in.ply", out, "--method", "random", "-n", 9) == 0
    assert sample(out, again, "--method", "fps", "-n", 9) == 0  # what is written can be read
    assert rows_in(np.load(again), cloud)


def test_a_trained_sampler_sees_the_cloud_centred_and_gives_it_back_as_it_was(cloud, tmp_path: Path) -> None:
    path, sampler = checkpoint(tmp_path)
    assert sample(tmp_path / "in.ply", tmp_path / "out.ply", "--ckpts", path, "--indices", tmp_path / "i.npy") == 0
    found, _, _ = read_cloud(tmp_path / "out.ply")
    centred = cloud - cloud.mean(0)
    centred /= np.linalg.norm(centred, axis=1).max()
    expected = sampler(torch.from_numpy(centred)[None]).indices[0].numpy()
    assert np.array_equal(np.load(tmp_path / "i.npy"), expected)
    assert np.array_equal(found, cloud[expected])


def test_any_number_from_a_progressive_one(cloud: np.ndarray, tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, "samplenet_progressive", sizes=[2, 4], transforms=({"name": "unit_cube"},))
    samples = []
    for number in (3, 20, 50):
        out = tmp_path / f"{number}.npy"
        assert sample(tmp_path / "in.ply", out, "--ckpts", path, "-n", number) == 0
        samples.append(np.load(out))
        assert rows_in(samples[-1], cloud) and len(samples[-1]) == number
    assert np.array_equal(samples[2][:20], samples[1]) and np.array_equal(samples[1][:3], samples[0])


def test_official_checkpoint(cloud: np.ndarray, tmp_path: Path) -> None:
    path, model = official_checkpoint(tmp_path)
    assert sample(tmp_path / "in.ply", tmp_path / "out.npy", "--ckpts", path) == 0
    cube = cloud / np.ptp(cloud, axis=0).max()
    expected = model.sampler(torch.from_numpy(cube - cube.mean(0))[None]).indices[0].numpy()
    assert np.array_equal(np.load(tmp_path / "out.npy"), cloud[expected])


def test_many_clouds_keep_their_labels(tmp_path: Path) -> None:
    points = np.random.default_rng(1).normal(size=(40, 30, 3)).astype(np.float32)
    np.savez(tmp_path / "in.npz", points=points, labels=np.arange(40) % 2, names=["a", "b"])
    assert sample(tmp_path / "in.npz", tmp_path / "out.npz", "--method", "fps", "-n", 5) == 0
    with np.load(tmp_path / "out.npz") as out:
        assert out["points"].shape == (40, 5, 3) and out["names"].tolist() == ["a", "b"]
        assert np.array_equal(out["labels"], np.arange(40) % 2)
        assert all(rows_in(*pair) for pair in zip(out["points"], points))


def test_a_mesh_is_sampled_over_its_surface(tmp_path: Path) -> None:
    (tmp_path / "m.off").write_text("OFF\n4 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n3 0 1 2\n3 0 2 3\n")
    assert sample(tmp_path / "m.off", tmp_path / "o.npy", "--method", "fps", "-n", 30, "--surface", 200) == 0
    found = np.load(tmp_path / "o.npy")
    assert len(np.unique(found, axis=0)) == 30 and (found[:, 2] == 0).all() and found.max() <= 1


def test_seed(cloud: np.ndarray, tmp_path: Path) -> None:
    outs = []
    for seed in (0, 0, 1):
        sample(tmp_path / "in.ply", tmp_path / "o.npy", "--method", "random", "-n", 5, "--seed", seed)
        outs.append(np.load(tmp_path / "o.npy"))
    assert np.array_equal(outs[0], outs[1]) and not np.array_equal(outs[0], outs[2])


@pytest.mark.parametrize(
    "words, message",
    [
        (["in.ply", "o.ply"], "say either --ckpts P"),
        (["in.ply", "o.ply", "--method", "fps"], "needs -n"),
        (["in.ply", "o.ply", "--method", "fps", "-n", "51"], "more than the 50 points"),
        (["in.ply", "o.ply", "--method", "fps", "-n", "0"], "at least 1"),
        (["in.ply", "o.stl", "--method", "fps", "-n", "3"], "cannot write '.stl'"),
        (["in.ply", "no/o.ply", "--method", "fps", "-n", "3"], "there is no folder"),
        (["absent.ply", "o.ply", "--method", "fps", "-n", "3"], "no such file"),
        (["absent.h5", "o.ply", "--method", "fps", "-n", "3"], "no such file"),
        (["in.ply", "o.ply", "--ckpts", "absent.pth"], "no such checkpoint"),
        (["in.ply", "o.ply", "--ckpts", "run.pth", "-n", "5"], "this sampler makes 6 points"),
        (["in.ply", "o.ply", "--ckpts", "other.pth"], "no sampler in it"),
        (["many.npy", "o.ply", "--method", "fps", "-n", "3"], "2 clouds do not go into one .ply"),
        (
            ["objects.npy", "o.ply", "--method", "fps", "-n", "3"],
            "objects.npy: not a readable .npy file (Object",
        ),
        (["cut.npy", "o.ply", "--method", "fps", "-n", "3"], "cut.npy: not a readable .npy file"),
    ],
)
def test_mistakes(words, message: str, cloud, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path)
    np.save("many.npy", np.zeros((2, 9, 3), np.float32))
    np.save("objects.npy", np.array([{}]), allow_pickle=True)
    Path("cut.npy").write_bytes(Path("many.npy").read_bytes()[:150])
    torch.save({"model": {"a": torch.zeros(1)}}, "other.pth")
    assert main(words) == 2
    assert message in capsys.readouterr().err
