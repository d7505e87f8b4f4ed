"""SA3D, published as GeoMask3D (arXiv 2405.12419): a masked auto-encoder whose mask goes where it is hard.

The student rebuilds hidden patches, and beside it a predictor learns which of them are rebuilt badly. A teacher, the
moving average of both, looks at the complete cloud and says how hard each patch is; the hardest are hidden. A second,
frozen teacher can tell the features of hidden patches as seen in the complete cloud, which the student learns too.
Any backbone with the interface of models.masked serves.
B clouds, N points, G patches, V visible, M hidden, C channels.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from extensions import ops
from models.layers.transformer import Init
from models.masked import ONLY_OF_SA3D, Backbone, Groups, View
from models.masking import GuidedMask, MaskSampler, RandomMask, draw_mask
from models.sa3d.average import decay_at, follow
from models.sa3d.losses import feature_error, ranking_loss, regression_loss
from models.sa3d.predictor import DifficultyPredictor
from utils.checkpoint import LoadReport, load_weights
from utils.cpu import has_bfloat16
from utils.errors import UserError
from utils.random import BatchRandom
from utils.schema import Whole

NO_TEACHER = (
    "teacher: learning features needs a frozen teacher; name a checkpoint of the backbone pre-trained alone "
    "(model.teacher=experiments/.../ckpt-last.pth; `python main_pretrain.py --config cfgs/pretrain/point_mae.yaml` "
    "makes one), or model.teacher=auto, which pre-trains it first"
)


class SA3D(nn.Module):
    """Student and predictor, the teacher that is their average, a frozen teacher of features where asked for.

    mask: what is hidden; that of the backbone is not used. teacher: where the frozen teacher's weights come from, a
    checkpoint of the backbone or "auto"; the program loads them (`load_teacher`).
    predictor_*: depth, heads (those of the backbone), drop path rate of the predictor's decoder, width of its head;
    share_mask_token: it has none of its own; detach_encoder: what it learns does not reach the encoder.
    predict_from: what it learns from. "hidden", as published: from the patches that the student sees, it tells the
    others. "complete": from the average's tokens of the complete cloud, as it is asked when a mask is drawn.
    rank: what it learns, "relative" the order of errors, "regression" the errors; rank_eps 1e-6 is upstream's form.
    reconstruction: the error of "points" against the true ones, or "teacher_decoded", as the released code compares:
    what the frozen teacher decodes from the student's tokens against what it decodes from its own; or "none".
    reconstruction_grad false, as released: this error is no loss and only tells the difficulty.
    *_weights: before and from epoch `switch_epoch`. difficulty_*: how much each error counts as difficulty.
    ema_*: the average's decay from start to end over the first epochs; buffers averaged or copied.
    average_precision: in which it looks at complete clouds, its weights stay float32: that of the run, bfloat16, or
    "auto": bfloat16 where the device has units for it, else that of the run.
    """

    # what is frozen in here is filled by the average's steps, comes from the teacher's file, or is read by nobody
    frozen_on_purpose = ("average.", "teacher.", "student.", "predictor.")

    def __init__(
        self,
        backbone: Backbone,
        mask: MaskSampler | None = None,  # default GuidedMask(0.6)
        teacher: str | None = None,
        predictor_depth: int = 4,
        predictor_num_heads: int | None = None,
        predictor_hidden: int = 1024,
        predictor_drop_path_rate: float = 0.1,
        share_mask_token: bool = False,
        detach_encoder: bool = False,
        predict_from: Literal["hidden", "complete"] = "hidden",
        rank: Literal["relative", "regression"] = "relative",
        rank_eps: float = 0.0,
        rank_weight: float = 1.0,
        reconstruction: Literal["points", "teacher_decoded", "none"] = "points",
        reconstruction_grad: bool = True,
        reconstruction_weights: Sequence[float] = (1.0, 1000.0),
        distillation_weights: Sequence[float] = (0.0, 0.0),
        switch_epoch: Whole = 15,
        difficulty_reconstruction: float = 1.0,
        difficulty_distillation: float = 1.0,
        ema_start: float = 0.999,
        ema_end: float = 0.9999,
        ema_ramp_epochs: Whole = 100,
        ema_buffers: bool = True,
        average_precision: Literal["auto", "bf16", "run"] = "auto",
        init: Init = "trunc_normal",
    ):
        super().__init__()
        if not hasattr(backbone, "rebuild"):
            raise UserError(
                f"backbone: '{type(backbone).__name__}' does not rebuild hidden patches; use PointMAE or PointM2AE"
            )
        check_weights(reconstruction_weights=reconstruction_weights, distillation_weights=distillation_weights)
        check_average(ema_start, ema_end, ema_ramp_epochs)
        self.student, self.num_features = backbone, backbone.num_features
        self.mask = GuidedMask() if mask is None else mask
        self.predictor = DifficultyPredictor(
            backbone.num_features,
            predictor_depth,
            predictor_num_heads or backbone.num_heads,
            predictor_hidden,
            predictor_drop_path_rate,
            init,
        )
        self.share_mask_token, self.detach_encoder = share_mask_token, detach_encoder
        self.predict_from = predict_from
        self.rank, self.rank_eps, self.rank_weight = rank, rank_eps, rank_weight
        self.reconstruction, self.reconstruction_grad = reconstruction, reconstruction_grad
        self.reconstruction_weights = tuple(reconstruction_weights)
        self.distillation_weights, self.switch_epoch = tuple(distillation_weights), switch_epoch
        self.difficulty_reconstruction = difficulty_reconstruction
        self.difficulty_distillation = difficulty_distillation
        self.ema_start, self.ema_end, self.ema_ramp_epochs = ema_start, ema_end, ema_ramp_epochs
        self.ema_buffers, self.average_precision = ema_buffers, average_precision
        self.distils = any(self.distillation_weights)
        rebuilds = reconstruction != "none" and reconstruction_grad and any(self.reconstruction_weights)
        if not rebuilds and not self.distils:
            raise UserError("reconstruction_weights, distillation_weights: neither is learned; give one a weight")
        if not rank_weight and getattr(self.mask, "guide", False):
            raise UserError("rank_weight: 0, so nobody learns what is hard; use mask.guide=false, or a weight")
        self.teacher_source = teacher
        if teacher is None and (self.distils or reconstruction == "teacher_decoded"):
            raise UserError(NO_TEACHER)
        self._leave_out_what_learns_nothing(points=rebuilds and reconstruction == "points")
        self.teacher = cast(Backbone, frozen(cast(nn.Module, backbone))) if teacher is not None else None
        self.average = cast(nn.ModuleDict, frozen(self._followed()))
        self.set_progress(0, 1)

    def _followed(self) -> nn.ModuleDict:
        """What the average follows."""
        return nn.ModuleDict({"student": cast(nn.Module, self.student), "predictor": self.predictor})

    def _leave_out_what_learns_nothing(self, points: bool) -> None:
        """Parameters that no loss reaches take no gradient, as several processes wait for every gradient."""
        if not points:
            for part in self.student.rebuilding():
                part.requires_grad_(False)
        if not self.rank_weight:
            self.predictor.requires_grad_(False)
        if self.share_mask_token or self.predict_from == "complete":
            self.predictor.mask_token.requires_grad_(False)

    def train(self, mode: bool = True) -> SA3D:
        """Teachers never train."""
        super().train(mode)
        for teacher in (self.average, self.teacher):
            if isinstance(teacher, nn.Module):
                teacher.eval()
        return self

    # ---------------------------------------------------------------- a step

    def forward(self, points: Tensor, mask: Tensor | None = None, rng: BatchRandom | None = None) -> dict:
        """(B, N, 3) -> loss, its parts and other figures (`figures`), and what is needed to draw a reconstruction.
        `mask` (B, G), True = hidden, replaces the sampler; `rng` makes the sampler's draws repeatable."""
        groups = self.student.group(points)
        whole = self.whole_tokens(groups) if self.predict_from == "complete" and self.rank_weight else None
        mask, num_masked = self.draw(groups, mask, rng, whole)
        view = self.student.rebuild(groups, mask, num_masked)
        errors, target, valid = self._errors(groups, view)
        weights = {**self.weights, "rank": self.rank_weight}
        figures = dict(errors)
        if self.rank_weight:
            predicted = self.predict(groups, view, whole)
            errors["rank"], figures["rank_acc"] = self._rank(predicted, target, valid)
            if not self.training:  # and how well the average answers what it is asked when a mask is drawn
                asked = self.difficulty(groups, whole).gather(1, view.hidden)
                figures["teacher_rank_acc"] = ranking_loss(asked, target, valid)[1]
        loss = torch.stack([weights[name] * error for name, error in errors.items()]).sum()
        shown = {"mask/guided": self.mask.num_guided(mask.shape[1]) / num_masked, "ema/decay": self.decay}
        figures |= {**errors, **{f"weighted/{name}": weights[name] * error for name, error in errors.items()}}
        figures |= {name: torch.full((), value, device=loss.device) for name, value in shown.items()}
        out = {"prediction": view.prediction, "target": view.target, "hidden": view.hidden}
        return {"loss": loss, "figures": {name: value.detach() for name, value in figures.items()}, **out}

    def draw(
        self,
        groups: Groups,
        mask: Tensor | None = None,
        rng: BatchRandom | None = None,
        whole: Tensor | None = None,
    ) -> tuple[Tensor, int]:
        """The given mask, else one that aims: mask (B, G), True = hidden, and M. `whole`: `whole_tokens`, if known."""
        center = self.student.centers(groups)
        aims = mask is None and self.mask.num_guided(center.shape[1]) > 0
        return draw_mask(self.mask, center, mask, rng, self.difficulty(groups, whole) if aims else None)

    @torch.no_grad()
    def whole_tokens(self, groups: Groups) -> Tensor:
        """What the average makes of complete clouds -> (B, G, C)."""
        with self._looking():
            return self.average_student.tokens(groups)

    @torch.no_grad()
    def difficulty(self, groups: Groups, whole: Tensor | None = None) -> Tensor:
        """How hard the average thinks each patch is, complete clouds before its eyes -> (B, G)."""
        whole = self.whole_tokens(groups) if whole is None else whole
        with self._looking():
            return self.average["predictor"](whole, self._average_position(groups))

    def _looking(self) -> contextlib.AbstractContextManager:
        """The precision in which the average looks at complete clouds."""
        device = next(self.parameters()).device
        return torch.autocast(device.type, torch.bfloat16) if self._in_bfloat16(device) else contextlib.nullcontext()

    def _in_bfloat16(self, device: torch.device) -> bool:
        return self.average_precision == "bf16" or (self.average_precision == "auto" and has_bfloat16(device))

    def notes(self, device: torch.device) -> list[str]:
        """What the log should say of a run on a device."""
        return ["the average looks at complete clouds in bfloat16"] if self._in_bfloat16(device) else []

    @torch.no_grad()
    def _average_position(self, groups: Groups) -> Tensor:
        """What the average's decoder adds to the tokens of all patches (B, G, C)."""
        return self.average_student.decoder_position(self.student.centers(groups))

    @property
    def average_student(self) -> Backbone:
        return cast(Backbone, self.average["student"])

    def predict(self, groups: Groups, view: View, whole: Tensor | None = None) -> Tensor:
        """How hard the predictor thinks each hidden patch is -> (B, M): from the `whole_tokens`, or, without them, from
        what the student sees."""
        if whole is not None:
            return self.predictor(whole, self._average_position(groups)).gather(1, view.hidden)
        batch, num_masked = view.hidden.shape
        seen = view.encoded.detach() if self.detach_encoder else view.encoded
        token = self.student.mask_token if self.share_mask_token else self.predictor.mask_token
        missing = token.to(seen.dtype).expand(batch, num_masked, -1)
        order = torch.cat([view.visible, view.hidden], dim=1)
        position = self.student.decoder_position(ops.gather_points(self.student.centers(groups), order))
        return self.predictor(torch.cat([seen, missing], dim=1), position)[:, -num_masked:]

    def _errors(self, groups: Groups, view: View) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Errors to lessen; per hidden patch (B, M) what the predictor should find, and where it is known."""
        errors: dict[str, Tensor] = {}
        target = torch.zeros(view.hidden.shape, device=view.hidden.device)
        valid = torch.ones_like(view.hidden, dtype=torch.bool)
        complete = self._complete_tokens(groups)
        if self.reconstruction != "none":
            error = self._rebuilding_error(groups, view, complete)  # (R,)
            errors["reconstruction"] = error.mean()
            of_patch, valid = self.student.patch_error(groups, view, error.detach())
            target = target + self.difficulty_reconstruction * of_patch
        if self.distils and complete is not None:
            distance = feature_error(view.decoded, ops.gather_points(complete, view.hidden))  # (B, M)
            errors["distillation"] = distance.mean()
            target = target + self.difficulty_distillation * distance.detach()
        return errors, target, valid

    @torch.no_grad()
    def _complete_tokens(self, groups: Groups) -> Tensor | None:
        """What the frozen teacher makes of the complete clouds (B, G, C)."""
        return None if self.teacher is None else self.teacher.tokens(groups)

    def _rebuilding_error(self, groups: Groups, view: View, complete: Tensor | None) -> Tensor:
        """Chamfer distance of every rebuilt patch (R,)."""
        if self.reconstruction == "points":
            return view.error if self.reconstruction_grad else view.error.detach()
        assert self.teacher is not None and complete is not None
        with contextlib.nullcontext() if self.reconstruction_grad else torch.no_grad():
            return self.teacher.redecoded_error(groups, view, complete)

    def _rank(self, predicted: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        loss, accuracy = ranking_loss(predicted, target, valid, self.rank_eps)
        return (regression_loss(predicted, target, valid) if self.rank == "regression" else loss), accuracy

    # ---------------------------------------------------------------- over the epochs

    def set_progress(self, epoch: int, epochs: int) -> None:
        """Epochs that are over, and in all: what follows from them is no state of its own."""
        late = int(epoch >= self.switch_epoch)
        self.weights = {"reconstruction": self.reconstruction_weights[late]}
        self.weights |= {"distillation": self.distillation_weights[late]}
        self.decay = decay_at(epoch, self.ema_start, self.ema_end, self.ema_ramp_epochs)
        self.mask.set_progress(epoch, epochs)

    def after_step(self) -> None:
        """The average follows the student."""
        follow(self.average, self._followed(), self.decay, self.ema_buffers)

    # ---------------------------------------------------------------- weights from elsewhere

    def load_teacher(self, weights: Mapping[str, Tensor], source: str) -> LoadReport:
        """Weights of a backbone, ours or official, of which every one is needed."""
        teacher = cast(nn.Module, self.teacher)
        report = load_weights(teacher, weights, source, teacher.key_map)  # type: ignore[arg-type]
        if report.missing:
            raise UserError(f"{report.summary()}: a teacher needs all weights of the backbone")
        return report

    def after_loading(self, loaded: Collection[str]) -> None:
        """From a checkpoint without an average it starts as the student."""
        if not any(name.startswith("average.") for name in loaded):
            self.average.load_state_dict(self._followed().state_dict())

    def key_map(self, key: str) -> str | None:
        """Our own keys; those of the backbone alone, ours and official; those of the GM3D code."""
        if key.startswith((*ONLY_OF_SA3D, "student.")):
            return key
        renamed = self.student.rename(key)
        return renamed if renamed.startswith(ONLY_OF_SA3D) else f"student.{renamed}"

    # ---------------------------------------------------------------- what a backbone does

    def forward_features(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> the student's tokens of all patches (B, G, C)."""
        return self.student.tokens(self.student.group(points))

    def encode(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> one vector a cloud (B, C), of the student."""
        return self.student.encode(points)

    def also_probed(self) -> dict[str, nn.Module]:
        """Other encoders whose features are of interest."""
        return {"teacher": self.average["student"]}

    def reconstruct(
        self, points: Tensor, mask: Tensor | None = None, rng: BatchRandom | None = None
    ) -> tuple[Tensor, Tensor]:
        """Points of the patches that the student saw, and of those it rebuilt."""
        mask, _ = self.draw(self.student.group(points), mask, rng)
        return self.student.reconstruct(points, mask)

    @torch.no_grad()
    def rate(self, points: Tensor, rng: BatchRandom, rounds: int = 8) -> tuple[Tensor, Tensor, Tensor]:
        """Centres (B, G, 3), how hard the average predicts each patch to be, and how hard it is: its mean error where
        it is hidden in `rounds` random masks, NaN where it never is."""
        groups = self.student.group(points)
        center = self.student.centers(groups)
        total, number = torch.zeros_like(center[..., 0]), torch.zeros_like(center[..., 0])
        sampler = RandomMask(self.mask.ratio)
        for _ in range(rounds):
            view = self.student.rebuild(groups, *draw_mask(sampler, center, None, rng))
            _, target, valid = self._errors(groups, view)
            total.scatter_add_(1, view.hidden, target.float() * valid)
            number.scatter_add_(1, view.hidden, valid.float())
        return center, self.difficulty(groups), total / number


def frozen(module: nn.Module) -> nn.Module:
    """A copy that never trains."""
    return copy.deepcopy(module).requires_grad_(False).eval()


def check_weights(**weights: Sequence[float]) -> None:
    for name, values in weights.items():
        if len(values) != 2 or min(values) < 0:
            raise UserError(f"{name}: {list(values)}; use two numbers of at least 0, before and from switch_epoch")


def check_average(start: float, end: float, ramp_epochs: int) -> None:
    if not (0 <= start < 1 and 0 <= end < 1 and ramp_epochs >= 0):
        raise UserError(
            f"ema_start {start}, ema_end {end}: use shares from 0 to below 1; ema_ramp_epochs {ramp_epochs}: 0 or more"
        )
