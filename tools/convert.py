"""Weights of other programs -> ours: python -m tools.convert keras in.weights.h5 out.pth

keras: the networks of the official 3DSimAttention, as `model.save_weights("x.weights.h5")` or `model.save("x.keras")`
writes them, or an .npz of arrays named like sa_block.0.UP_PROJECTION.kernel. Arrays are read, nothing is executed.
"""

from __future__ import annotations

import io
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import MODELS
from models.keras_weights import LAYERS, from_keras
from tools.cli import Parser, tell
from utils.checkpoint import load_weights, save_checkpoint
from utils.config import dump_config
from utils.errors import UserError, first_line

NETWORKS = {
    "neighbourhood_classifier": "SimNeighbourhoodClassifier",
    "point_classifier": "SimPointClassifier",
    "segmenter": "SimSegmenter",
}
BLOCK = re.compile(r"sim_attention(?:_(\d+))?$")


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Arrays by the official attribute path."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                return {key.removeprefix("param/"): torch.from_numpy(stored[key]) for key in stored.files}
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return attribute_paths(h5_arrays(io.BytesIO(archive.read("model.weights.h5"))))
        return attribute_paths(h5_arrays(path))
    except UserError:
        raise
    except Exception as error:  # damaged bytes make the zip, HDF5 and NumPy readers raise nearly anything
        raise UserError(f"{path}: no weights of Keras ({first_line(error)})") from error


def h5_arrays(source: Path | io.BytesIO) -> dict[str, Tensor]:
    """Every numerical array of an HDF5 file by its path."""
    import h5py

    found: dict[str, Tensor] = {}

    def take(path: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
            found[path] = torch.from_numpy(np.asarray(item[()], dtype=np.float32))

    with h5py.File(source, "r") as file:
        file.visititems(take)
    return found


def attribute_paths(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """layers/sim_attention_1/UP_PROJECTION/vars/0 -> sa_block.1.UP_PROJECTION.kernel, and so on.

    A layer holds its arrays in the order of their making: the kernel has more dimensions than the bias; of a
    LayerNorm, gamma comes first.
    """
    owners: dict[str, list[Tensor]] = {}
    for path in sorted(arrays):
        owner, separator, _ = path.partition("/vars/")
        if not separator:
            raise UserError(
                f"{path}: an array outside of 'vars': Keras' old HDF5 layout, which does not tell layers apart; write "
                'the weights with model.save_weights("x.weights.h5")'
            )
        if not owner.startswith("optimizer"):
            owners.setdefault(owner, []).append(arrays[path])
    named: dict[str, Tensor] = {}
    for owner, values in owners.items():
        prefix, layer = official_name(owner)
        if len(values) != 2:
            raise UserError(f"{owner}: {len(values)} arrays, expected a kernel and a bias; is this 3DSimAttention?")
        kernel, bias = values if layer == "LAYERNORM" else sorted(values, key=lambda value: -value.ndim)
        words = ("gamma", "beta") if layer == "LAYERNORM" else ("kernel", "bias")
        named |= {f"{prefix}{layer}.{word}": value for word, value in zip(words, (kernel, bias))}
    return named


def official_name(owner: str) -> tuple[str, str]:
    """('sa_block.1.', 'UP_PROJECTION') of a path; what has no name of its own is the head."""
    *above, layer = owner.split("/")
    block = next((match for part in above if (match := BLOCK.search(part))), None)
    if block:
        return f"sa_block.{block[1] or 0}.", layer
    return ("Neigh_pool.", layer) if layer in LAYERS else ("", "classify_head")


def keras_model(arrays: Mapping[str, Tensor], network: str | None, source: str) -> tuple[dict, torch.nn.Module]:
    """The model section of a configuration, and the network with the weights."""
    weights = from_keras(arrays)
    pooled = "pool.first.weight" in weights
    if network is None and not pooled and not any("seg_head" in key for key in arrays):
        raise UserError(f"{source}: may be a point_classifier or a segmenter; say which with --network")
    network = network or ("neighbourhood_classifier" if pooled else "segmenter")
    try:
        low, orders = weights["layers.0.attention.value.weight"].shape[1], "layers.0.attention.mix.weight"
        attention = {"name": "sim", "restore": "none", "d_low": low, "k_heads": weights[orders].shape[1] // low}
        depth = len({key.split(".")[1] for key in weights if key.startswith("layers.")})
        outputs, embed_dim = weights["head.weight"].shape
    except KeyError as error:
        raise UserError(f"{source}: holds no {error.args[0]}; is this a network of 3DSimAttention?") from error
    config: dict[str, Any] = {"name": NETWORKS[network], "depth": depth, "embed_dim": embed_dim}
    config |= {"num_parts" if network == "segmenter" else "num_classes": outputs, "attention": attention}
    if pooled:
        config["token_dim"] = weights["pool.second.weight"].shape[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the official network draws its directions anew at every call: none are stored
        model = MODELS.build(config, "model")
    report = load_weights(model, weights, source)
    left = [key for key in report.missing if not key.endswith((".projection", ".source"))]
    if left or report.unexpected:
        raise UserError(f"{report.summary()}: not the weights of a {network}; name another with --network")
    print(report.summary())
    return config, model


def keras(args: Any) -> None:
    config, model = keras_model(read_arrays(args.source), args.network, str(args.source))
    save_checkpoint(args.target, {"model": model.state_dict(), "config": {"model": config}})
    print(f"{args.target}: written. Its section of a configuration:\n\n{dump_config({'model': config})}", end="")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m tools.convert", description="Weights of other programs in our form")
    kinds = parser.add_subparsers(dest="kind", required=True, parser_class=Parser)
    of_keras = kinds.add_parser("keras", help="the networks of the official 3DSimAttention")
    of_keras.add_argument("source", type=Path)
    of_keras.add_argument("target", type=Path)
    of_keras.add_argument("--network", choices=NETWORKS, help="needed where the file does not tell")
    of_keras.set_defaults(run=keras)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (UserError, OSError) as error:
        return tell(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
