"""Groups found in a thread: their names, how long they are kept, and how the threshold stays."""

import shutil

import pytest

pytest.importorskip("fastapi", reason="the [test] extra is not installed")

from simsearch.search import duplicates as near
from simsearch.search.copy_threshold import copy_threshold
from simsearch.server import decoding, near_groups
from simsearch.server.near_groups import Found, Group, GroupFinder, Job
from simsearch.server.reloading import ReloadableIndex


@pytest.fixture
def photos(photos):
    shutil.copy(photos / "amber" / "0.png", photos / "rose" / "copy.png")
    return photos


@pytest.fixture
def finder():
    finder = GroupFinder(1 << 30)
    yield finder
    finder.close()


@pytest.fixture
def served(engine):
    return ReloadableIndex("photos", engine)


def found(finder, served, distance=None):
    """The groups, now or when they have been computed."""
    result = finder.find(served, distance)
    return result.result.result(30) if isinstance(result, Job) else result


def test_a_name_stands_for_ids_and_contents(engine):
    items = [engine.item(number) for number in (1, 2, 3)]
    group = Group.of(items)
    assert group.name == Group.of(reversed(items)).name
    assert group.numbers == (1, 2, 3) and group.contents == tuple(sorted(item.digest.hex() for item in items))
    assert len({Group.of(part).name for part in (items, items[:2], items[1:])}) == 3


def test_kept_for_the_last_few_distances(finder, served):
    first = found(finder, served, 0.0)
    assert isinstance(first, Found) and finder.find(served, 0.0) is first
    for distance in range(1, near_groups.KEPT + 1):
        found(finder, served, float(distance))
    assert finder.known(served, 0.0) is None
    assert finder.known(served, 1.0) is not None


def test_forgotten_groups_are_found_again(finder, served, engine):
    first = found(finder, served)
    finder.forget(engine)
    assert finder.known(served, None) is None
    assert found(finder, served).groups == first.groups


def test_threshold_stays_while_the_index_changes_a_little(finder, served, engine, monkeypatch):
    calls, measure = [], copy_threshold

    def count(*arguments, **options):
        calls.append(1)
        return measure(*arguments, **options)

    monkeypatch.setattr(near_groups, "copy_threshold", count)
    found(finder, served)
    for removed, expected in (([5], 1), (list(range(6, 14)), 2)):
        engine.remove(removed)
        finder.forget(engine)
        found(finder, served)
        assert len(calls) == expected


def test_large_group_that_lost_an_item_is_found_again(finder, served, engine, monkeypatch):
    monkeypatch.setattr(near_groups, "LINKED", 3)
    monkeypatch.setattr(near_groups, "PATIENCE", 0)
    assert found(finder, served, 100.0).groups[0].numbers == tuple(range(1, 26))
    engine.remove([7])
    assert finder.known(served, 100.0) is None
    assert len(found(finder, served, 100.0).groups[0].numbers) == 24


def test_error_is_told_and_not_kept(finder, served, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(near, "duplicate_groups", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            found(finder, served)
    assert len(found(finder, served).groups) == 1


def test_comparing_gives_way_to_searches(served, monkeypatch):
    looks = []

    def busy():
        looks.append(1)
        return len(looks) < 4

    finder = GroupFinder(1 << 30, busy)
    monkeypatch.setattr(decoding, "GIVING_WAY", 20)
    try:
        assert len(found(finder, served).groups) == 1
    finally:
        finder.close()
    assert len(looks) > 4


def test_comparing_ends_in_spite_of_searches(served, monkeypatch):
    monkeypatch.setattr(decoding, "GIVING_WAY", 0.001)
    finder = GroupFinder(1 << 30, lambda: True)
    try:
        assert len(found(finder, served, 0).groups) == 1
    finally:
        finder.close()
