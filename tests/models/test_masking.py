"""Masks: exact counts, fair draws, the same for one process and for many."""

from collections import Counter
from itertools import combinations

import pytest
import torch

from models import MASKS
from models.masking import BlockMask, RandomMask, block_mask, mask_from_permutation, split_by_mask
from utils.errors import UserError
from utils.random import BatchRandom

CENTER = torch.rand(6, 64, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MASKS.names())
@pytest.mark.parametrize("ratio, expected", [(0.0, 0), (0.6, 38), (0.8, 51), (0.01, 0), (0.999, 63)])
def test_exact_counts(name: str, ratio: float, expected: int) -> None:
    sampler = MASKS.build({"name": name, "ratio": ratio})
    mask = sampler(CENTER, BatchRandom(0))
    assert mask.shape == (6, 64) and mask.dtype == torch.bool
    assert sampler.num_masked(64) == expected
    assert mask.sum(dim=1).tolist() == [expected] * 6


@pytest.mark.parametrize("name", MASKS.names())
@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_ratio_out_of_range(name: str, ratio: float) -> None:
    with pytest.raises(UserError, match="ratio"):
        MASKS.build({"name": name, "ratio": ratio})


def test_every_subset_is_equally_likely() -> None:
    from scipy.stats import chisquare

    center = torch.zeros(20_000, 6, 3)
    mask = RandomMask(0.5)(center, BatchRandom(7))
    seen = Counter(tuple(row.nonzero()[:, 0].tolist()) for row in mask)
    subsets = list(combinations(range(6), 3))
    assert sum(seen[subset] for subset in subsets) == 20_000
    assert chisquare([seen[subset] for subset in subsets]).pvalue > 1e-3


def test_every_patch_seeds_a_block_equally_often() -> None:
    from scipy.stats import chisquare

    line = torch.arange(10.0)[None, :, None].expand(20_000, 10, 3)
    mask = BlockMask(0.1)(line, BatchRandom(7))  # a block of one patch is its seed
    assert chisquare(mask.sum(dim=0).numpy()).pvalue > 1e-3


def test_a_block_is_the_patches_nearest_to_its_seed() -> None:
    seed = torch.tensor([0, 5, 63, 20, 1, 33])
    mask = block_mask(CENTER, seed, 12)
    for center, chosen, hidden in zip(CENTER, seed, mask):
        distance = (center - center[chosen]).norm(dim=1)
        assert hidden[chosen]
        assert distance[hidden].max() <= distance[~hidden].min()


def test_blocks_of_equal_centres_keep_their_count() -> None:
    assert block_mask(torch.zeros(2, 8, 3), torch.tensor([3, 7]), 5).sum(dim=1).tolist() == [5, 5]


def test_mask_from_a_permutation() -> None:
    mask = mask_from_permutation(torch.tensor([[3, 0, 2, 1], [0, 1, 2, 3]]), 2)
    assert mask.tolist() == [[True, False, True, False], [False, False, True, True]]


def test_split_is_ascending_and_complete() -> None:
    mask = RandomMask(0.6)(CENTER, BatchRandom(2))
    visible, hidden = split_by_mask(mask, 38)
    assert visible.shape == (6, 26) and hidden.shape == (6, 38)
    for row, seen, unseen in zip(mask, visible, hidden):
        assert seen.tolist() == row.logical_not().nonzero()[:, 0].tolist()
        assert unseen.tolist() == row.nonzero()[:, 0].tolist()


@pytest.mark.parametrize("name", MASKS.names())
def test_one_process_or_three(name: str) -> None:
    sampler = MASKS.build({"name": name})
    whole = sampler(CENTER, BatchRandom(5, rank=0, world=1))
    shares = [sampler(CENTER[2 * rank : 2 * rank + 2], BatchRandom(5, rank=rank, world=3)) for rank in range(3)]
    assert torch.equal(whole, torch.cat(shares))


@pytest.mark.parametrize("name", MASKS.names())
def test_clouds_and_calls_differ(name: str) -> None:
    sampler, rng = MASKS.build({"name": name}), BatchRandom(5)
    first, second = sampler(CENTER[:1].expand(6, -1, -1), rng), sampler(CENTER, rng)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first, second)
