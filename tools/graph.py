"""A trained network as a graph in a file that other programs run: ONNX, or torch.export's own format.

Our point operations are written out in plain operations, so neither file needs this project. Batch and number of
points are fixed in the file.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from extensions import reference
from extensions.library import operators
from tools.build import SIZES, build_data, build_model, check_config, load_into
from utils.checkpoint import read_checkpoint
from utils.config import load_config, to_plain
from utils.errors import UserError
from utils.schema import parameters

TOLERANCE = 1e-4  # largest difference between the file's results and the network's, as a share of the largest result


def farthest_point_sample(points: Tensor, num_samples: int, start: int, skip_near_origin: bool) -> Tensor:
    """As the reference, of finite points, in operations that every exchange format has."""
    closest = torch.full_like(points[..., 0], 1e10)
    if skip_near_origin:
        closest = torch.where(points.square().sum(2) > 1e-3, closest, torch.full_like(closest, -1))
    chosen = torch.full_like(points[:, :1, 0], max(start, 0), dtype=torch.int64)
    indices = [chosen] if start >= 0 else []
    center = points.mean(dim=1, keepdim=True) if start < 0 else points.gather(1, chosen[..., None].expand(-1, -1, 3))
    while len(indices) < num_samples:
        closest = torch.minimum(closest, (points - center).square().sum(2))
        chosen = closest.argmax(dim=1, keepdim=True)
        indices.append(chosen)
        center = points.gather(1, chosen[..., None].expand(-1, -1, 3))
    return torch.cat(indices, dim=1)


def knn(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    distances = (query[:, :, None] - points[:, None]).square().sum(3)
    found = distances.sort(dim=2, stable=True)
    return found.values[..., :k], found.indices[..., :k]


def group(points: Tensor, num_group: int, group_size: int, skip_near_origin: bool) -> tuple[Tensor, Tensor, Tensor]:
    chosen = farthest_point_sample(points, num_group, 0, skip_near_origin)
    center = reference.gather(points, chosen)
    indices = knn(center, points, group_size)[1]
    return reference.gather(points, indices) - center[:, :, None], center, indices


def three_nn(unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    return knn(unknown, known, 3)


PLAIN: dict[str, Callable] = {
    "farthest_point_sample": farthest_point_sample,
    "knn": knn,
    "group": group,
    "three_nn": three_nn,
    "three_interpolate": reference.three_interpolate,
    "sort_order": reference.sort_order,
    "window_scores": reference.window_scores,
    "window_mix": reference.window_mix,
}


def unmarked_sort(x: Tensor, *, stable: bool | None, dim: int = -1, descending: bool = False) -> Any:
    """ONNX has one sort, which takes the lower index first among equals: a stable one, without saying so."""
    return torch.ops.aten.sort.default(x, dim, descending)


def trace(model: nn.Module, example: tuple[Tensor, ...], kind: str) -> torch.export.ExportedProgram:
    """The network as a graph of plain operations."""
    model = model.eval().requires_grad_(False)
    program = torch.export.export(model, example)
    ours = {getattr(operators, name).default: function for name, function in PLAIN.items()}
    if kind == "onnx":
        ours[torch.ops.aten.sort.stable] = unmarked_sort
    return program.run_decompositions({**torch.export.default_decompositions(), **ours})


def needed(name: str, purpose: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{purpose} needs the package {name}: pip install {name}") from error


def write(program: torch.export.ExportedProgram, kind: str, path: Path) -> None:
    if kind == "pt2":
        torch.export.save(program, path)
        return
    for name in ("onnx", "onnxscript"):
        needed(name, "--format onnx")
    torch.onnx.export(program, dynamo=True, verbose=False).save(path)  # type: ignore[union-attr]


def run_file(kind: str, path: Path, example: tuple[Tensor, ...]) -> Tensor:
    """What the file gives for the example."""
    if kind == "pt2":
        return torch.export.load(path).module()(*example)
    session = needed("onnxruntime", "checking an onnx file").InferenceSession(str(path))
    names = [given.name for given in session.get_inputs()]
    return torch.from_numpy(session.run(None, dict(zip(names, (each.numpy() for each in example))))[0])


def difference(model: nn.Module, kind: str, path: Path, example: tuple[Tensor, ...]) -> float:
    """Largest deviation of the file's results from the network's, as a share of the largest result."""
    with torch.no_grad():
        expected = model.eval()(*example)
        actual = run_file(kind, path, example)
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def build(config: Mapping[str, Any]) -> nn.Module:
    """The network; the data are only read for sizes that the configuration leaves to them."""
    from models import MODELS

    taken = [key for key in parameters(MODELS.get(config["model"]["name"], "model")) if key in SIZES]
    if all(key in config["model"] for key in taken):
        return MODELS.build(config["model"], "model")
    return build_model(config, build_data(config, torch.device("cpu"), config.get("seed", 0)))


def export_graph(args: argparse.Namespace) -> str:
    """Write the network, run the file, say how far it is from the network."""
    if not args.config:
        raise UserError("--config: missing; name the configuration of the network")
    if min(args.batch, args.points) < 1:
        raise UserError(f"--batch {args.batch} --points {args.points}: use at least 1 of each")
    config = to_plain(load_config(args.config, args.overrides)[0])
    check_config(config)
    model = build(config)
    said = load_into(model, read_checkpoint(args.ckpts), args.ckpts, whole=True).summary()
    path = Path(args.output or Path(args.ckpts).with_suffix(f".{args.format}"))
    example = example_for(model, args.batch, args.points)
    write(trace(model, example, args.format), args.format, path)
    deviation = difference(model, args.format, path, example)
    if deviation > TOLERANCE:
        raise UserError(f"{path}: deviates by {deviation:.1e}, more than {TOLERANCE:g}; do not use it")
    return f"{said}\n{path}: {path.stat().st_size / 2**20:.1f} MB, largest deviation from the network {deviation:.1e}"


def example_for(model: nn.Module, batch: int, points: int) -> tuple[Tensor, ...]:
    """Clouds in the unit ball, and a category each where the network wants to be told."""
    clouds = torch.randn(batch, points, 3, generator=torch.Generator().manual_seed(0)) / 3
    told = bool(getattr(model, "num_categories", 0) or getattr(getattr(model, "head", None), "num_categories", 0))
    return (clouds, torch.zeros(batch, dtype=torch.int64)) if told else (clouds,)
