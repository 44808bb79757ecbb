"""Checksums of the items follow each change, and versions without them do not look like damage."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from simsearch.storage import checksums
from simsearch.storage.database import Changes, Database
from simsearch.storage.reader import Item


@pytest.fixture
def database(tmp_path: Path) -> Database:
    made = Database(tmp_path / "items.sqlite", create=True)
    made.add_source("folder", "/photos", tmp_path, {})
    return made


def item(number: int, path: str, row: int, label: str | None = "a") -> Item:
    return Item(number, 1, path, label, {"n": row}, bytes(32), 1, 2, 3, 4, row)


def sums(database: Database) -> dict[str, int]:
    with database.reading() as reader:
        assert reader.checksum_problems() == []
        return {key: reader.state(key) for key in ("items_sum", "sources_sum", "sums_of")}


def act(database: Database, statement: str) -> None:
    connection = sqlite3.connect(database.path)
    with connection:
        connection.executescript(statement)
    connection.close()


def test_sums_follow_all_changes(database: Database, tmp_path: Path) -> None:
    first = [item(0, f"{n}.png", n) for n in range(900)]
    database.apply(Changes(inserted=first, failed=[(1, "x.png", "bad"), (1, "y.png", "bad")]))
    before = sums(database)
    changed = Changes(updated=[item(5, "moved.png", 4), item(6, "5.png", 900)], deleted=[*range(10, 600), 5000])
    changed.inserted = [item(0, "new.png", 901)]
    changed.failed = [(1, "x.png", "worse"), (1, "z.png", "bad")]
    changed.cleared = [(1, "y.png"), (1, "never.png")]
    database.apply(changed)
    assert sums(database)["items_sum"] != before["items_sum"]
    with database.reading() as reader:
        counted = checksums.items_sum(reader._connection)
    assert sums(database)["items_sum"] == counted
    database.renumber([(0, 1)], [(0, 1, 0)], 1, 1)
    database.add_source("folder", "/wide", tmp_path, {}, [(1, "photos")])
    database.relocate(2, "/other", tmp_path)
    sums(database)
    database.forget(1)
    sums(database)


def test_order_does_not_matter(tmp_path: Path) -> None:
    found = []
    for name, order in (("a", (0, 1)), ("b", (1, 0))):
        made = Database(tmp_path / f"{name}.sqlite", create=True)
        made.add_source("folder", "/photos", tmp_path, {})
        made.apply(Changes(inserted=[item(0, "0.png", 0), item(0, "1.png", 1)]))
        made.apply(Changes(updated=[item(n + 1, f"{n}.png", n, "b") for n in order]))
        found.append(sums(made))
    assert found[0] == found[1]


def test_index_of_an_older_version(database: Database) -> None:
    database.apply(Changes(inserted=[item(0, "0.png", 0)]))
    act(database, "DELETE FROM state WHERE key LIKE '%sum%'; UPDATE items SET label = 'b'")
    with database.reading() as reader:
        assert reader.checksum_problems() == []
    database.apply(Changes(inserted=[item(0, "1.png", 1)]))
    sums(database)
    act(database, "UPDATE items SET label = 'c' WHERE id = 1")
    with database.reading() as reader:
        assert len(reader.checksum_problems()) == 1


def test_change_by_an_older_version(database: Database) -> None:
    database.apply(Changes(inserted=[item(0, "0.png", 0)]))
    act(database, "UPDATE items SET label = 'b'; UPDATE state SET value = value + 1 WHERE key = 'generation'")
    with database.reading() as reader:
        assert reader.checksum_problems() == []
    database.apply(Changes(deleted=[7]))
    sums(database)


def test_none_is_not_empty(database: Database) -> None:
    database.apply(Changes(inserted=[item(0, "0.png", 0, None)]))
    act(database, "UPDATE items SET label = ''")
    with database.reading() as reader:
        assert len(reader.checksum_problems()) == 1
