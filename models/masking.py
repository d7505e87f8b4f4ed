"""Which patches a masked auto-encoder hides.

A mask sampler is called with the patch centres (B, G, 3) and a source of random numbers, and returns a boolean mask
(B, G), True = hidden, with exactly `num_masked(G)` hidden patches in every cloud. No host synchronisation.
"""

from __future__ import annotations

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

    def __call__(self, center: Tensor, rng: BatchRandom) -> Tensor:
        """Abstract: centres (B, G, 3) -> mask (B, G), True = hidden."""
        raise NotImplementedError


class RandomMask(MaskSampler):
    """Hide a uniformly random subset of the patches."""

    def __call__(self, center: Tensor, rng: BatchRandom) -> Tensor:
        batch, num_group, _ = center.shape
        permutation = rng.uniform(batch, num_group).to(center.device).argsort(dim=1)
        return mask_from_permutation(permutation, self.num_masked(num_group))


class BlockMask(MaskSampler):
    """Hide one connected region: the patches nearest to a random one."""

    def __call__(self, center: Tensor, rng: BatchRandom) -> Tensor:
        batch, num_group, _ = center.shape
        seed = (rng.uniform(batch).to(center.device) * num_group).long().clamp(max=num_group - 1)
        return block_mask(center, seed, self.num_masked(num_group))


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
