"""Data, schedules, averaging and the probe of Point-MAE and GeoMask3D against what the official code computed."""

import math
import re
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from datasets import transforms
from extensions import ops
from models.point_mae import PatchModel
from models.sa3d.average import decay_at, follow
from tests.golden.fixtures import Fixture
from tools.probe import Features, svm
from tools.schedule import Cosine, progress


class Recorded:
    """Gives out recorded draws, in the order of the calls, where a transform expects a `BatchRandom`."""

    def __init__(self, *draws: Tensor):
        self.draws = list(draws)

    def uniform(self, batch: int, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """The record holds the numbers as they are used, within their bounds."""
        return self.draws.pop(0).reshape(batch, *shape)

    def normal(self, batch: int, *shape: int) -> Tensor:
        return self.uniform(batch, *shape)

    def permutation(self, size: int) -> Tensor:
        return self.draws.pop(0)


def apply(transform: Any, points: Tensor, *draws: Tensor) -> Tensor:
    """A transform of ours on (B, N, 3) with recorded draws, all of which it must use."""
    rng = Recorded(*draws)
    out = transform({"points": points}, rng)["points"]
    assert not rng.draws
    return out


def transforms_(fixture: Fixture) -> None:
    args, points = fixture.args, fixture["in/points"]
    low, high = args["scale"]
    scale, shift = fixture["in/scale"], fixture["in/translate"]
    sigma, ratio = args["jitter_std"], args["max_dropout_ratio"] * fixture["in/dropout_ratio_draw"]
    flip = (fixture["in/flip_gate"], fixture["in/flip_axis_draw_xy"])
    cases: dict[str, tuple[Any, tuple[Tensor, ...]]] = {
        "scale_translate": (transforms.ScaleTranslate(low, high, args["translate"]), (scale, shift)),
        "scale": (transforms.Scale(low, high), (scale,)),
        "translate": (transforms.Translate(args["translate"]), (shift,)),
        "rotate": (transforms.Rotate("y"), (2 * math.pi * fixture["in/angle_fraction"],)),
        "jitter": (transforms.Jitter(sigma, args["jitter_clip"]), (fixture["in/jitter_noise"] / sigma,)),
        "input_dropout": (transforms.Dropout(args["max_dropout_ratio"]), (ratio, fixture["in/dropout_point_draw"])),
        "flip_upright_z": (transforms.Flip(), flip),
    }
    for name, (transform, draws) in cases.items():
        fixture.check(apply(transform, points, *draws), f"out/{name}")


def dataset_items(fixture: Fixture) -> None:
    args = fixture.args
    fixture.check(_farthest(fixture["in/raw"], args["fps_rows"], fixture["in/fps_start"]), "out/fps_rows")

    (key,) = [name for name in fixture.below("in/") if name.startswith("modelnet_raw_")]
    cached = _farthest(fixture[f"in/{key}"], args["modelnet_n_points"], fixture["in/modelnet_fps_start"])
    fixture.check(cached, "out/modelnet_cached_points")
    item = apply(transforms.Normalize(), cached[None, :, :3])[0, fixture["in/modelnet_shuffle"]]
    fixture.check(item, "out/modelnet_item_points")
    fixture.read |= {"out/modelnet_cached_label", "out/modelnet_item_label"}  # names to numbers: the reader's tests

    chosen = fixture["in/shapenet_permutation"][: args["shapenet_npoints"]]
    fixture.check(apply(transforms.Normalize(), fixture["in/shapenet_raw"][None, chosen])[0], "out/shapenet_item")


def _farthest(rows: Tensor, number: int, start: Tensor) -> Tensor:
    """Farthest points of the first three columns, all columns kept."""
    return rows[ops.farthest_point_sample(rows[None, :, :3], number, start=int(start))[0]]


def finetune_resample(fixture: Fixture) -> None:
    pool, number = fixture.args["point_all"], fixture.args["npoints"]
    points = fixture["in/points"]
    fixture.check(ops.farthest_point_sample(points, pool, skip_near_origin=True), "out/fps_idx")
    resample = transforms.Resample(number, pool)
    fixture.check(apply(resample, points, fixture["in/choice"]), "out/points")


def lr_schedule_point_mae(fixture: Fixture) -> None:
    number = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?")
    for name, text in fixture.args.items():  # "lr 5e-4, epochs 300, warm-up 10", with or without the words
        lr, epochs, warmup = (float(found) for found in number.findall(str(text)))
        key = f"out/{name}/lr_used_in_epoch"
        steps = (progress(epoch, 0, 1, point_mae=True) for epoch in range(len(fixture[key])))
        rates = [Cosine(warmup)(lr, step, int(epochs)) for step in steps]
        fixture.check(torch.tensor(rates, dtype=torch.float64), key)


def lr_schedule_gm3d(fixture: Fixture) -> None:
    args = fixture.args
    cosine = Cosine(args["warmup_epochs"], min_lr=args["min_lr"], warmup_lr=0.0, shifted=True)
    rates = [
        cosine(args["lr"], progress(epoch, step, args["iters_per_epoch"]), args["epochs"])
        for epoch, step in fixture["in/epoch_iter"].tolist()
    ]
    fixture.check(torch.tensor(rates, dtype=torch.float64), "out/lr")


def ema_update(fixture: Fixture) -> None:
    """The average of a run and that of SA3D, with the ramp of its decay."""
    model = _module(fixture.below_dict("in/model/"))
    for epoch in sorted({key.split("/")[0] for key in fixture.below("out/")}):
        decay = decay_at(int(epoch.removeprefix("epoch")), start=0.999, end=0.9999, ramp_epochs=100)
        fixture.check(torch.tensor([decay], dtype=torch.float64), f"out/{epoch}/decay")
        own = _module(fixture.below_dict("in/ema_before/"))
        follow(own, model, decay)
        averaging = get_ema_multi_avg_fn(decay)
        average = AveragedModel(_module(fixture.below_dict("in/ema_before/")), multi_avg_fn=averaging, use_buffers=True)
        average.n_averaged.fill_(1)  # the first update copies
        average.update_parameters(model)
        for each in (own, average.module):
            for key, value in each.state_dict().items():
                fixture.check(value, f"out/{epoch}/{key.replace(':', '.')}")


def _module(state: dict[str, Tensor]) -> nn.Module:
    """A module with this state: statistics and counters as buffers, the rest as parameters."""
    module = nn.Module()
    for key, value in state.items():
        name = key.replace(".", ":")
        if key.rsplit(".", 1)[-1] in ("running_mean", "running_var", "num_batches_tracked"):
            module.register_buffer(name, value.clone())
        else:
            module.register_parameter(name, nn.Parameter(value.clone()))
    return module


def gm3d_svm(fixture: Fixture) -> None:
    def features(split: str) -> Features:
        tokens = SimpleNamespace(forward_features=lambda points: fixture[f"in/{split}_tokens"])
        vectors = PatchModel.encode(tokens, torch.empty(0))  # type: ignore[arg-type]
        return Features(vectors.numpy(), fixture[f"in/{split}_label"].numpy())

    train, test = features("train"), features("test")
    fixture.check(torch.from_numpy(train.x), "out/train_feature")
    fixture.check(svm(train, test, c=fixture.args["C"]).accuracy / 100, "out/accuracy")


ADAPTERS = {
    "transforms": transforms_,
    "dataset_items": dataset_items,
    "finetune_resample": finetune_resample,
    "lr_schedule_point_mae": lr_schedule_point_mae,
    "lr_schedule_gm3d": lr_schedule_gm3d,
    "ema_update": ema_update,
    "gm3d_svm": gm3d_svm,
}
