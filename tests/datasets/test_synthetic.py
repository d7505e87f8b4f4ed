"""The built-in data is valid, deterministic, safe to cache, and not solved by a histogram."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from datasets import synthetic
from datasets.loader import Loader
from datasets.shapes.categories import CATEGORIES, MAKERS, PART_CATEGORY, PART_NAMES, draw_shape
from datasets.shapes.primitives import box, cylinder, ellipsoid, loft, mirrored, revolve, rod, rotation, sample, tube
from datasets.shapes.scan import BACKGROUND
from datasets.synthetic import make_cloud, synthetic_shapes
from utils.errors import UserError


def _area(quads):
    a, b, c, d = np.moveaxis(quads, 1, 0)
    triangles = (np.cross(b - a, c - a), np.cross(c - a, d - a))
    return sum(np.linalg.norm(t, axis=1).sum() / 2 for t in triangles)


def test_the_tables_follow_shapenetpart():
    assert len(CATEGORIES) == 16 and len(PART_NAMES) == len(set(PART_NAMES)) == len(PART_CATEGORY) == 50
    first = {category: PART_CATEGORY.index(label) for label, category in enumerate(CATEGORIES)}
    assert first["Chair"] == 12 and first["Motorbike"] == 30 and first["Table"] == 47
    assert PART_NAMES[12] == "Chair/back" and list(PART_CATEGORY) == sorted(PART_CATEGORY)


@pytest.mark.parametrize("label", range(16), ids=CATEGORIES)
def test_clean_clouds_are_valid(label):
    own = {part for part, category in enumerate(PART_CATEGORY) if category == label}
    met, extents = set(), []
    for index in range(label, label + 16 * 24, 16):
        points, seg = make_cloud("train", index, 1024)
        assert points.shape == (1024, 3) and points.dtype == np.float32 and np.isfinite(points).all()
        assert len(np.unique(points, axis=0)) > 1020
        np.testing.assert_allclose(points.mean(0), 0, atol=1e-5)
        assert abs(np.linalg.norm(points, axis=1).max() - 1) < 1e-5
        parts, counts = np.unique(seg, return_counts=True)
        assert set(parts) <= own and counts.min() >= 10
        met |= set(parts)
        extents.append(np.ptp(points, axis=0))
    assert met == own  # 24 shapes show every part of the category
    assert np.std(extents, axis=0).max() > 0.05


def test_every_part_of_a_shape_gets_points():
    for index in range(160):
        label = index % 16
        pieces = MAKERS[label](np.random.default_rng(index))
        has = {f"{CATEGORIES[label]}/{part}" for part, _ in pieces}
        for count in (64, 1024):
            _, seg = draw_shape(label, count, np.random.default_rng(index))
            assert {PART_NAMES[part] for part in seg} == has


def test_scans_are_partial_and_have_background():
    data = synthetic_shapes("test", size=64, variant="scan")
    batch = data.fetch(np.arange(64))
    points, seg, label = batch["points"].numpy(), batch["seg"].numpy(), batch["label"].numpy()
    assert np.isfinite(points).all()
    np.testing.assert_allclose(points.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(points, axis=2).max(1), 1, atol=1e-5)
    for cloud_seg, cloud_label in zip(seg, label, strict=True):
        on_object = cloud_seg[cloud_seg != BACKGROUND]
        assert len(on_object) > 200
        assert {PART_CATEGORY[part] for part in on_object} == {cloud_label}
    assert 0.1 < (seg == BACKGROUND).mean() < 0.4


def test_a_cloud_depends_on_seed_split_and_index_alone():
    data = synthetic_shapes("train", size=32, num_points=64)
    points, seg = make_cloud("train", 21, 64)
    np.testing.assert_array_equal(data.points[21], points)
    np.testing.assert_array_equal(data.seg[21], seg)
    np.testing.assert_array_equal(synthetic_shapes("train", size=22, num_points=64).points, data.points[:22])
    others = [make_cloud(split, 21, 64, seed=seed)[0] for split, seed in (("test", 0), ("val", 0), ("train", 1))]
    assert all(np.abs(points - other).max() > 0.01 for other in others)


@pytest.mark.parametrize("resident", [False, True])
def test_clouds_are_made_as_they_are_read(monkeypatch, resident):
    made = []

    def noted(split, index, *others):
        made.append(index)
        return make_cloud(split, index, *others)

    monkeypatch.setattr(synthetic, "make_cloud", noted)
    synthetic._make.cache_clear()
    data = synthetic_shapes("train", size=33, num_points=61)
    assert not made and data.points.shape == (33, 61, 3) and len(data.seg) == 33
    loader = Loader(data.subset(np.arange(20), "train"), 4, torch.device("cpu"), train=True, resident=resident)
    batch = next(loader.epoch())
    assert set(batch["index"].tolist()) <= set(made) and len(made) <= 12  # at most two batches ahead
    for position, row in enumerate(batch["index"].tolist()):
        points, seg = make_cloud("train", row, 61)
        np.testing.assert_array_equal(batch["points"][position], points)
        np.testing.assert_array_equal(batch["seg"][position], seg)
    np.testing.assert_array_equal(data.points[-1:], make_cloud("train", 32, 61)[0][None])
    assert np.asarray(data.points).shape == (33, 61, 3) and sorted(set(made)) == list(range(33))
    number = len(made)
    assert np.asarray(data.seg, dtype=np.int64).shape == (33, 61) and data.points[5].shape == (61, 3)
    assert len(made) == number  # kept
    with pytest.raises(ValueError, match="read-only"):
        data.points[5][0] = 0


def test_another_process_makes_the_same_cloud():
    code = "from datasets.synthetic import make_cloud; print(make_cloud('test', 5, 128, 'scan')[0].tobytes().hex())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert told == make_cloud("test", 5, 128, "scan")[0].tobytes().hex()


def test_classes_are_balanced_and_the_form_is_complete():
    data = synthetic_shapes("test", size=48, num_points=32)
    assert np.bincount(data.labels).tolist() == [3] * 16 and data.labels.dtype == np.int64
    assert data.class_names == CATEGORIES and data.part_names == PART_NAMES and len(data.part_category) == 50
    assert data.num_points == 32 and len(data) == 48


@pytest.mark.parametrize("variant", ["clean", "scan"])
@pytest.mark.parametrize("num_points", [1, 2, 7])
def test_tiny_clouds(variant, num_points):
    data = synthetic_shapes("test", size=16, num_points=num_points, variant=variant)
    assert np.isfinite(data.points).all() and data.points.shape == (16, num_points, 3)


def test_the_cache_is_read_back_and_two_writers_do_not_clash(tmp_path):
    wanted = synthetic_shapes("test", size=20, num_points=65)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(synthetic_shapes, "test", 20, 65, cache=str(tmp_path / "c")) for _ in range(4)]
    for data in [job.result() for job in jobs]:
        np.testing.assert_array_equal(data.points, wanted.points)
        np.testing.assert_array_equal(data.seg, wanted.seg)
        batch, expected = data.fetch([3, 19]), wanted.fetch([3, 19])
        assert all((batch[key] == expected[key]).all() for key in expected)
    (file,) = (tmp_path / "c").iterdir()
    stamp = file.stat().st_mtime_ns
    synthetic_shapes("test", size=20, num_points=65, cache=str(tmp_path / "c"))
    synthetic_shapes("test", size=20, num_points=65, seed=1, cache=str(tmp_path / "c"))
    assert file.stat().st_mtime_ns == stamp and len(list((tmp_path / "c").iterdir())) == 2


def test_a_broken_cache_file_is_named(tmp_path):
    synthetic_shapes("test", size=4, num_points=16, cache=str(tmp_path))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(UserError, match=f"{file.name}.*delete"):
        synthetic_shapes("test", size=4, num_points=16, cache=str(tmp_path))
    np.save(file, np.zeros(3))
    with pytest.raises(UserError, match="other data"):
        synthetic_shapes("test", size=4, num_points=16, cache=str(tmp_path))


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot write into cache"):
        synthetic_shapes("test", size=2, num_points=8, cache=str(tmp_path / "file"))


@pytest.mark.parametrize(
    "wrong", [{"split": "dev"}, {"variant": "noisy"}, {"size": 0}, {"num_points": 0}, {"seed": -1}]
)
def test_wrong_options_are_told(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        synthetic_shapes(**wrong)


def test_a_histogram_of_radii_does_not_solve_it():
    svm = pytest.importorskip("sklearn.svm")

    def features(data):
        radius = np.linalg.norm(data.points, axis=2)
        return np.stack([np.histogram(row, 32, (0, 1))[0] for row in radius]) / data.num_points

    train, test = (
        synthetic_shapes("train", size=640, num_points=256),
        synthetic_shapes("test", size=320, num_points=256),
    )
    model = svm.SVC(C=10, gamma=10).fit(features(train), train.labels)
    accuracy = model.score(features(test), test.labels)
    assert 0.2 < accuracy < 0.75  # chance is 0.06


@pytest.mark.parametrize(
    ("quads", "area"),
    [
        (box(1, 2, 3), 22),
        (cylinder(0.5, 2, sides=64), np.pi * 2.5),
        (ellipsoid(1, 1, 1, sides=64), 4 * np.pi),
        (rod((0, 0, 0), (3, 0, 4), 0.1, sides=64), np.pi * 1.02),
        (revolve([(1, 0), (0, 1)], sides=64), np.pi * np.sqrt(2)),
    ],
    ids=["box", "cylinder", "sphere", "rod", "cone"],
)
def test_primitives_have_the_right_area(quads, area):
    assert _area(quads) == pytest.approx(area, rel=0.03)


def test_a_tube_keeps_its_radius_along_a_curve():
    t = np.linspace(0, 3, 30)
    curve = np.stack((np.cos(t), np.sin(t), 0.2 * t), axis=1)
    corners = tube(curve, 0.1, sides=12)[12:-12].reshape(-1, 3)  # without the two ends
    gap = np.linalg.norm(corners[:, None] - curve, axis=2).min(1)
    np.testing.assert_allclose(gap, 0.1, atol=1e-6)


def test_rotation_is_right_handed():
    np.testing.assert_allclose(rotation("z", np.pi / 2) @ (1, 0, 0), (0, 1, 0), atol=1e-12)
    np.testing.assert_allclose(rotation("y", np.pi / 2) @ (0, 0, 1), (1, 0, 0), atol=1e-12)


def test_sampling_follows_the_area_and_serves_small_parts():
    pieces = [(2, box(1, 1, 1)), (0, box(2, 2, 2, at=(5, 0, 0))), (1, box(0.01, 0.01, 0.01))]
    points, part = sample(pieces, 5000, np.random.default_rng(0))
    share = np.bincount(part) / 5000
    assert share[0] / share[2] == pytest.approx(4, rel=0.02) and share[1] == pytest.approx(0.015, rel=0.1)
    cube = points[part == 2]
    on_face = [(np.abs(cube[:, axis] - side) < 1e-9).mean() for axis in range(3) for side in (-0.5, 0.5)]
    np.testing.assert_allclose(on_face, 1 / 6, atol=0.01)
    assert (points[part == 0, 0] > 3).all()
    assert abs(np.corrcoef(np.arange(5000), part)[0, 1]) < 0.05  # no order by part


def test_mirrored_and_loft_are_closed():
    ring = np.zeros((2, 5, 3))
    ring[:, :, :2] = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1), (1, 1)])
    ring[1, :, 2] = 2
    assert _area(loft(ring)) == pytest.approx(24)
    assert mirrored(box(1, 1, 1, at=(2, 0, 0)))[..., 0].sum() == pytest.approx(0)
