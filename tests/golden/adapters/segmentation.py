"""Segmentation networks, figures and augmentation against what the official code computed."""

import torch
import torch.nn.functional as F

from datasets import transforms
from models.point_mae_seg import PointMAESegmenter
from tests.golden.adapters.mae import load
from tests.golden.adapters.mae_data import apply
from tests.golden.fixtures import Fixture
from tools.tasks.segment import PartSegmentation
from utils.metrics import Confusion, PartScores
from utils.random import BatchRandom


def partseg(fixture: Fixture) -> None:
    args = fixture.args
    hidden, local_dim = args["prop_mlp"]
    model = PointMAESegmenter(
        num_parts=args["cls_dim"],
        num_categories=args["n_categories"],
        embed_dim=args["trans_dim"],
        depth=args["depth"],
        num_heads=args["num_heads"],
        num_group=args["num_group"],
        group_size=args["group_size"],
        layers=args["fetch_idx"],
        local_dim=local_dim,
        head_dim=args["head"][0],
    ).eval()
    assert hidden == 4 * args["trans_dim"] and args["head"][1] == args["head"][0] // 2
    load(model, fixture, model.key_map)
    points, category = fixture["in/points"].mT, fixture["in/cls_onehot"].argmax(-1)
    seen: dict[str, torch.Tensor] = {}
    for layer in args["fetch_idx"]:
        model.encoder.transformer.blocks[layer].register_forward_hook(
            lambda m, i, out, n=str(layer): seen.update({n: out})
        )
    model.head.propagation.register_forward_hook(lambda m, i, out: seen.update(local=out))
    model.head.label.register_forward_hook(lambda m, i, out: seen.update(label=out))
    fixture.check(F.log_softmax(model(points, category), dim=-1), "out/log_probs")
    features = torch.stack([seen[str(layer)] for layer in args["fetch_idx"]])
    fixture.check(features, f"out/features_{'_'.join(map(str, args['fetch_idx']))}_before_norm")
    fixture.check(seen["local"].sum(dim=1), "out/propagation_sum_over_points")
    fixture.check(seen["label"], "out/label_feature")
    batch = {"points": points, "label": category, "seg": fixture["in/target"]}
    fixture.check(PartSegmentation().losses(model, batch, BatchRandom(0))["loss"], "out/nll_loss")
    # in float32 the rounding of gradients, upstream's and ours, is as large as the tolerance: compare the exact ones
    model.double()
    F.cross_entropy(model(points.double(), category).flatten(0, 1), batch["seg"].flatten()).backward()
    fixture.check_gradients(model, "out/grad/", model.key_map)


def partseg_metrics(fixture: Fixture) -> None:
    parts = fixture.args["parts"] if "args" in fixture.about else fixture.about["seg_classes"]
    allowed = torch.zeros(len(parts), fixture["in/logits"].shape[-1], dtype=torch.bool)
    for row, ids in zip(allowed, parts.values()):
        row[ids] = True
    scores = PartScores(allowed)
    for logits, truth, category in zip(*(fixture[f"in/{key}"].split(7) for key in ("logits", "target", "category"))):
        scores.add(scores.predict(logits, category), truth.long(), category)
    ours = scores.reduce().figures()
    fixture.check(ours["acc"] / 100, "out/accuracy")
    fixture.check(ours["class_iou"] / 100, "out/class_avg_iou")
    fixture.check(ours["instance_iou"] / 100, "out/instance_avg_iou")
    if fixture.folder == "mae":
        fixture.check(ours["macc"] / 100, "out/class_avg_accuracy")
        fixture.check(scores.category_iou() / 100, "out/per_category_iou_in_category_order")
        return
    fixture.check(scores.category_iou() / 100, "out/category_iou")
    fixture.check(ours["macc"] / 100, "out/class_avg_accuracy_over_present_parts")
    fixture.check(scores.points.matrix.sum(1), "out/seen_per_part")
    fixture.check(scores.points.matrix.diag(), "out/correct_per_part")
    if not fixture["out/class_avg_accuracy"].isnan():  # upstream divides by zero where a part never occurs
        fixture.check(ours["macc"] / 100, "out/class_avg_accuracy")


def seg_augment(fixture: Fixture) -> None:
    (low, high), distance = fixture.args["scale"], fixture.args["shift"]
    points, scale, shift = (fixture[f"in/{key}"] for key in ("points", "scale", "shift"))
    scaled = apply(transforms.Scale(low, high, isotropic=True), points, scale)
    fixture.check(scaled, "out/scaled")
    both = apply(transforms.ScaleTranslate(low, high, distance, isotropic=True), points, scale, shift)
    recorded = fixture["out/shifted"]
    fixture.check(
        both if both.allclose(recorded) else apply(transforms.Translate(distance), points, shift), "out/shifted"
    )


def semseg_metrics(fixture: Fixture) -> None:
    confusion, ignored = Confusion(fixture.about["num_class"]), fixture.about["ignore_index"]
    for prediction, truth in zip(fixture["in/pred"].split(900), fixture["in/target"].split(900)):
        confusion.add(prediction, truth.where(truth != ignored, -1))
    both = confusion.matrix.diag()
    fixture.check(both, "out/intersection")
    fixture.check(confusion.matrix.sum(0) + confusion.matrix.sum(1) - both, "out/union")
    fixture.check(confusion.matrix.sum(1), "out/target_count")
    fixture.check(confusion.class_iou() / 100, "out/iou")
    fixture.check(confusion.class_accuracy() / 100, "out/acc")
    fixture.check(confusion.mean_iou() / 100, "out/mIoU")
    fixture.check(confusion.mean_class_accuracy() / 100, "out/mAcc")
    fixture.check(confusion.accuracy() / 100, "out/OA")
    fixture.read.add("out/wrong_mean_of_batch_mIoU")  # what a mean over batches would give: not computed here


def cls_metrics(fixture: Fixture) -> None:
    confusion = Confusion(fixture.about["num_class"])
    for logits, truth in zip(fixture["in/logits"].split(16), fixture["in/target"].split(16)):
        confusion.add(logits.argmax(-1), truth)
    fixture.check(confusion.accuracy() / 100, "out/exact_overall_acc")
    fixture.check(confusion.mean_class_accuracy() / 100, "out/exact_mean_class_acc")
    fixture.read |= {"out/upstream_instance_acc", "out/upstream_class_acc"}  # means over unequal batches: not repeated


MAE = {"partseg": partseg, "partseg_metrics": partseg_metrics, "seg_augment": seg_augment}
HAQ = {"partseg_metrics": partseg_metrics, "semseg_metrics": semseg_metrics, "cls_metrics": cls_metrics}
