"""One writer at a time; interrupted builds keep what is done."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from simsearch.engine import Engine
from simsearch.errors import (
    IndexLockedError,
)
from simsearch.indexing import sync
from simsearch.storage.database import Database
from simsearch.storage.lock import writer_lock
from simsearch.storage.verify import verify
from tests.helpers.models import Colours
from tests.helpers.pictures import draw
from tests.helpers.sync import ALL, edit, ids, told

# -- writers, interruptions, mismatches


def test_second_writer_is_refused_readers_go_on(
    build: Any, photos: Path, index: Path, colours: Colours, tmp_path: Path
) -> None:
    build(photos)
    inside, on = threading.Event(), threading.Event()

    def wait(done: int, total: int) -> None:
        inside.set()
        assert on.wait(30)

    draw(tmp_path / "more" / "x.png", 970)
    with Engine(index, model=Colours()) as writer, Engine(index, model=colours) as reader:
        thread = threading.Thread(target=writer.add, args=([tmp_path / "more"],), kwargs={"progress": wait})
        thread.start()
        try:
            assert inside.wait(30)
            with pytest.raises(IndexLockedError, match=f"process {os.getpid()} is writing"):
                build(photos)
            with pytest.raises(IndexLockedError):
                reader.remove([1])
            assert len(reader.search(photos / "blue" / "0.png", k=30)) == ALL
        finally:
            on.set()
            thread.join()
        assert len(reader.search(photos / "blue" / "0.png", k=30)) == ALL + 1


def test_lock_is_free_again(index: Path) -> None:
    index.mkdir()
    with writer_lock(index), pytest.raises(IndexLockedError), writer_lock(index):
        pass
    with writer_lock(index):
        pass


@pytest.mark.parametrize("every", [1, 4, 1000])
def test_interrupted_build_keeps_what_is_done(
    build: Any, photos: Path, index: Path, colours: Colours, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    monkeypatch.setattr(sync, "COMMIT_IMAGES", every)

    def interrupt(done: int, total: int) -> None:
        assert total == ALL
        if done >= 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(photos, progress=interrupt, batch_size=3)
    with Engine(index, model=colours) as engine:
        assert len(engine) == 9
        assert verify(engine.index).problems == ()
        assert engine.meta.items == 9
    before = ids(index)
    assert told(build(photos)) == {"added": ALL - 9, "unchanged": 9, "computed": ALL - 9}
    assert before.items() <= ids(index).items()


def test_interrupted_build_prunes_nothing(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    (photos / "rose" / "0.png").unlink()
    edit(photos / "blue" / "0.png", 980)

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(photos, progress=interrupt)
    assert "rose/0.png" in ids(index)
    assert told(build(photos)) == {"removed": 1, "unchanged": ALL - 1}


@pytest.mark.parametrize(
    "when",
    [
        "before",
        "after",
    ],
)
def test_interrupted_in_a_commit(
    build: Any, photos: Path, index: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Ctrl-C in the middle of a build, while a commit begins or when it is just done."""
    monkeypatch.setattr(sync, "COMMIT_IMAGES", 4)
    apply, calls = Database.apply, itertools.count()

    def interrupted(store: Database, changes: Any) -> None:
        if next(calls) == 1:
            if when == "after":
                apply(store, changes)
            raise KeyboardInterrupt
        apply(store, changes)

    monkeypatch.setattr(Database, "apply", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(photos, batch_size=4)
    done = len(ids(index))
    assert done >= 4
    assert told(build(photos)) == {"added": ALL - done, "unchanged": done, "computed": ALL - done}
