"""The packed form: written whole or continued, told apart from others, damage noticed."""

import numpy as np
import pytest

from datasets import shapenetpart, store
from tests.datasets import trees
from utils.errors import UserError


@pytest.fixture
def root(tmp_path):
    return trees.write_shapenetpart(tmp_path / "tree")


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "plan.json"}


@pytest.mark.parametrize("stop", [0, 1, 17, 63])
@pytest.mark.parametrize("lost", ["nothing", "half a cloud", "sizes"])
def test_an_interrupted_pack_continues(root, tmp_path, stop, lost):
    whole = tmp_path / "whole"
    store.write_store(whole, shapenetpart.listing(str(root)))
    path = tmp_path / "broken"
    listing = shapenetpart.listing(str(root))
    read, calls = listing.read, list[int]()

    def interrupted(index):
        if len(calls) > stop + 1:
            raise KeyboardInterrupt
        calls.append(index)
        return read(index)

    listing.read = interrupted
    with pytest.raises(KeyboardInterrupt):
        store.write_store(path, listing)
    part = tmp_path / "broken.part"
    assert store.open_store(path) is None
    if stop and lost == "half a cloud":  # what a crash leaves: some arrays are ahead of others
        with open(part / "points.f4", "ab") as file:
            file.write(b"123456789")
    if stop and lost == "sizes":
        sizes = np.fromfile(part / "sizes.i8", "<i8")
        sizes[:-1].tofile(part / "sizes.i8")
    again = shapenetpart.listing(str(root))
    read_again, seen = again.read, list[int]()

    def noted(index):
        seen.append(index)
        return read_again(index)

    again.read = noted
    store.write_store(path, again)
    assert contents(path) == contents(whole) and not part.exists()
    assert stop < 17 or len(seen) < 64 + 30  # the rest and the second look, not everything anew


def test_another_plan_starts_anew(root, tmp_path):
    part = tmp_path / "p.part"
    part.mkdir()
    (part / "plan.json").write_text('"of other clouds"')
    (part / "points.f4").write_bytes(b"\0" * 1200)
    listing = shapenetpart.listing(str(root))
    store.write_store(tmp_path / "p", listing)
    assert store.verify(tmp_path / "p") == [] and store.is_current(tmp_path / "p", listing)
    listing.ids = listing.ids[:-1]
    assert not store.is_current(tmp_path / "p", listing)


def test_damage_is_told(root):
    path = root / "packed" / "shapenetpart"
    store.write_store(path, shapenetpart.listing(str(root)))
    points = bytearray((path / "points.f4").read_bytes())
    points[100] ^= 1
    (path / "points.f4").write_bytes(points)
    assert [line.split(":")[0] for line in store.verify(path)] == [str(path / "points.f4")]
    (path / "points.f4").write_bytes(points[:-12])
    with pytest.raises(UserError, match=r"points\.f4: \d+ bytes, \d+ were written; delete .* and pack again"):
        shapenetpart.shapenetpart(str(root))
    (path / "meta.json").write_text("{")
    with pytest.raises(UserError, match=r"meta\.json: not readable"):
        shapenetpart.shapenetpart(str(root))
    (path / "meta.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="of another version"):
        shapenetpart.shapenetpart(str(root))


def test_a_raw_file_that_changes_meanwhile_is_noticed(root, tmp_path):
    listing = shapenetpart.listing(str(root))
    read, count = listing.read, list[int]()

    def changing(index):
        count.append(index)
        columns = read(index)
        return columns if len(count) <= 66 else {**columns, "points": columns["points"] * [1, 2, 3]}

    listing.read = changing
    with pytest.raises(UserError, match="reads otherwise than it was written"):
        store.write_store(tmp_path / "p", listing)
    assert not (tmp_path / "p").exists()


def test_cache_names_another_folder(root, tmp_path):
    store.write_store(tmp_path / "cache" / "shapenetpart", shapenetpart.listing(str(root)))
    elsewhere = shapenetpart.shapenetpart(str(tmp_path / "no raw files"), cache=str(tmp_path / "cache"))
    assert elsewhere.fingerprint() == shapenetpart.shapenetpart(str(root)).fingerprint()
