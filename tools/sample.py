"""Sample your own clouds: python -m tools.sample in.ply out.ply --ckpts P -n 64, or --method fps|random|ass without P.

in: a cloud (.ply .xyz .txt .pts .csv .npy), a mesh (.off .obj .stl .ply with faces: spread points over its surface
first, see --surface), or many clouds in one file (.npz .h5 with `points`, .npy of shape (n, P, 3)).
out: .ply .xyz .txt .npy for one cloud, .npy .npz .h5 for one or many.
--ckpts: a run of ours with a sampler in it, or an official checkpoint of the registration with one. The sampler sees
the cloud centred and scaled as in its training; what is written are points of the cloud as it came.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets import TRANSFORMS
from datasets.files import read_cloud, sample_mesh, write_ply
from datasets.packed import EXTENSIONS, read_arrays, write_packed
from extensions import ops
from models.samplers import SAMPLERS
from models.samplers.base import Sampler
from models.samplers.matching import complete_by_farthest
from models.samplers.progressive import ProgressiveSampleNet
from models.samplers.samplenet import SampleNet
from tools.build import build_device
from tools.cli import Parser, tell
from utils.checkpoint import load_weights, read_checkpoint, weights_in
from utils.errors import UserError, first_line
from utils.random import BatchRandom

SCALED = ("unit_cube", "normalize")  # what a sampler may have been trained behind
BATCH = 32


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m tools.sample", description="Choose n points of a cloud.", allow_abbrev=False)
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--ckpts", help="checkpoint with a trained sampler")
    parser.add_argument("--method", choices=("fps", "random", "ass"), help="a sampler that needs no checkpoint")
    parser.add_argument("-n", "--num", type=int, help="points to keep; default: as many as the sampler was made for")
    parser.add_argument("--surface", type=int, default=2048, help="points to spread over a mesh before (default 2048)")
    parser.add_argument("--indices", type=Path, help="also write the places of the points in the cloud (.npy)")
    parser.add_argument("--seed", type=int, default=0, help="for --method random and for meshes")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    try:
        run(args)
    except (UserError, OSError) as error:
        return tell(str(error))
    return 0


def run(args: argparse.Namespace) -> None:
    if (args.ckpts is None) == (args.method is None):
        raise UserError("say either --ckpts P, a trained sampler, or --method fps, random or ass")
    if args.num is not None and args.num < 1:
        raise UserError(f"-n {args.num}; keep at least 1 point")
    check_output(args.output)
    device = build_device(args.device)
    clouds, labels, names = read_clouds(args.input, args.surface, args.seed)
    choose = by_method(args.method, args.num, args.seed) if args.method else by_checkpoint(args.ckpts, args.num, device)
    chosen = []
    with torch.no_grad():
        for start in range(0, len(clouds), BATCH):
            chosen.append(choose(torch.tensor(clouds[start : start + BATCH], device=device)).cpu().numpy())
    indices = np.concatenate(chosen)
    points = np.take_along_axis(clouds, indices[..., None], axis=1)
    write_clouds(args.output, points, labels, names)
    if args.indices:
        np.save(args.indices, indices if len(indices) > 1 else indices[0])
    print(f"{args.output}: {points.shape[1]} of {clouds.shape[1]} points, {len(points)} cloud(s)")


# ---------------------------------------------------------------- samplers: (B, N, 3) -> indices (B, n)

Choice = Callable[[Tensor], Tensor]


def by_method(name: str, num: int | None, seed: int) -> Choice:
    if num is None:
        raise UserError(f"--method {name} needs -n: how many points to keep")
    sampler = SAMPLERS.build({"name": name, "num_out": num}, "--method").eval()
    rng = BatchRandom(seed, rank=0, world=1)

    def choose(points: Tensor) -> Tensor:
        sampled = sampler(points, rng)
        if sampled.indices is None:  # a sampler that makes points of its own: the nearest points of the cloud
            return complete_by_farthest(ops.knn(sampled.points, points, 1)[1][..., 0], points, num)
        return sampled.indices

    return choose


def by_checkpoint(path: str, num: int | None, device: torch.device) -> Choice:
    state = read_checkpoint(path)
    config = state.get("config") or {}
    sampler = load_sampler(state, path).to(device).eval()
    scale = scaling(config)
    size = check_size(sampler, num)

    def choose(points: Tensor) -> Tensor:
        scaled = scale({"points": points}, BatchRandom(0, device, rank=0, world=1))["points"]
        if isinstance(sampler, ProgressiveSampleNet):
            if size > points.shape[1]:
                raise UserError(f"-n {size}, but a cloud has {points.shape[1]} points")
            return sampler.order(scaled)[:, :size]
        return sampler(scaled).indices

    return choose


def check_size(sampler: Sampler, num: int | None) -> int:
    """A network for M points makes M; only one that was trained progressively makes any number."""
    if isinstance(sampler, ProgressiveSampleNet):
        return sampler.eval_size if num is None else num
    if num not in (None, sampler.num_out):
        raise UserError(
            f"-n {num}, but this sampler makes {sampler.num_out} points; leave out -n, or train samplenet_progressive, "
            "of which every prefix is a sample"
        )
    return sampler.num_out


def load_sampler(state: Mapping[str, Any], path: str) -> Sampler:
    """The sampler of a run of ours, as its configuration says, or of an official registration checkpoint."""
    weights = weights_in(state, path)
    own = {key.removeprefix("sampler."): value for key, value in weights.items() if key.startswith("sampler.")}
    config = (state.get("config") or {}).get("model", {}).get("sampler")
    if config is not None:
        sampler = SAMPLERS.build(config, "model.sampler")
        if not sampler.state_dict():
            raise UserError(f"{path}: its sampler '{config['name']}' has nothing learned; use --method")
    elif {"conv5.weight", "fc4.weight"} <= own.keys():
        sampler = SampleNet(num_out=len(own["fc4.weight"]) // 3, bottleneck=len(own["conv5.weight"]))
    else:
        raise UserError(f"{path}: no sampler in it; needed is a run whose model is a SampledNetwork")
    report = load_weights(sampler, own, path, getattr(sampler, "key_map", None))
    if report.missing:
        raise UserError(f"{report.summary()}: the sampler is not whole")
    return sampler


def scaling(config: Mapping[str, Any]) -> Callable:
    """Clouds as the sampler knows them: scaled to a cube where its run did so (or is the official registration's), else
    with mean 0 and largest radius 1, as packed data are."""
    steps = config.get("data", {}).get("eval_transform") or []
    named = [step["name"] for step in steps if step.get("name") in SCALED]
    return TRANSFORMS.build({"name": named[-1] if named else "normalize" if config else "unit_cube"})


# ---------------------------------------------------------------- files


def read_clouds(path: Path, surface: int, seed: int) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Points (n, P, 3) float32; labels and class names where the file has them."""
    if path.suffix.lower() in EXTENSIONS:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        arrays, keys = read_arrays(path)
        points = arrays.get("points", arrays.get("data"))
        if points is None:
            raise UserError(f"{path}: holds no 'points'; keys found: {', '.join(keys) or 'none'}")
        labels = arrays.get("labels", arrays.get("label"))
        names = [str(name) for name in arrays["names"]] if "names" in arrays else []
        labels = None if labels is None or np.ndim(points) == 2 else np.asarray(labels).reshape(-1).astype(np.int64)
        return _checked(path, np.asarray(points)), labels, names
    if path.suffix.lower() == ".npy" and path.is_file():
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise UserError(f"{path}: not a readable .npy file ({first_line(error)})") from error
        if array.ndim == 3:
            return _checked(path, array), None, []
    points, faces, _ = read_cloud(path)
    if faces is not None:
        points, _ = sample_mesh(points, faces, surface, np.random.default_rng(seed))
    return _checked(path, points), None, []


def _checked(path: Path, points: np.ndarray) -> np.ndarray:
    points = points[None] if points.ndim == 2 else points
    if points.ndim != 3 or points.shape[2] < 3 or 0 in points.shape:
        raise UserError(f"{path}: 'points' must have shape (n, P, 3) or (P, 3), found {points.shape}")
    points = np.ascontiguousarray(points[..., :3], dtype=np.float32)
    if not np.isfinite(points).all():
        raise UserError(f"{path}: holds NaN or infinite coordinates; remove those points")
    return points


TABLES = (".xyz", ".txt")
WRITABLE = (".ply", *TABLES, ".npy", *EXTENSIONS)


def check_output(path: Path) -> None:
    if path.suffix.lower() not in WRITABLE:
        raise UserError(f"{path}: cannot write '{path.suffix}'; writable: {', '.join(WRITABLE)}")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")


def write_clouds(path: Path, points: np.ndarray, labels: np.ndarray | None, names: Sequence[str]) -> None:
    """Points (n, m, 3) in the form that the extension names."""
    kind = path.suffix.lower()
    if len(points) > 1 and kind in (".ply", *TABLES):
        raise UserError(f"{path}: {len(points)} clouds do not go into one {kind}; use .npz, .h5 or .npy")
    if kind == ".ply":
        write_ply(path, points[0])
    elif kind in TABLES:
        np.savetxt(path, points[0], fmt="%.9g")
    elif kind == ".npy":
        np.save(path, points if len(points) > 1 else points[0])
    elif kind == ".npz":
        known = np.zeros(len(points), np.int64) if labels is None else labels
        classes = names or [str(i) for i in range(int(known.max()) + 1)]
        write_packed(path, points, known, ["unlabelled"] if labels is None else classes)
    else:
        import h5py

        with h5py.File(path, "w") as file:
            file["data"] = points
            if labels is not None:
                file["label"] = labels[:, None]


if __name__ == "__main__":
    sys.exit(main())
