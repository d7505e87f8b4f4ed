"""The networks of 3DSimAttention: sizes as published, order of points, neighbourhoods, what the segmenter is told."""

import json
from functools import partial

import pytest
import torch

from extensions import ops
from models.keras_weights import from_keras
from models.layers.attention.dense import Attention
from models.layers.attention.lsh import LSHAttention
from models.layers.attention.sim import SimAttention
from models.layers.neighbourhood import nearest_l1
from models.sim3d import AttentionLayer, SimNeighbourhoodClassifier, SimPointClassifier, SimSegmenter
from tests.golden.fixtures import ABSENT, GOLDEN
from utils.checkpoint import load_weights
from utils.errors import UserError


@pytest.mark.parametrize(
    "name, model, number",
    [
        ("sim_classification_nw_4layers", partial(SimNeighbourhoodClassifier, 40), 25_224),
        ("sim_segmentation_4layers", partial(SimSegmenter, 2), 18_330),
    ],
)
def test_official_networks_fit(name: str, model: partial, number: int) -> None:
    path = GOLDEN / "manifests" / "sampling" / f"{name}.json"
    if not path.is_file():
        pytest.skip(ABSENT)
    network = model(attention=partial(SimAttention, restore="none"))
    official = {key: torch.zeros(shape) for key, shape in json.loads(path.read_text()).items()}
    report = load_weights(network, from_keras(official), name)
    assert len(report.loaded) == len(official) and not report.unexpected
    assert all(key.endswith((".projection", ".source")) for key in report.missing)
    assert sum(p.numel() for p in network.parameters()) == number


@pytest.mark.parametrize("kind", [SimAttention, partial(SimAttention, restore="per_head"), LSHAttention, Attention])
def test_order_of_points_is_of_no_account(kind) -> None:
    points, order = torch.randn(2, 90, 3, dtype=torch.float64), torch.randperm(90)
    classifier = SimPointClassifier(5, depth=2, attention=kind).double()
    torch.testing.assert_close(classifier(points[:, order]), classifier(points))
    segmenter = SimSegmenter(5, pooled=True, depth=2, attention=kind).double()
    torch.testing.assert_close(segmenter(points[:, order]), segmenter(points)[:, order])
    grouped = SimNeighbourhoodClassifier(5, depth=2, num_group=16, group_size=8, attention=kind).double()
    torch.testing.assert_close(grouped(points[:, order]), grouped(points))


@pytest.mark.parametrize("sampling", ["fps", "ass"])
@pytest.mark.parametrize("relative", [False, True])
def test_neighbourhoods(sampling, relative: bool) -> None:
    model = SimNeighbourhoodClassifier(5, depth=1, num_group=16, group_size=8, sampling=sampling, relative=relative)
    seen = []
    model.pool.first.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    points = torch.randn(2, 64, 3)
    assert model.tokens(points).shape == (2, 16, 32)
    members = seen[0][..., :3] + seen[0][..., 3:] if relative else seen[0]
    assert members.shape == (2, 16, 8, 3)
    distance = torch.cdist(members.flatten(1, 2), points, p=1).amin(dim=2)
    assert distance.max() < 1e-5  # all of them points of the cloud


def test_nearest_in_l1() -> None:
    query, points = torch.randn(2, 7, 3), torch.randn(2, 50, 3)
    expected = (query[:, :, None] - points[:, None]).abs().sum(3).sort(dim=2, stable=True)
    index = nearest_l1(query, points, 9)
    assert torch.equal(index, expected.indices[..., :9])
    ties = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0.5, 0.5, 0], [0, 0, -1]]])
    assert nearest_l1(torch.zeros(1, 1, 3), ties, 4).tolist() == [[[0, 1, 2, 3]]]
    assert not torch.equal(index, ops.knn(query, points, 9)[1])
    with pytest.raises(UserError, match="k = 5 is more than the 4 points"):
        nearest_l1(query[:1], ties, 5)


def test_what_the_segmenter_is_told() -> None:
    points, category = torch.randn(2, 40, 3), torch.tensor([0, 2])
    plain = SimSegmenter(4, depth=1)
    assert torch.equal(plain(points, category), plain(points))
    told = SimSegmenter(4, num_categories=3, depth=1)
    assert (told(points, category) - told(points, category.flip(0))).abs().amin(dim=(1, 2)).min() > 0
    with pytest.raises(UserError, match="knows 3 categories"):
        told(points)


def test_identity_keeps_the_width() -> None:
    with pytest.raises(UserError, match="'identity' keeps the 8 channels"):
        AttentionLayer(8, 16, skip="identity")
