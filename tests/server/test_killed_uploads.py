"""`kill -9` while a picture is uploaded or removed over HTTP: nothing is left, and nothing that was answered is lost."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

import simsearch
from simsearch.common.machine import MemoryBudget
from simsearch.engine import Engine
from simsearch.errors import ItemNotFoundError, UsageError
from simsearch.indexing import options, sync, upload_folder
from simsearch.indexing.compact import compact
from simsearch.server import uploads
from simsearch.storage import database
from simsearch.storage.verify import verify
from tests.helpers.client import png
from tests.helpers.dying import trace
from tests.helpers.models import Colours
from tests.helpers.pictures import draw

PICTURE, OTHER = png((9, 9)), png((9, 10))


@pytest.fixture
def base(tmp_path):
    """The folder of an index of two pictures and an uploaded one."""
    for number in range(2):
        draw(tmp_path / "photos" / "a" / f"{number}.png", number)
    with simsearch.build(tmp_path / "photos", tmp_path / "base", model=Colours(), workers=1) as engine:
        upload(engine, PICTURE)
    return tmp_path / "base"


def upload(engine, data):
    return uploads.Uploads().add(engine, {"image": data, "label": "x"}, 1 << 20, MemoryBudget(1 << 26))[0]


def remove(engine, number=3):
    uploads.Uploads().remove(engine, number)


def rebuild(engine):
    return sync.sync(engine.index, engine.model, [], options.BuildOptions(workers=1))


def opened(index):
    return Engine(index, model=Colours())


def names(index):
    with opened(index) as engine:
        assert verify(engine.index).problems == ()
        return upload_folder.names(engine.index)


def killed(index, act, fatal):
    """Kills `act` at a line; returns False if it ended before."""
    child = os.fork()
    if child == 0:
        try:
            with opened(index) as engine:
                trace(fatal, uploads, upload_folder, database)
                act(engine)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def every_death(base, act, step):
    """Yields the index after a death at every `step`th line, each time as it was at first."""
    kept = base.parent / "kept"
    base.rename(kept)
    fatal, deaths = 1, 0
    while True:
        shutil.rmtree(base, ignore_errors=True)
        shutil.copytree(kept, base)
        if not killed(base, act, fatal):
            break
        yield base
        fatal, deaths = fatal + step, deaths + 1
    assert deaths > 15


def files(index):
    return {path.name for path in Path(index, "uploads").iterdir()} - {"items.jsonl"}


@pytest.mark.parametrize("act", [lambda engine: upload(engine, OTHER), remove], ids=["upload", "removal"])
def test_build_and_compaction_finish_what_was_begun(base, act):
    """Also the removal of the last upload, after which the manifest is empty."""
    for index in every_death(base, act, 7):
        with opened(index) as engine:
            rebuild(engine)
            compact(engine.index)
            assert rebuild(engine).unchanged == len(engine)
        assert files(index) == names(index)


def test_picture_that_comes_again_is_kept(base):
    """Though its removal, which died, has taken its line already."""
    for index in every_death(base, remove, 7):
        with opened(index) as engine:
            upload(engine, PICTURE)
            rebuild(engine)
            assert len(engine) == 3
        assert files(index) == names(index)
        assert len(files(index)) == 1


def test_upload_that_comes_again_is_there_once(base):
    for index in every_death(base, lambda engine: upload(engine, OTHER), 7):
        with opened(index) as engine:
            upload(engine, OTHER)
            assert rebuild(engine).unchanged == len(engine) == 4
        assert files(index) == names(index)


def test_removal_that_comes_again(base):
    for index in every_death(base, remove, 7):
        with opened(index) as engine:
            try:
                remove(engine)
            except ItemNotFoundError:
                uploads.Uploads()._sweep(engine)
            assert len(engine) == 2
            rebuild(engine)
            assert len(engine) == 2
        assert files(index) == set()


def test_manifest_that_lost_its_content_removes_nothing(base):
    """Only a manifest that says so has been emptied on purpose."""
    for content in (b"", None):
        with opened(base) as engine:
            manifest = base / "uploads" / "items.jsonl"
            manifest.unlink() if content is None else manifest.write_bytes(content)
            with pytest.raises(UsageError, match=r"holds no images|cannot be read"):
                rebuild(engine)
            assert len(engine) == 3


def test_incomplete_line_stops_no_build(base):
    with open(base / "uploads" / "items.jsonl", "ab") as manifest:
        manifest.write(b'{"path": "12')
    with opened(base) as engine:
        assert rebuild(engine).unchanged == 3
    assert (base / "uploads" / "items.jsonl").read_bytes().count(b"\n") == 1


def test_compaction_leaves_a_folder_in_use_alone(base):
    (base / "uploads" / ("0" * 64)).write_bytes(b"being written")
    with opened(base) as engine:
        with upload_folder.locked(upload_folder.open_folder(engine.index)):
            compact(engine.index)
            assert len(files(base)) == 2
        compact(engine.index)
    assert files(base) == names(base)
