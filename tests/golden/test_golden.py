"""Every fixture found is compared, by the adapter of its kind; what has no adapter yet is listed."""

import warnings
from collections.abc import Callable

import pytest

from tests.golden.adapters import ADAPTERS, ELSEWHERE
from tests.golden.fixtures import ABSENT, GOLDEN, Fixture, find_fixtures, resolve

FIXTURES = [fixture for fixture in find_fixtures() if fixture.folder not in ELSEWHERE]


def adapter_of(fixture: Fixture):
    return resolve(fixture.name, ADAPTERS.get(fixture.folder, {}))


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: f"{fixture.folder}/{fixture.name}")
def test_golden(fixture: Fixture) -> None:
    adapter = adapter_of(fixture)
    if adapter is None:
        pytest.skip(f"no adapter yet: {fixture.folder}/{fixture.name}")
    adapter(fixture)
    if fixture.unread:
        warnings.warn(f"{fixture.folder}/{fixture.name}: not compared: {', '.join(fixture.unread)}", stacklevel=1)


def test_every_fixture_has_an_adapter() -> None:
    if not GOLDEN.is_dir():
        pytest.skip(ABSENT)
    assert FIXTURES, f"{GOLDEN} holds no fixtures"
    without = [f"{fixture.folder}/{fixture.name}" for fixture in FIXTURES if adapter_of(fixture) is None]
    if without:
        pytest.skip(f"no adapter yet for {len(without)} of {len(FIXTURES)} fixtures: {', '.join(without)}")


def test_names_with_a_suffix_find_their_kind() -> None:
    kinds: dict[str, Callable] = {"group": len, "group_size": abs, "pre.train": id}
    for name in ("group", "group_2", "group7", "group_fps_quirk", "group-s7"):
        assert resolve(name, kinds) is len
    assert resolve("group_size_3", kinds) is abs
    assert resolve("grouping", kinds) is resolve("a_group", kinds) is resolve("preXtrain", kinds) is None
