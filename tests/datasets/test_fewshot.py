"""Episodes: as many classes and clouds as asked for, the same for the same fold, errors that say what is possible."""

import numpy as np
import pytest

from datasets.base import PointClouds
from datasets.fewshot import Episode
from utils.errors import UserError

NAMES = ["ant", "bee", "cat", "dog", "elk"]


def clouds(per_class, split, names=NAMES):
    labels = np.repeat(np.arange(len(names)), per_class)
    points = np.random.default_rng(len(labels)).random((len(labels), 8, 3))
    points[:, 0, 0] = labels  # so that a cloud tells its class
    return PointClouds(points, labels, names, name="zoo", split=split, groups=np.arange(len(labels)))


TRAIN, TEST = clouds([6, 6, 6, 6, 2], "train"), clouds([4, 4, 4, 3, 4], "test")


def test_support_and_queries():
    support, query = Episode(way=3, shot=5, fold=1, queries=4).cut(TRAIN, TEST)
    assert np.bincount(support.class_labels).tolist() == [5, 5, 5]
    assert support.class_names == query.class_names and support.num_classes == 3
    for part, source in ((support, NAMES), (query, NAMES)):
        batch = part.fetch(range(len(part)))
        of_class = batch["points"][:, 0, 0].long().tolist()
        assert [source[c] for c in of_class] == [part.class_names[label] for label in batch["label"].tolist()]
    assert len(set(support.index.tolist())) == 15


def test_fewer_queries_where_there_are_fewer():
    _, query = Episode(way=4, shot=6, queries=20).cut(TRAIN, TEST)
    assert sorted(np.bincount(query.class_labels).tolist()) == [3, 4, 4, 4]


def test_the_fold_is_the_seed():
    def chosen(fold):
        support, query = Episode(way=3, shot=2, fold=fold).cut(TRAIN, TEST)
        return support.class_names, support.index.tolist(), query.index.tolist()

    assert chosen(3) == chosen(3)
    assert len({str(chosen(fold)) for fold in range(10)}) > 5


def test_classes_that_are_too_small_are_not_drawn():
    for fold in range(10):
        assert "elk" not in Episode(way=4, shot=3, fold=fold).cut(TRAIN, TEST)[0].class_names


@pytest.mark.parametrize(
    "options, line",
    [
        ({"way": 5, "shot": 3}, "--shot 2 or less"),
        ({"way": 6, "shot": 1}, "--way 5 or less"),
        ({"way": 1, "shot": 1}, "way: 1"),
        ({"way": 2, "shot": 0}, "shot: 0"),
        ({"way": 2, "shot": 1, "fold": -1}, "fold: -1"),
    ],
)
def test_what_cannot_be(options, line):
    with pytest.raises(UserError, match=line):
        Episode(**options).cut(TRAIN, TEST)
