"""The write-ahead log of SQLite, without which a kill would leave an index that cannot be opened."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

import simsearch
from simsearch.errors import SimsearchError
from simsearch.storage import database
from simsearch.storage.verify import verify
from tests.helpers.models import Colours

LOGGED, NOT_LOGGED = b"\2\2", b"\1\1"  # bytes 18 and 19 of the file: the versions that write and read it


def versions(index: Path) -> bytes:
    return (index / "items.sqlite").read_bytes()[18:20]


def test_without_a_log_no_index_is_made(
    photos: Path, tmp_path: Path, colours: Colours, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite returns "delete" and no error if a call of the system fails while it switches."""
    with monkeypatch.context() as patch:
        patch.setattr(database, "use_log", lambda connection: False)
        with pytest.raises(SimsearchError, match=r"SQLite cannot use a write-ahead log for .*items\.sqlite"):
            simsearch.build(photos, tmp_path / "index", model=colours)
    assert not (tmp_path / "index" / "meta.json").exists()
    with simsearch.build(photos, tmp_path / "index", model=colours) as engine:
        assert len(engine) == 24
    assert versions(tmp_path / "index") == LOGGED


def test_an_index_without_a_log_gets_one_when_it_is_written(photos: Path, tmp_path: Path, colours: Colours) -> None:
    index = tmp_path / "index"
    simsearch.build(photos, index, model=colours).close()
    with contextlib.closing(sqlite3.connect(index / "items.sqlite")) as connection:
        assert connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    assert versions(index) == NOT_LOGGED
    with simsearch.open(index, model=colours) as engine:
        assert len(engine.search_by_id(1, 3)) == 3
        assert versions(index) == NOT_LOGGED
        engine.remove(["id:1"])
        assert versions(index) == LOGGED
        assert len(engine) == 23
    with simsearch.open(index, model=colours) as engine:
        assert len(engine) == 23
        assert not verify(engine.index).problems
