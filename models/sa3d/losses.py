"""Which patch is harder: losses of the predictor, and the error of features. All in float32.

B clouds, M hidden patches, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def ranking_loss(predicted: Tensor, target: Tensor, valid: Tensor, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """Of two patches of a cloud the one with the larger target should be predicted to be harder.

    predicted, target, valid (B, M) -> mean over all ordered pairs of the batch with different targets of
    -log sigmoid(how much more the harder one is predicted), 0 where there is none; and the share of pairs in order.
    eps: upstream's form, -log(sigmoid(...) + eps).
    """
    predicted, target = predicted.float(), target.float()
    sign = (target[:, :, None] - target[:, None]).sign()  # (B, M, M)
    pairs = (sign != 0) & valid[:, :, None] & valid[:, None]
    margin = (predicted[:, :, None] - predicted[:, None]) * sign
    each = -(margin.sigmoid() + eps).log() if eps else F.softplus(-margin)
    number = pairs.sum().clamp(min=1)
    return each.where(pairs, 0.0).sum() / number, ((margin > 0) & pairs).sum() / number


def regression_loss(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean squared difference from the targets, standardised cloud by cloud (unbiased variance)."""
    predicted, target, weight = predicted.float(), target.float(), valid.float()
    number = weight.sum(dim=1, keepdim=True)
    mean = (target * weight).sum(dim=1, keepdim=True) / number.clamp(min=1)
    variance = ((target - mean).square() * weight).sum(dim=1, keepdim=True) / (number - 1).clamp(min=1)
    wanted = (target - mean) / (variance + 1e-6).sqrt()
    return ((predicted - wanted).square() * weight).sum() / number.sum().clamp(min=1)


def feature_error(features: Tensor, wanted: Tensor) -> Tensor:
    """Squared distance of the unit vectors of two tokens, (B, M, C) twice -> (B, M), from 0 to 4."""
    return (F.normalize(features.float(), dim=-1) - F.normalize(wanted.float(), dim=-1)).square().sum(dim=-1)
