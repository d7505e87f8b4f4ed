"""Rooms as blocks: every point is seen, coordinates and labels stay together, files that cannot be read are named."""

import numpy as np
import pytest
import torch

from datasets.rooms import Room, RoomBlocks, blocks, each_room, rooms, shares
from utils.errors import UserError


def room(seed, n, size=(3.0, 2.0, 2.5)):
    rng = np.random.default_rng(seed)
    points = (rng.random((n, 3)) * size + (5, -4, 1)).astype(np.float32)
    return Room(points, (points[:, 0] > 6).astype(np.int64))


def made(*found, **options):
    options = {"num_points": 64, **options}
    return RoomBlocks(found, ("left", "right"), name="test", split="test", **options)


def test_every_point_lies_in_a_block_and_most_in_several():
    data = made(room(0, 500), room(1, 90))
    seen = np.bincount(data.source.ravel(), minlength=590)
    assert len(seen) == 590 and (seen > 0).all() and np.median(seen) >= 2


def test_a_block_is_a_column_around_its_middle():
    data = made(room(0, 500))
    batch = data.fetch(range(len(data)))
    assert batch["points"][..., :2].abs().max() <= 0.5 + 1e-5
    assert batch["points"][..., 2].min() >= 0 and batch["points"][..., 2].max() <= 2.5  # above the floor
    found = room(0, 500)
    assert torch.equal(batch["seg"], torch.from_numpy(found.seg[batch["source"].numpy()]))
    height = torch.from_numpy(found.points[batch["source"].numpy()][..., 2] - found.points[:, 2].min())
    torch.testing.assert_close(batch["points"][..., 2], height)


def test_one_point_and_a_room_smaller_than_a_block():
    data = made(Room(np.zeros((1, 3), np.float32), np.zeros(1, np.int64)), num_points=4)
    assert len(data) == 1 and data.fetch([0])["source"].tolist() == [[0, 0, 0, 0]]


def test_blocks_cover_the_far_edge():
    points = np.array([[0, 0, 0], [2.2, 0, 0], [0, 1.7, 0], [2.2, 1.7, 0]], dtype=np.float32)
    found = np.concatenate([members for _, members in blocks(points, 1.0, 0.5)])
    assert set(found) == {0, 1, 2, 3}


def test_shares_hold_everything_and_fill_up_with_the_same():
    rows = shares(np.arange(10, 20), 4, [0])
    assert rows.shape == (3, 4) and set(rows.ravel()) == set(range(10, 20))
    assert (rows == shares(np.arange(10, 20), 4, [0])).all()


def test_small_blocks_can_be_left_out_for_training():
    assert len(made(room(0, 500), least=60)) < len(made(room(0, 500)))
    with pytest.raises(UserError, match="no block holds 1000"):
        made(room(0, 500), least=1000)


def test_rooms_one_by_one_also_of_a_part():
    data = made(room(0, 300), room(1, 90))
    found = each_room(data)
    assert found is not None
    (first, begin, truth), (second, begin_two, truth_two) = found
    assert (begin, begin_two, len(truth), len(truth_two)) == (0, 300, 300, 90)
    assert len(first) + len(second) == len(data)
    assert second.fetch([0])["source"].min() >= 300
    part = data.subset(np.flatnonzero(data.groups == 1), "val")
    only = each_room(part)
    assert only is not None and [start for _, start, _ in only] == [300]


def test_a_data_set_that_keeps_rooms_whole():
    class Whole:
        name, split, part_names, num_points, block, rooms = "whole", "test", ("left", "right"), 32, 1.0, [7]

        def room(self, number):
            found = room(number, 200)
            return found.points, np.zeros((200, 3)), found.seg

    found = each_room(Whole())  # type: ignore[arg-type]
    assert found is not None
    ((data, begin, truth),) = found
    assert begin == 0 and (truth == room(7, 200).seg).all() and data.num_points == 32


def test_stride_beyond_the_block_would_leave_gaps():
    with pytest.raises(UserError, match="stride"):
        made(room(0, 50), stride=1.5)


def test_reads_a_folder(tmp_path):
    (tmp_path / "train").mkdir()
    for seed in range(2):
        found = room(seed, 100)
        colours = np.full((100, 3), 128)
        np.save(tmp_path / "train" / f"{seed}.npy", np.concatenate([found.points, colours, found.seg[:, None]], axis=1))
    data = rooms(str(tmp_path), num_points=32, seg_names=["left", "right"])
    assert data.part_names == ("left", "right") and len(data.truth) == 200
    np.save(tmp_path / "train" / "bad.npy", np.zeros((5, 3)))
    with pytest.raises(UserError, match=r"bad\.npy.*x, y, z"):
        rooms(str(tmp_path))
    with pytest.raises(UserError, match=r"test: no \.npy files"):
        rooms(str(tmp_path), split="test")
