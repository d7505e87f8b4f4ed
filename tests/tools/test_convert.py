"""Weights of the official Keras networks, in every layout that Keras writes them, give the recorded results."""

import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from models import MODELS
from tests.golden.fixtures import ABSENT, GOLDEN, Fixture
from tools.convert import main
from utils.checkpoint import read_checkpoint

FIXTURES = {
    "sim_classification": (None, "softmax"),
    "sim_classification_pw": ("point_classifier", "softmax"),
    "sim_segmentation": ("segmenter", "sigmoid"),
}


def layout(arrays: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Paths as Keras 3 writes them (seen with keras 3.15): layers by class, theirs by attribute, arrays by number."""
    result = {}
    for name, value in arrays.items():
        *above, layer, kind = name.split(".")
        place = "0" if kind in ("kernel", "gamma") else "1"
        if above[:1] == ["sa_block"]:
            number = "" if above[1] == "0" else f"_{above[1]}"
            result[f"layers/sim_attention{number}/{layer}/vars/{place}"] = value.numpy()
        elif above:
            result[f"layers/neighborhood__max_pooling/{layer}/vars/{place}"] = value.numpy()
        else:
            result[f"layers/dense/vars/{place}"] = value.numpy()
    return result


def write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[name] = value
        file["optimizer/vars/0"] = np.zeros(3, np.float32)
    return path


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("form", ["weights.h5", "keras", "npz"])
def test_converted_networks_give_the_recorded_results(name: str, form: str, tmp_path: Path) -> None:
    path = GOLDEN / "sampling" / f"{name}.npz"
    if not path.is_file():
        pytest.skip(ABSENT)
    fixture, (network, function) = Fixture(path, "sampling"), FIXTURES[name]
    arrays, source = fixture.below_dict("param/"), tmp_path / f"x.{form}"
    if form == "npz":
        np.savez(source, **{key: value.numpy() for key, value in arrays.items()})  # type: ignore[arg-type]
    elif form == "keras":
        with zipfile.ZipFile(source, "w") as archive:
            archive.write(write(tmp_path / "inner.h5", layout(arrays)), "model.weights.h5")
    else:
        write(source, layout(arrays))
    target = tmp_path / "out.pth"
    assert main(["keras", str(source), str(target), *(["--network", network] if network else [])]) == 0
    state = read_checkpoint(target)
    model = MODELS.build(state["config"]["model"]).eval()
    model.load_state_dict(state["model"])
    for i, layer in enumerate(model.layers):
        layer.attention.projection.copy_(fixture[f"in/RME.{i}"])
    fixture.about.setdefault("atol", 2e-5)
    logits = model(fixture["in/points"])
    fixture.check(logits.softmax(-1) if function == "softmax" else logits.sigmoid(), "out/prob")


def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    dense = {"layers/dense/vars/0": np.zeros((64, 2), np.float32), "layers/dense/vars/1": np.zeros(2, np.float32)}
    cases = [
        (tmp_path / "none.h5", "no such file"),
        (write(tmp_path / "old.h5", {"dense/m/dense/kernel": np.zeros((2, 3), np.float32)}), "old HDF5 layout"),
        (write(tmp_path / "head.h5", dense), "say which with --network"),
    ]
    (tmp_path / "bad.h5").write_bytes(b"no HDF5")
    cases.append((tmp_path / "bad.h5", "no weights of Keras"))
    for path, message in cases:
        assert main(["keras", str(path), str(tmp_path / "out.pth")]) == 2
        assert message in capsys.readouterr().err
    source = str(tmp_path / "head.h5")
    assert main(["keras", source, str(tmp_path / "out.pth"), "--network", "segmenter"]) == 2
    assert "is this a network of 3DSimAttention" in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()
    assert torch.is_grad_enabled()
