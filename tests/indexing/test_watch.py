"""An index that follows its sources."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from simsearch import api
from simsearch.engine import Engine
from simsearch.errors import IndexLockedError, MissingExtraError, UsageError
from simsearch.indexing import sync, watch
from simsearch.indexing.options import BuildOptions, Summary
from tests.helpers.models import Colours
from tests.helpers.pictures import draw

Wait = Callable[[Callable[[], bool]], None]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "TICK", 100)
    monkeypatch.setattr(watch, "QUIET", 50)


class Follower:
    """Follows an index in a thread. news: what it said; updates: how often it updated."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.stop, self.updates = engine, threading.Event(), 0
        self.news: list[Summary | str] = []
        self.fails: list[Exception] = []
        self.thread = threading.Thread(
            target=watch.follow, args=(engine.index, self.update, self.news.append, self.stop)
        )
        self.thread.start()

    def update(self) -> Summary:
        self.updates += 1
        if self.fails:
            raise self.fails.pop()
        return sync.sync(self.engine.index, self.engine.model, [], BuildOptions(keep_gone=True))

    def paths(self) -> set[str]:
        return {os.path.relpath(item.path, self.engine.path.parent) for item in self.engine}

    def wait(self, condition: Callable[[], bool]) -> None:
        """Waits until a condition holds; fails after ten seconds."""
        for _ in range(1000):
            if condition():
                return
            time.sleep(0.01)
        raise AssertionError(f"{self.paths()}, {self.news}")

    def settle(self) -> None:
        """Waits until the watch has begun and nothing is left to do."""
        before = -1
        while before != self.updates or not self.updates:
            before = self.updates
            time.sleep(0.4)


@pytest.fixture
def follower(photos: Path, tmp_path: Path, colours: Colours) -> Iterator[Follower]:
    with api.build(photos, tmp_path / "index", colours) as engine:
        follower = Follower(engine)
        try:
            follower.settle()
            yield follower
        finally:
            follower.stop.set()
            follower.thread.join(10)
            assert not follower.thread.is_alive()


def test_new_changed_moved_and_gone_files(follower: Follower, photos: Path, colours: Colours) -> None:
    draw(photos / "new" / "deep" / "a.png", 100)
    follower.wait(lambda: "photos/new/deep/a.png" in follower.paths())
    computed = colours.computed
    (photos / "new").rename(photos / "newer")
    follower.wait(lambda: "photos/newer/deep/a.png" in follower.paths() and len(follower.engine) == 25)
    assert colours.computed == computed
    (photos / "newer" / "deep" / "a.png").unlink()
    (photos / "rose" / "0.png").rename(photos / "b.png")
    follower.wait(lambda: "photos/b.png" in follower.paths() and len(follower.engine) == 24)
    assert colours.computed == computed
    draw(photos / "b.png", 101)
    follower.wait(lambda: colours.computed == computed + 1)
    follower.settle()
    assert not follower.engine.verify().problems


def test_file_that_is_written_slowly(follower: Follower, photos: Path, tmp_path: Path) -> None:
    """A part of a picture is read, fails or not, and the whole one at the end."""
    content = draw(tmp_path / "whole.png", 100).read_bytes()
    with open(photos / "slow.png", "wb") as file:
        for start in range(0, len(content), 20):
            file.write(content[start : start + 20])
            file.flush()
            time.sleep(0.08)
    follower.wait(lambda: "photos/slow.png" in follower.paths())
    follower.settle()
    with follower.engine.reading() as reader:
        assert reader.failure_count() == 0
    match = follower.engine.search(tmp_path / "whole.png", k=1)[0]
    assert match.path == str(photos / "slow.png") and match.distance == 0


def test_folder_that_vanishes_and_returns(follower: Follower, photos: Path, tmp_path: Path) -> None:
    photos.rename(tmp_path / "away")
    follower.wait(lambda: any("is gone" in str(news) for news in follower.news))
    follower.settle()
    assert len(follower.engine) == 24
    draw(tmp_path / "away" / "meanwhile.png", 100)
    (tmp_path / "away").rename(photos)
    follower.wait(lambda: len(follower.engine) == 25)
    draw(photos / "later.png", 101)
    follower.wait(lambda: len(follower.engine) == 26)


def test_replaced_folder(follower: Follower, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "copy")
    draw(tmp_path / "copy" / "new.png", 100)
    shutil.rmtree(photos)
    (tmp_path / "copy").rename(photos)
    follower.wait(lambda: "photos/new.png" in follower.paths())
    draw(photos / "later.png", 101)
    follower.wait(lambda: "photos/later.png" in follower.paths())


def test_hidden_files_and_the_index_are_no_news(follower: Follower, photos: Path) -> None:
    updates = follower.updates
    draw(photos / ".hidden" / "a.png", 100)
    draw(photos / "rose" / ".a.png", 101)
    (follower.engine.path / "note").touch()
    time.sleep(0.5)
    assert follower.updates <= updates + 1 and len(follower.engine) == 24  # the making of .hidden may be news


def test_index_inside_its_source(tmp_path: Path, photos: Path, colours: Colours) -> None:
    """Writing to the index does not wake its own watcher."""
    with api.build(photos, photos / "index", colours) as engine:
        follower = Follower(engine)
        try:
            follower.settle()
            updates = follower.updates
            draw(photos / "new.png", 100)
            follower.wait(lambda: len(engine) == 25)
            follower.settle()
            assert follower.updates <= updates + 2
        finally:
            follower.stop.set()
            follower.thread.join(10)


def test_archive_that_changes(tmp_path: Path, colours: Colours) -> None:
    draw(tmp_path / "0.png", 0)
    draw(tmp_path / "1.png", 1)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "0.png", "0.png")
    with api.build(tmp_path / "a.zip", tmp_path / "index", colours) as engine:
        follower = Follower(engine)
        try:
            follower.settle()
            with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
                archive.write(tmp_path / "1.png", "1.png")
            follower.wait(lambda: len(engine) == 2)
        finally:
            follower.stop.set()
            follower.thread.join(10)


def test_problem_is_said_once_and_tried_again(follower: Follower, photos: Path) -> None:
    follower.fails += [IndexLockedError("process 7 is writing"), IndexLockedError("process 7 is writing")]
    draw(photos / "new.png", 100)
    follower.wait(lambda: len(follower.engine) == 25)
    assert follower.news.count("process 7 is writing") == 1


def test_many_files_at_once(follower: Follower, photos: Path) -> None:
    for number in range(300):
        draw(photos / "many" / f"{number % 7}" / f"{number}.png", 1000 + number)
    follower.wait(lambda: len(follower.engine) == 324)


def test_too_many_folders(photos: Path, tmp_path: Path, colours: Colours, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*folders: str, **options: object) -> Iterator[object]:
        raise RuntimeError("OS file watch limit reached")

    monkeypatch.setattr(watch, "check_available", lambda: refuse)
    with api.build(photos, tmp_path / "index", colours) as engine, pytest.raises(UsageError, match="limit reached"):
        watch.follow(engine.index, Summary, lambda news: None, threading.Event())


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    with pytest.raises(MissingExtraError, match=r"\[watch\]"):
        watch.check_available()
