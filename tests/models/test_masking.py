"""Masks: exact counts, fair draws, the same for one process and for many."""

from collections import Counter
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch

from models import MASKS
from models.masking import (
    BlockMask,
    GuidedMask,
    RandomMask,
    block_mask,
    draw_mask,
    guided_mask,
    mask_from_permutation,
    split_by_mask,
)
from utils.errors import UserError
from utils.random import BatchRandom

CENTER = torch.rand(6, 64, 3, generator=torch.Generator().manual_seed(1))
DIFFICULTY = torch.rand(6, 64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", MASKS.names())
@pytest.mark.parametrize("ratio, expected", [(0.0, 0), (0.6, 38), (0.8, 51), (0.01, 0), (0.999, 63)])
def test_exact_counts(name: str, ratio: float, expected: int) -> None:
    sampler = MASKS.build({"name": name, "ratio": ratio})
    mask = sampler(CENTER, BatchRandom(0), DIFFICULTY)
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
    whole = sampler(CENTER, BatchRandom(5, rank=0, world=1), DIFFICULTY)
    own = [slice(2 * rank, 2 * rank + 2) for rank in range(3)]
    shares = [sampler(CENTER[o], BatchRandom(5, rank=r, world=3), DIFFICULTY[o]) for r, o in enumerate(own)]
    assert torch.equal(whole, torch.cat(shares))


@pytest.mark.parametrize("name", MASKS.names())
def test_clouds_and_calls_differ(name: str) -> None:
    sampler, rng = MASKS.build({"name": name}), BatchRandom(5)
    alike = CENTER[:1].expand(6, -1, -1), rng, DIFFICULTY[:1].expand(6, -1)
    first, second = sampler(*alike), sampler(CENTER, rng, DIFFICULTY)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first, second)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("num_group, ratio", [(64, 0.6), (64, 0.8), (7, 0.5), (3, 0.4)])
def test_the_hardest_are_always_hidden_and_the_count_is_kept(num_group: int, ratio: float, beta: float) -> None:
    sampler = GuidedMask(ratio, beta_start=beta, beta_end=beta)
    difficulty = torch.randn(500, num_group)
    difficulty[:100] = 1.0  # equals
    difficulty[100, 0] = torch.nan
    mask = sampler(torch.zeros(500, num_group, 3), BatchRandom(0), difficulty)
    guided = int(sampler.num_masked(num_group) * beta)
    assert sampler.num_guided(num_group) == guided
    assert (mask.sum(dim=1) == sampler.num_masked(num_group)).all()
    for row, hidden in zip(difficulty, mask):
        assert hidden[row.argsort(descending=True, stable=True)[:guided]].all()


def test_the_rest_of_the_mask_is_uniform() -> None:
    """Every subset of the patches that are not among the hardest is hidden equally often."""
    from scipy.stats import chisquare

    difficulty = torch.tensor([0.9, 0.1, 0.2, 0.8, 0.3, 0.4, 0.0]).expand(20_000, 7)
    mask = GuidedMask(4 / 7, beta_start=0.5, beta_end=0.5)(torch.zeros(20_000, 7, 3), BatchRandom(7), difficulty)
    assert mask[:, [0, 3]].all()
    others = [1, 2, 4, 5, 6]
    seen = Counter(tuple(row.nonzero()[:, 0].tolist()) for row in mask[:, others])
    subsets = list(combinations(range(5), 2))
    assert sum(seen[subset] for subset in subsets) == 20_000
    assert chisquare([seen[subset] for subset in subsets]).pvalue > 1e-3


def test_the_share_that_aims_rises() -> None:
    sampler = GuidedMask(0.6, beta_start=0.1, beta_end=0.5, ramp=0.5)
    shares = []
    for epoch in range(8):
        sampler.set_progress(epoch, 8)
        shares.append(sampler.beta)
    assert shares == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5])
    blind = GuidedMask(0.6, guide=False)
    blind.set_progress(7, 8)
    assert blind.num_guided(64) == 0


@pytest.mark.parametrize("ratio, keep, mask", [(0.6, 39, 38), (0.8, 52, 51), (0.75, 48, 48), (0.9, 58, 57)])
def test_rounding(ratio: float, keep: int, mask: int) -> None:
    """GM3D rounds what is kept, Point-MAE what is hidden; 10 patches less 90 % are 1, whatever floating point says."""
    assert GuidedMask(ratio, rounding="floor_keep").num_masked(64) == keep
    assert GuidedMask(ratio).num_masked(64) == mask
    assert GuidedMask(0.9, rounding="floor_keep").num_masked(10) == 9


def test_guided_masks_accept_recorded_draws() -> None:
    key = torch.tensor([[0.3, 0.1, 0.2, 0.4]])
    assert guided_mask(torch.tensor([[0.0, 5.0, 0.0, 0.0]]), 2, 1, key).tolist() == [[False, True, False, True]]


def test_nobody_who_knows_what_is_hard() -> None:
    with pytest.raises(UserError, match="mask of SA3D"):
        draw_mask(GuidedMask(), CENTER)


@pytest.mark.parametrize("options", [{"beta_end": 1.1}, {"beta_start": -0.1}, {"ramp": 0.0}, {"ramp": 2.0}])
def test_guidance_out_of_range(options: dict) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        GuidedMask(**options)


@pytest.mark.parametrize("number, what", [(0, "none"), (64, "all")])
def test_a_mask_must_leave_something_to_learn(number: int, what: str) -> None:
    with pytest.raises(UserError, match=f"hides {what} of the 64"):
        draw_mask(RandomMask(), CENTER, (torch.arange(64) < number).expand(6, 64))


def test_a_mask_is_made_without_a_word_from_the_device() -> None:
    """On the meta device any question about values raises."""
    sampler, center = GuidedMask(0.6), torch.empty(2, 64, 3, device="meta")
    rng = SimpleNamespace(uniform=lambda *shape: torch.empty(shape, device="meta"))
    assert sampler(center, rng, center[..., 0]).shape == (2, 64)  # type: ignore[arg-type]
