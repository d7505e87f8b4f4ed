"""Which patches a masked auto-encoder hides.

A mask sampler is called with the patch centres (B, G, 3), a source of random numbers, and where somebody knows it the
difficulty of the patches (B, G); it returns a boolean mask (B, G), True = hidden, with exactly `num_masked(G)` hidden
patches in every cloud. No host synchronisation.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from utils.errors import UserError
from utils.random import BatchRandom


class MaskSampler:
    """How many patches are hidden; the subclasses say which."""

    def __init__(self, ratio: float = 0.6):
        if not 0 <= ratio < 1:
            raise UserError(f"ratio: {ratio} is not a share of patches to hide; use a number of at least 0 and below 1")
        self.ratio = ratio

    def num_masked(self, num_group: int) -> int:
        return int(self.ratio * num_group)

    def num_guided(self, num_group: int) -> int:
        """How many of the hidden patches are chosen by their difficulty."""
        return 0

    def set_progress(self, epoch: int, epochs: int) -> None:
        """Epochs that are over, and in all: for samplers that change while training goes on."""

    def __call__(self, center: Tensor, rng: BatchRandom, difficulty: Tensor | None = None) -> Tensor:
        """Abstract: centres (B, G, 3) -> mask (B, G), True = hidden."""
        raise NotImplementedError


class RandomMask(MaskSampler):
    """Hide a uniformly random subset of the patches."""

    def __call__(self, center: Tensor, rng: BatchRandom, difficulty: Tensor | None = None) -> Tensor:
        batch, num_group, _ = center.shape
        permutation = rng.uniform(batch, num_group).to(center.device).argsort(dim=1)
        return mask_from_permutation(permutation, self.num_masked(num_group))


class BlockMask(MaskSampler):
    """Hide one connected region: the patches nearest to a random one."""

    def __call__(self, center: Tensor, rng: BatchRandom, difficulty: Tensor | None = None) -> Tensor:
        batch, num_group, _ = center.shape
        seed = (rng.uniform(batch).to(center.device) * num_group).long().clamp(max=num_group - 1)
        return block_mask(center, seed, self.num_masked(num_group))


class GuidedMask(MaskSampler):
    """Hide the patches that are predicted to be hardest, and fill up at random: for SA3D.

    ratio, rounding: of G patches "floor_mask" hides int(ratio * G); "floor_keep", as the GM3D code counts, keeps
    int((1 - ratio) * G), which is often one less.
    beta: the share of the hidden patches that is chosen by difficulty. It rises from `beta_start` to `beta_end` over
    the share `ramp` of the epochs. guide: false hides at random, whatever beta is.
    """

    def __init__(
        self,
        ratio: float = 0.6,
        rounding: Literal["floor_mask", "floor_keep"] = "floor_mask",
        beta_start: float = 0.0,
        beta_end: float = 0.5,
        ramp: float = 1.0,
        guide: bool = True,
    ):
        super().__init__(ratio)
        for name, value in (("beta_start", beta_start), ("beta_end", beta_end)):
            if not 0 <= value <= 1:
                raise UserError(f"{name}: {value} is not a share of the hidden patches; use a number from 0 to 1")
        if not 0 < ramp <= 1:
            raise UserError(f"ramp: {ramp} is not a share of the epochs; use a number above 0, at most 1")
        self.rounding, self.guide = rounding, guide
        self.beta_start, self.beta_end, self.ramp = beta_start, beta_end, ramp
        self.beta = beta_end if guide else 0.0

    def num_masked(self, num_group: int) -> int:
        if self.rounding == "floor_keep":
            return num_group - _floor((1 - self.ratio) * num_group)
        return super().num_masked(num_group)

    def num_guided(self, num_group: int) -> int:
        return _floor(self.num_masked(num_group) * self.beta)

    def set_progress(self, epoch: int, epochs: int) -> None:
        gone = min(1.0, (epoch + 1) / (epochs * self.ramp))
        self.beta = self.beta_start + (self.beta_end - self.beta_start) * gone if self.guide else 0.0

    def __call__(self, center: Tensor, rng: BatchRandom, difficulty: Tensor | None = None) -> Tensor:
        batch, num_group, _ = center.shape
        number = self.num_guided(num_group)
        if difficulty is None:
            if number:
                raise UserError("mask: 'guided' needs somebody who predicts difficulty; use it as the mask of SA3D")
            difficulty = center.new_zeros(batch, num_group)
        key = rng.uniform(batch, num_group).to(center.device)
        return guided_mask(difficulty, self.num_masked(num_group), number, key)


def guided_mask(difficulty: Tensor, num_masked: int, num_guided: int, key: Tensor) -> Tensor:
    """Hide the `num_guided` hardest patches (of equals the first), and of the others all but those with the smallest
    `key` (B, G)."""
    hardest = difficulty.argsort(dim=1, descending=True, stable=True)[:, :num_guided]
    order = key.scatter(1, hardest, torch.inf).argsort(dim=1)
    seen = order[:, : key.shape[1] - num_masked]
    return torch.ones_like(key, dtype=torch.bool).scatter(1, seen, False)


def _floor(product: float) -> int:
    """Downwards, except for products that are a whole number but for rounding, as 0.4 * 64 / 0.8 may be."""
    return int(product * (1 + 1e-9))


def draw_mask(
    sampler: MaskSampler,
    center: Tensor,
    mask: Tensor | None = None,
    rng: BatchRandom | None = None,
    difficulty: Tensor | None = None,
) -> tuple[Tensor, int]:
    """The given mask, else one of the sampler's, and how many patches it hides in every cloud."""
    num_group = center.shape[1]
    if mask is None:
        rng = rng or BatchRandom(int(torch.randint(2**31, ())), center.device)
        mask, num_masked = sampler(center, rng, difficulty), sampler.num_masked(num_group)
    else:
        num_masked = count_masked(mask)
    if not 0 < num_masked < num_group:
        what = "all" if num_masked else "none"
        raise UserError(f"mask: hides {what} of the {num_group} patches, nothing to learn from; use another ratio")
    return mask, num_masked


def mask_from_permutation(permutation: Tensor, num_masked: int) -> Tensor:
    """(B, G) permutations -> mask: the vector (0 ... 0, 1 ... 1) with `num_masked` ones, permuted."""
    return permutation >= permutation.shape[1] - num_masked


def block_mask(center: Tensor, seed: Tensor, num_masked: int) -> Tensor:
    """Hide the `num_masked` patches whose centres are nearest to the one with index `seed` (B,), itself included."""
    chosen = center.gather(1, seed[:, None, None].expand(-1, 1, 3))  # (B, 1, 3)
    order = (center - chosen).square().sum(-1).argsort(dim=1, stable=True)
    mask = torch.zeros_like(order, dtype=torch.bool)
    return mask.scatter(1, order[:, :num_masked], True)


def split_by_mask(mask: Tensor, num_masked: int) -> tuple[Tensor, Tensor]:
    """Indices of visible (B, G - M) and of hidden (B, M) patches, each ascending."""
    order = mask.int().argsort(dim=1, stable=True)
    visible = mask.shape[1] - num_masked
    return order[:, :visible], order[:, visible:]


def count_masked(mask: Tensor) -> int:
    """Number of hidden patches, which must be the same in every cloud."""
    counts = mask.sum(dim=1)
    if (counts != counts[0]).any():
        raise UserError(f"mask: every cloud must hide the same number of patches, found {sorted(set(counts.tolist()))}")
    return int(counts[0])
