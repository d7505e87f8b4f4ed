"""The segmentation network: shapes, what it is told, weights of pre-trainers."""

import pytest
import torch

from models.point_mae import PointMAE
from models.point_mae_seg import PointMAESegmenter, thirds
from utils.checkpoint import load_weights
from utils.errors import UserError

SMALL = {"embed_dim": 24, "num_heads": 2, "num_group": 8, "group_size": 6, "patch_width": 16}
HEAD = {"local_dim": 16, "head_dim": 16}


def small(**options):
    return PointMAESegmenter(**{"num_parts": 5, "num_categories": 3, "depth": 3, **SMALL, **HEAD, **options})


def test_logits_of_every_point_and_gradients_everywhere():
    model = small(drop_path_rate=0.0)
    logits = model(torch.rand(2, 50, 3), torch.tensor([0, 2]))
    assert logits.shape == (2, 50, 5)
    logits.sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_the_head_equals_plain_concatenation():
    model = small().eval()
    points, category = torch.rand(2, 30, 3), torch.tensor([1, 0])
    neighborhood, center = model.group(points)
    features = model.layer_features(neighborhood, center)
    local = model.head.propagation(points, center, features, own=points)
    label = model.head.label(torch.nn.functional.one_hot(category, 3).float())
    whole = torch.cat([features.amax(1), features.mean(1), label], dim=-1)
    joined = torch.cat([local, whole[:, None].expand(-1, 30, -1)], dim=-1)
    torch.testing.assert_close(model(points, category), model.head.mlp(joined.flatten(0, 1)).unflatten(0, (2, 30)))


def test_order_of_points_does_not_matter_to_a_point():
    model = small().eval()
    points = torch.rand(1, 40, 3)
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(39)])  # sampling starts at the first
    category = torch.tensor([1])
    torch.testing.assert_close(model(points[:, order], category), model(points, category)[:, order])


def test_without_categories():
    model = small(num_categories=0).eval()
    assert not hasattr(model.head, "label")
    assert model(torch.rand(1, 20, 3)).shape == (1, 20, 5)
    with pytest.raises(UserError, match="3 categories"):
        small().eval()(torch.rand(1, 20, 3))


@pytest.mark.parametrize("depth, layers", [(12, [3, 7, 11]), (6, [1, 3, 5]), (4, [0, 1, 3]), (1, [0])])
def test_layers_of_any_depth(depth, layers):
    assert thirds(depth) == layers
    assert small(depth=depth).eval()(torch.rand(1, 20, 3), torch.tensor([0])).shape == (1, 20, 5)


@pytest.mark.parametrize("layers", [[], [3], [-1]])
def test_layers_that_are_not_there(layers):
    with pytest.raises(UserError, match="from 0 to 2"):
        small(layers=layers)


def test_takes_the_encoder_of_our_pre_trainer():
    pretrained = PointMAE(depth=3, decoder_depth=1, decoder_num_heads=2, **SMALL)  # type: ignore[arg-type]
    model = small()
    report = load_weights(model, pretrained.state_dict(), "pre-training", model.key_map)
    assert all(key.startswith("head.") for key in report.missing) and not report.unexpected
    for key, value in pretrained.encoder.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[key], value)


def test_own_weights_load_whole():
    report = load_weights(small(), small().state_dict(), "own", PointMAESegmenter.key_map)
    assert not (report.missing or report.unexpected or report.unused)
