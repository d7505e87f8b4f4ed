"""SA3D (GeoMask3D) against what the released code computed, and against the reference for Point-M2AE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from extensions import ops
from models.layers.hierarchy import member_mean
from models.masking import GuidedMask, guided_mask
from models.point_mae import PointMAE
from models.sa3d import SA3D
from models.sa3d.losses import feature_error, ranking_loss, regression_loss
from tests.golden.fixtures import Fixture
from utils.checkpoint import load_weights

UPSTREAM_EPS = 1e-6


def build(fixture: Fixture, prefix: str, **options: Any) -> SA3D:
    """The released student with its weights, and an average that equals it."""
    args = fixture.args
    backbone = PointMAE(
        embed_dim=args["trans_dim"],
        depth=args["depth"],
        num_heads=args["num_heads"],
        drop_path_rate=args["drop_path_rate"],
        decoder_depth=args["decoder_depth"],
        decoder_num_heads=args["decoder_num_heads"],
        num_group=args["num_group"],
        group_size=args["group_size"],
    )
    model = SA3D(
        backbone,
        mask=GuidedMask(args["mask_ratio"], rounding="floor_keep"),
        predictor_depth=args["loss_predictor_depth"],
        predictor_drop_path_rate=args["drop_path_rate"],
        rank_eps=UPSTREAM_EPS,
        average_precision="run",
        **options,
    )
    report = load_weights(model, fixture.below_dict(prefix), fixture.name, model.key_map)
    assert sorted(report.unused) == ["norm_p.bias", "norm_p.weight"] and not report.unexpected, report.summary()
    assert all(name.startswith(("average.", "teacher.")) for name in report.missing), report.summary()
    model.after_loading(report.loaded)
    return model.eval()


def check_student(fixture: Fixture, model: SA3D, points: Tensor) -> None:
    """Decoded tokens and difficulty of all patches, visible ones first."""
    mask = fixture["in/mask"]
    groups = model.student.group(points)
    view = model.student.rebuild(groups, mask, int(mask[0].sum()))
    student = model.student
    assert isinstance(student, PointMAE)
    order = torch.cat([view.visible, view.hidden], dim=1)
    position = student.decoder_position(ops.gather_points(groups[1], order))
    batch, number = view.hidden.shape
    tokens, scores = {}, {}
    for name, token in (("own", model.predictor.mask_token), ("shared", student.mask_token)):
        tokens[name] = torch.cat([view.encoded, token.expand(batch, number, -1)], dim=1)
        scores[name] = model.predictor(tokens[name], position)
        model.share_mask_token = name == "shared"
        torch.testing.assert_close(model.predict(groups, view), scores[name][:, -number:])
    model.share_mask_token = False
    decoded = student.decoder(tokens["shared"], position)
    torch.testing.assert_close(view.decoded, decoded[:, -number:])
    fixture.check(scores["own"], "out/student/loss_pred")
    if "out/student/loss_pred_shared_tokens" in fixture:
        fixture.check(scores["shared"], "out/student/loss_pred_shared_tokens")
        fixture.check(view.encoded, "out/student/features")
        fixture.check(torch.tensor([number]), "out/student/mask_num")
    points_of_student = fixture["out/student/pix_pred"].shape[-1] != model.num_features
    fixture.check(student.head(decoded) if points_of_student else decoded, "out/student/pix_pred")


def gm3d_feature_step(fixture: Fixture) -> None:
    before, after = fixture.about["args"]["weights_before_epoch15"], fixture.about["args"]["weights_after"]
    options: dict[str, Any] = {
        "teacher": "in the fixture",
        "reconstruction": "teacher_decoded",
        "reconstruction_grad": False,
        "reconstruction_weights": (before[1], after[1]),
        "distillation_weights": (before[0], after[0]),
    }
    points, args = fixture["in/points"], fixture.args

    def fresh() -> SA3D:
        model = build(fixture, "param/student/", **options)
        model.load_teacher(fixture.below_dict("param/teacher/"), fixture.name)
        return model

    model = fresh()
    groups = model.student.group(points)
    fixture.check(model.difficulty(groups), "out/ema/loss_pred")
    fixture.check(model.average_student.tokens(groups), "out/ema/features")
    fixture.check(model.forward_features(points), "out/svm_tokens")
    fixture.check(model.encode(points), "out/svm_feature_mean_plus_max")
    average = model.average_student
    assert isinstance(average, PointMAE)
    complete = average.decoder(average.tokens(groups), average.decoder_position(groups[1]))
    fixture.check(complete, "out/ema/pix_pred")
    check_student(fixture, model, points)
    check_feature_losses(fixture, model, points)
    for epoch in sorted(
        {int(key.split("/")[0].removeprefix("step_epoch")) for key in fixture.below("in/") if "/" in key}
    ):
        check_step(fixture, fresh().train(), epoch, args["total_epoch"])


def check_feature_losses(fixture: Fixture, model: SA3D, points: Tensor) -> None:
    mask = fixture["in/mask"]
    groups = model.student.group(points)
    view = model.student.rebuild(groups, mask, int(mask[0].sum()))
    teacher = model.teacher
    assert isinstance(teacher, PointMAE)
    complete = teacher.tokens(groups)
    fixture.check(complete, "out/teacher/feature_target")
    fixture.check(teacher._points_of(complete, groups[1]).flatten(2), "out/teacher/point_target")
    hidden_center = ops.gather_points(groups[1], view.hidden)
    fixture.check(teacher._points_of(view.decoded, hidden_center).flatten(2), "out/teacher/point_reconstructed")
    errors, target, valid = model._errors(groups, view)
    fixture.check(errors["distillation"], "out/loss/mse_mean")
    fixture.check(errors["reconstruction"], "out/loss/chamfer_mean")
    fixture.check(target, "out/loss/matrix")
    fixture.check(model._rank(model.predict(groups, view), target, valid)[0], "out/loss/learn")


def check_step(fixture: Fixture, model: SA3D, epoch: int, epochs: int) -> None:
    """A whole training step with gradients: student in train mode, teachers not."""
    model.set_progress(epoch, epochs)
    out = model(fixture["in/points"], fixture[f"in/step_epoch{epoch}/mask"].bool())
    prefix, figures = f"out/step_epoch{epoch}", out["figures"]
    fixture.check(out["loss"], f"{prefix}/total_loss")
    fixture.check(figures["weighted/rank"], f"{prefix}/loss_learn")
    fixture.check(figures["weighted/distillation"], f"{prefix}/weighted_mse")
    fixture.check(figures["weighted/reconstruction"], f"{prefix}/weighted_chamfer")
    fixture.check(torch.tensor(model.decay, dtype=torch.float64), f"{prefix}/ema_decay")
    out["loss"].backward()
    fixture.check_gradients(model, f"{prefix}/grad/", model.key_map)
    without = [str(model.key_map(key)) for key in fixture.about["params_with_no_gradient"] if "norm_p" not in key]
    assert all(dict(model.named_parameters())[key].grad is None for key in without)


def gm3d_points_step(fixture: Fixture) -> None:
    model = build(fixture, "param/", reconstruction_weights=(1.0, fixture.args["weights_after"][1]))
    points, mask = fixture["in/points"], fixture["in/mask"]
    groups = model.student.group(points)
    fixture.check(model.difficulty(groups), "out/ema/loss_pred")
    check_student(fixture, model, points)
    errors, target, _ = model._errors(groups, model.student.rebuild(groups, mask, int(mask[0].sum())))
    fixture.check(errors["reconstruction"], "out/loss/chamfer_mean")
    fixture.check(target, "out/loss/matrix")
    model.set_progress(model.switch_epoch, 10**6)
    out = model(points, mask)
    fixture.check(out["figures"]["rank"], "out/loss/learn")
    fixture.check(out["loss"], "out/total_late")
    out["loss"].backward()
    fixture.check_gradients(model, "out/grad/", model.key_map)


def gm3d_generate_mask(fixture: Fixture) -> None:
    for case in fixture.about["args"]:
        place = case["case"]
        difficulty = fixture[f"in/{place}/loss_pred"]
        sampler = GuidedMask(
            case["mask_ratio"],
            rounding="floor_keep",
            beta_end=case["beta_max"],
            ramp=0.5 if case["after_half_schedule"] else 1.0,
        )
        sampler.set_progress(case["epoch"], case["total_epoch"])
        num_group = difficulty.shape[1]
        counts = sampler.num_masked(num_group), sampler.num_guided(num_group)
        assert counts == (case["n_masked"], case["n_guided"]) and num_group - counts[0] == case["len_keep"]
        assert abs(sampler.beta - case["beta"]) < 1e-12
        if f"in/{place}/noise" in fixture:
            key = fixture[f"in/{place}/noise"]
        else:  # the first of the recorded order stay visible
            order = fixture[f"in/{place}/rest_order"]
            key = torch.zeros(difficulty.shape).scatter(1, order, torch.arange(order.shape[1]).float().expand_as(order))
        fixture.check(guided_mask(difficulty, *counts, key).float(), f"out/{place}/mask")


def check_ranking(fixture: Fixture, predicted: Tensor, target: Tensor, names: Sequence[tuple[str, str]]) -> None:
    """Relative and absolute form: names of value and gradient of each."""
    valid = torch.ones_like(target, dtype=torch.bool)
    losses: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda scores: ranking_loss(scores, target, valid, UPSTREAM_EPS)[0],
        lambda scores: regression_loss(scores, target, valid),
    )
    for loss, (name, gradient) in zip(losses, names):
        scores = predicted.clone().requires_grad_()
        value = loss(scores)
        fixture.check(value, f"out/{name}")
        fixture.check(torch.autograd.grad(value, scores)[0], f"out/{gradient}")


def gm3d_learning_loss(fixture: Fixture) -> None:
    predicted, target = fixture["in/loss_pred"], fixture["in/loss_target"]
    check_ranking(fixture, predicted, target, [(name, f"{name}_grad") for name in ("relative", "regression")])


def gm3d_distill_loss(fixture: Fixture) -> None:
    predicted, mask = fixture["in/pred"].requires_grad_(), fixture["in/mask"]
    wanted = fixture["in/feature_target"][mask].view_as(predicted)
    distance = feature_error(predicted, wanted)
    rebuilt = fixture["in/point_reconstructed"].requires_grad_()
    chamfer = patch_chamfer(rebuilt, fixture["in/point_target"][mask].view_as(rebuilt))
    fixture.check(distance.mean(), "out/mse_mean")
    fixture.check(chamfer.mean(), "out/chamfer_mean")
    fixture.check(distance + chamfer, "out/matrix")
    fixture.check(torch.autograd.grad(distance.mean(), predicted)[0], "out/mse_grad_pred")
    fixture.check(torch.autograd.grad(chamfer.mean(), rebuilt)[0], "out/chamfer_grad_point_reconstructed")
    usual = fixture["in/usual_pred"]
    error = patch_chamfer(usual, fixture["in/usual_neighborhood"].flatten(2)[mask].view_as(usual))
    fixture.check(error.mean(), "out/usual_chamfer_mean")
    fixture.check(error, "out/usual_matrix")


def patch_chamfer(x: Tensor, y: Tensor) -> Tensor:
    """(B, M, 3 K) twice -> (B, M)."""
    clouds = (each.reshape(-1, each.shape[-1] // 3, 3) for each in (x, y))
    return ops.chamfer_distance(*clouds, reduction="patch").view(x.shape[:2])


def sa3d_m2ae(fixture: Fixture) -> None:
    error = ops.chamfer_distance(fixture["in/rec_points"], fixture["in/gt_points"], reduction="patch")
    fixture.check(error.double(), "out/chamfer_per_masked_mid_token")
    hidden, coarse = fixture["in/masked_s1"], fixture["in/masked_s2"]
    values = torch.zeros(hidden.shape).masked_scatter(hidden, error)
    difficulty, known = member_mean(values, hidden, fixture["in/idx_s2"].long())
    fixture.check(known & coarse, "out/difficulty_valid")
    fixture.check((difficulty * (known & coarse)).double(), "out/difficulty")
    predicted, target = fixture["in/rank_pred"], fixture["in/rank_target"]
    names = [(f"rank_loss_{name}", f"rank_grad_{name}") for name in ("relative", "absolute")]
    check_ranking(fixture, predicted, target, names)
    loss, _ = ranking_loss(predicted, target, fixture["in/rank_valid"], UPSTREAM_EPS)
    fixture.check(loss.double(), "out/rank_loss_relative_valid")
    scores, key = fixture["in/mask_pred"], -fixture["in/mask_uniform"]
    for name in fixture.below("out/mask_alpha"):
        sampler = GuidedMask(0.8, beta_start=float(name), beta_end=float(name))
        counts = sampler.num_masked(scores.shape[1]), sampler.num_guided(scores.shape[1])
        fixture.check(guided_mask(scores, *counts, key), f"out/mask_alpha{name}")


ADAPTERS = {
    "gm3d_feature_step": gm3d_feature_step,
    "gm3d_points_step": gm3d_points_step,
    "gm3d_generate_mask": gm3d_generate_mask,
    "gm3d_learning_loss": gm3d_learning_loss,
    "gm3d_distill_loss": gm3d_distill_loss,
    "sa3d_m2ae": sa3d_m2ae,
}
