"""SA3D: who learns what, what is hard, where the mask goes, what a checkpoint holds. Every test on both backbones."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from models import MODELS
from models.masking import GuidedMask, RandomMask
from models.sa3d import SA3D
from models.sa3d.average import decay_at, follow
from models.sa3d.losses import feature_error, ranking_loss, regression_loss
from tests.models.test_point_mae import SMALL, cloud
from tools.frozen import frozen_at_random
from utils.checkpoint import load_weights
from utils.errors import UserError
from utils.random import BatchRandom

BACKBONES = ("PointMAE", "PointM2AE")
FEATURES: dict[str, Any] = {"teacher": "elsewhere", "distillation_weights": [1.0, 13.889]}
REPO = {**FEATURES, "reconstruction": "teacher_decoded", "reconstruction_grad": False, "rank_eps": 1e-6}
VARIANTS: dict[str, dict[str, Any]] = {
    "points": {},
    "features": FEATURES,
    "as released": REPO,
    "released, with gradient": {**REPO, "reconstruction_grad": True},
    "features alone": {**FEATURES, "reconstruction": "none"},
    "regression": {"rank": "regression"},
    "shared token": {"share_mask_token": True, "detach_encoder": True},
    "complete clouds": {"predict_from": "complete"},
    "complete clouds, with features": {"predict_from": "complete", **FEATURES},
    "average in bfloat16": {"average_precision": "bf16"},
    "complete clouds in bfloat16": {"predict_from": "complete", "average_precision": "bf16"},
    "no ranking": {"rank_weight": 0.0, "mask": RandomMask(0.5)},
}


def build(backbone: str = "PointMAE", **options: Any) -> SA3D:
    torch.manual_seed(0)
    inner = {"name": backbone, **SMALL[backbone], "drop_path_rate": 0.0}
    defaults = {"predictor_depth": 1, "predictor_hidden": 16, "mask": GuidedMask(0.5), "predictor_drop_path_rate": 0.0}
    defaults["average_precision"] = "run"  # the same on every machine
    return MODELS.build({"name": "SA3D", "backbone": inner, **defaults, **options})


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_trained_parameter_gets_a_gradient_and_no_teacher_does(backbone: str, variant: str) -> None:
    model = build(backbone, **VARIANTS[variant]).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    out = model(cloud(4), rng=BatchRandom(0))
    assert out["loss"].isfinite() and all(value.ndim == 0 for value in out["figures"].values())
    out["loss"].backward()
    for name, parameter in model.named_parameters():
        teaches = name.startswith(("average.", "teacher."))
        assert parameter.requires_grad == (parameter.grad is not None), name
        assert not (teaches and parameter.requires_grad)
    for name, value in model.state_dict().items():  # statistics of teachers stay as they are
        if name.startswith(("average.", "teacher.")):
            assert torch.equal(value, before[name]), name


def test_nobody_is_warned_of_an_average() -> None:
    model = build("PointMAE", **FEATURES, predict_from="complete")
    assert any(not parameter.requires_grad for parameter in model.parameters())
    assert not frozen_at_random(model, [])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_loss_is_the_weighted_sum_of_its_parts(backbone: str) -> None:
    model, points = build(backbone, **FEATURES, rank_weight=0.5).eval(), cloud()
    for epoch, weights in ((14, (1.0, 1.0)), (15, (1000.0, 13.889))):
        model.set_progress(epoch, 30)
        out = model(points, rng=BatchRandom(1))
        parts = {key: float(value) for key, value in out["figures"].items()}
        expected = weights[0] * parts["reconstruction"] + weights[1] * parts["distillation"] + 0.5 * parts["rank"]
        assert float(out["loss"].detach()) == pytest.approx(expected, rel=1e-5)
        weighted = sum(parts[f"weighted/{name}"] for name in ("reconstruction", "distillation", "rank"))
        assert weighted == pytest.approx(expected, rel=1e-5)
    share = model.mask.num_guided(model.student.centers(model.student.group(points)).shape[1]) / out["hidden"].shape[1]
    assert parts["mask/guided"] == pytest.approx(share) and 0 <= parts["rank_acc"] <= 1


@pytest.mark.parametrize("backbone", BACKBONES)
def test_without_ranking_and_aim_it_is_the_backbone(backbone: str) -> None:
    model, points = build(backbone, rank_weight=0.0, mask=RandomMask(0.5), reconstruction_weights=[1, 1]), cloud()
    model.student.mask = model.mask
    alone = model.student(points, rng=BatchRandom(3))["loss"]  # type: ignore[operator]
    torch.testing.assert_close(model(points, rng=BatchRandom(3))["loss"], alone, rtol=0, atol=0)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_mask_goes_where_the_average_says(backbone: str) -> None:
    model, points = build(backbone, mask=GuidedMask(0.5, beta_start=1.0, beta_end=1.0)).eval(), cloud(5)
    groups = model.student.group(points)
    difficulty = model.difficulty(groups)
    mask, number = model.draw(groups, rng=BatchRandom(0))
    hardest = difficulty.topk(number, dim=1).indices
    assert mask.gather(1, hardest).all() and (mask.sum(dim=1) == number).all()
    with torch.no_grad():
        for parameter in model.predictor.parameters():
            parameter.add_(1.0)  # the student's opinion does not count
    assert torch.equal(mask, model.draw(groups, rng=BatchRandom(0))[0])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_average_may_look_in_bfloat16(backbone: str) -> None:
    points = cloud(6)
    exact, quick = build(backbone).eval(), build(backbone, average_precision="bf16").eval()
    groups = exact.student.group(points)
    assert exact.whole_tokens(groups).dtype == torch.float32 and quick.whole_tokens(groups).dtype == torch.bfloat16
    expected, difficulty = exact.difficulty(groups), quick.difficulty(groups)
    assert difficulty.dtype == torch.float32 and not torch.equal(difficulty, expected)
    assert (difficulty - expected).abs().max() < 0.1 * expected.std()
    assert quick(points, rng=BatchRandom(0))["prediction"].dtype == torch.float32  # what learns: as the run has it


@pytest.mark.parametrize("units", [True, False])
def test_by_itself_it_does_where_the_device_has_units_for_it(units: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.sa3d.sa3d.has_bfloat16", lambda device: units)
    model = build(average_precision="auto").eval()
    tokens = model.whole_tokens(model.student.group(cloud(2)))
    assert tokens.dtype == (torch.bfloat16 if units else torch.float32)
    assert bool(model.notes(torch.device("cpu"))) == units


@pytest.mark.parametrize("backbone", BACKBONES)
def test_from_complete_clouds_it_is_taught_what_it_is_asked(backbone: str) -> None:
    model, points = build(backbone, predict_from="complete").eval(), cloud(3)
    groups = model.student.group(points)
    view = model.student.rebuild(groups, *model.draw(groups, rng=BatchRandom(0)))
    predicted = model.predict(groups, view, model.whole_tokens(groups))
    assert torch.equal(
        predicted, model.difficulty(groups).gather(1, view.hidden)
    )  # average and student are still alike
    predicted.sum().backward()
    assert all(parameter.grad is None for parameter in model.student.parameters())  # type: ignore[attr-defined]
    published = build(backbone).eval().predict(groups, view)
    assert not torch.equal(predicted, published)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_evaluation_tells_how_well_the_average_answers(backbone: str) -> None:
    points = cloud(3)
    taught = build(backbone, predict_from="complete").eval()(points, rng=BatchRandom(0))["figures"]
    assert taught["teacher_rank_acc"] == taught["rank_acc"]  # average and student are still alike
    model = build(backbone).eval()
    groups = model.student.group(points)
    mask, answers = model.draw(groups, rng=BatchRandom(0))[0], model.difficulty(groups)
    right = model(points, mask=mask)["figures"]["teacher_rank_acc"]
    model.average["predictor"].forward = lambda *_: -answers
    wrong = model(points, mask=mask)["figures"]["teacher_rank_acc"]
    assert float(right + wrong) == pytest.approx(1, abs=1e-6)
    assert "teacher_rank_acc" not in build(backbone).train()(points, rng=BatchRandom(0))["figures"]


def test_a_coarse_patch_is_as_hard_as_its_rebuilt_members() -> None:
    model, points = build("PointM2AE").eval(), cloud()
    groups = model.student.group(points)
    mask, number = model.draw(groups, rng=BatchRandom(0))
    view: Any = model.student.rebuild(groups, mask, number)
    view = replace(view, error=view.error.detach())
    values, known = model.student.patch_error(groups, view, view.error)
    finer = view.masks[1].shape[1]
    of_row = dict(zip(view.rows.tolist(), view.error.tolist()))
    for b in range(len(points)):
        for j, patch in enumerate(view.hidden[b].tolist()):
            rows = [b * finer + member for member in groups[-1].index[b, patch].tolist()]
            errors = [of_row[row] for row in rows if row in of_row]
            assert bool(known[b, j]) == bool(errors)
            if errors:
                assert values[b, j].item() == pytest.approx(sum(errors) / len(errors), rel=1e-4)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_average_follows_weights_and_statistics(backbone: str) -> None:
    model = build(backbone, ema_start=0.5, ema_end=0.5).train()
    model(cloud(4), rng=BatchRandom(0))["loss"].backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    before = {key: value.clone() for key, value in model.average.state_dict().items()}
    model.after_step()
    student = model._followed().state_dict()
    for key, value in model.average.state_dict().items():
        wanted = (0.5 * before[key] + 0.5 * student[key]).to(value.dtype)
        torch.testing.assert_close(value, wanted, msg=key)
    copied = build(backbone, ema_buffers=False)
    next(copied.student.buffers()).fill_(7.0)  # type: ignore[attr-defined]
    copied.after_step()
    assert (next(copied.average_student.buffers()) == 7.0).all()  # type: ignore[attr-defined]


def test_the_ramp_of_the_decay() -> None:
    assert [decay_at(epoch, 0.999, 0.9999, 100) for epoch in (0, 50, 100, 300)] == pytest.approx(
        [0.999, 0.99945, 0.9999, 0.9999]
    )
    assert decay_at(0, 0.1, 0.9, 0) == 0.9


@pytest.mark.parametrize("backbone", BACKBONES)
def test_checkpoints_go_downstream_and_back(backbone: str) -> None:
    model, points = build(backbone, **FEATURES).eval(), cloud()
    with torch.no_grad():
        for parameter in model.average.parameters():
            parameter.add_(1.0)  # must not be mistaken for the student
    alone = MODELS.build({"name": backbone, **SMALL[backbone]}).eval()
    report = load_weights(alone, model.state_dict(), "sa3d", alone.key_map)
    assert not report.missing and not report.unexpected
    torch.testing.assert_close(alone.encode(points), model.encode(points), rtol=0, atol=0)
    for name in (f"{backbone}Classifier", f"{backbone}Segmenter"):
        count = "num_classes" if name.endswith("Classifier") else "num_parts"
        downstream = MODELS.build({"name": name, **SMALL[name], count: 3})
        report = load_weights(downstream, model.state_dict(), "sa3d", downstream.key_map)
        assert not report.unexpected
        for key, value in downstream.state_dict().items():
            if key.startswith("encoder."):
                assert torch.equal(value, model.state_dict()[f"student.{key}"]), key
    other = build(backbone, **FEATURES)
    report = load_weights(other, alone.state_dict(), "backbone", other.key_map)
    other.after_loading(report.loaded)
    assert torch.equal(next(other.average.parameters()), next(other.student.parameters()))  # type: ignore[attr-defined]
    assert not other.load_teacher(alone.state_dict(), "backbone").missing
    with pytest.raises(UserError, match="needs all weights"):
        other.load_teacher({key: value for key, value in alone.state_dict().items() if "head" not in key}, "x")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_how_hard_patches_are(backbone: str) -> None:
    model, points = build(backbone).eval(), cloud(3)
    center, thought, real = model.rate(points, BatchRandom(0), rounds=12)
    assert center.shape[:2] == thought.shape == real.shape
    assert (real[~real.isnan()] > 0).all() and (~real.isnan()).any(dim=1).all()


def test_ranking_starts_at_ln_2_and_can_be_learnt() -> None:
    torch.manual_seed(0)
    target, valid = torch.rand(8, 20), torch.ones(8, 20, dtype=torch.bool)
    scores = torch.zeros(8, 20, requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=0.1)
    first, _ = ranking_loss(scores, target, valid)
    assert first.item() == pytest.approx(math.log(2))
    for _ in range(50):
        optimizer.zero_grad()
        loss, accuracy = ranking_loss(scores, target, valid)
        loss.backward()
        optimizer.step()
    assert loss < 0.3 and accuracy > 0.9


def test_ranking_by_hand() -> None:
    """Pairs of equals and of unknown patches do not count; nobody to compare is no loss."""
    scores, target = torch.tensor([[1.0, 0.0, 5.0, 2.0]]), torch.tensor([[3.0, 1.0, 1.0, 9.0]])
    valid = torch.tensor([[True, True, True, False]])
    loss, accuracy = ranking_loss(scores, target, valid)
    assert float(loss) == pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.exp(4))) / 2)
    assert float(accuracy) == 0.5
    for nobody in (torch.zeros_like(valid), valid):
        loss, accuracy = ranking_loss(scores, torch.ones(1, 4), nobody)
        assert float(loss) == float(accuracy) == 0.0
    assert ranking_loss(scores.bfloat16(), target, valid)[0].dtype == torch.float32
    extreme, _ = ranking_loss(torch.tensor([[500.0, -500.0]]), torch.tensor([[0.0, 1.0]]), torch.ones(1, 2).bool())
    assert float(extreme) == 1000.0


def test_regression_by_hand() -> None:
    target = torch.tensor([[1.0, 3.0, 100.0]])
    wanted = (torch.tensor([[1.0, 3.0]]) - 2) / math.sqrt(2 + 1e-6)
    loss = regression_loss(torch.zeros(1, 3), target, torch.tensor([[True, True, False]]))
    assert float(loss) == pytest.approx(float(wanted.square().mean()))


def test_feature_error_is_twice_one_less_the_cosine() -> None:
    a, b = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    cosine = nn.functional.cosine_similarity(a, b, dim=-1)
    torch.testing.assert_close(feature_error(a, b), 2 - 2 * cosine)
    torch.testing.assert_close(feature_error(a, 3 * a), torch.zeros(2, 3), rtol=0, atol=1e-5)


def test_integers_of_the_average_are_cut_off() -> None:
    mean, model = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    model.load_state_dict({**model.state_dict(), "num_batches_tracked": torch.tensor(1007)})
    follow(mean, model, 0.999)
    assert mean.state_dict()["num_batches_tracked"] == 1


@pytest.mark.parametrize(
    "options, words",
    [
        ({"distillation_weights": [1, 1]}, "model.teacher=auto"),
        ({"reconstruction": "teacher_decoded"}, "model.teacher=auto"),
        ({"reconstruction": "none"}, "neither is learned"),
        ({"reconstruction_grad": False}, "neither is learned"),
        ({"reconstruction_weights": [1]}, "reconstruction_weights"),
        ({"distillation_weights": [-1, 1]}, "distillation_weights"),
        ({"rank_weight": 0.0}, "mask.guide=false"),
        ({"ema_start": 1.0}, "ema_start"),
    ],
)
def test_mistakes_are_told(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(**options)


def test_not_every_network_is_a_backbone() -> None:
    with pytest.raises(UserError, match="use PointMAE or PointM2AE"):
        SA3D(nn.Linear(3, 3))  # type: ignore[arg-type]
