"""Why a file is not in an index."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from simsearch import api
from simsearch.errors import UsageError
from simsearch.indexing import presence
from simsearch.indexing.presence import Presence
from tests.helpers.models import Colours
from tests.helpers.pictures import CLASSES, EACH, draw
from tests.helpers.sources import png, write_tar, write_zip

FILM = b"\0\0\0\x18ftypmp42"


def asked(index: Path, *names: Path | str) -> list[Presence]:
    with api.open(index, model=Colours(), device="cpu") as engine:
        return engine.presence(list(names))


def reason(index: Path, name: Path | str) -> str | None:
    (found,) = asked(index, name)
    assert (found.reason is None) == bool(found.items or found.failures)
    assert not found.complete or found.reason is None
    return found.reason


def test_files_and_folders_that_are_in_the_index(build: Any, photos: Path, index: Path) -> None:
    (photos / CLASSES[0] / "cut.png").write_bytes(b"")
    build(photos)
    file, folder, cut = asked(
        index, photos / CLASSES[0] / "0.png", photos / CLASSES[0], photos / CLASSES[0] / "cut.png"
    )
    assert (file.items, file.failures, file.reason, file.complete) == ((1,), (), None, True)
    assert folder.items == tuple(range(1, EACH + 1))
    assert folder.failures == cut.failures == ((str(photos / CLASSES[0] / "cut.png"), "empty file"),)
    assert (folder.complete, cut.complete, cut.items, cut.reason) == (False, False, (), None)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("notes.txt", b"hello", presence.NOT_AN_IMAGE),
        ("film.mp4", FILM, "videos are not read"),
        (".hidden/0.png", png(), presence.HIDDEN),
        ("thumbs/0.png", png(), "--exclude thumbs/ leaves it out"),
        ("thumbs", None, "--exclude thumbs/ leaves it out"),
        ("bare", None, presence.NOTHING),
        ("missing.png", None, presence.GONE),
    ],
)
def test_reasons_in_a_folder(
    name: str, data: bytes | None, expected: str, build: Any, photos: Path, index: Path
) -> None:
    for folder in ("thumbs", "bare"):
        (photos / folder).mkdir()
    if data is not None:
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(data)
    build(photos, exclude=["thumbs/"])
    assert reason(index, photos / name) == expected


def test_new_removed_and_single_files(build: Any, photos: Path, index: Path, tmp_path: Path) -> None:
    build(photos)
    draw(photos / "new.png", 931)
    assert reason(index, photos / "new.png") == presence.NEW
    with api.open(index, model=Colours(), device="cpu") as engine:
        engine.remove("id:1")
    assert reason(index, photos / CLASSES[0] / "0.png") == presence.NEW
    draw(tmp_path / "apart" / "0.png", 932)
    draw(tmp_path / "apart" / "1.png", 933)
    outside = reason(index, tmp_path / "apart" / "1.png")
    assert outside == f"it is in no source of the index ({photos}); `simsearch add` adds it"
    build(tmp_path / "apart" / "0.png", prune=False)
    assert reason(index, tmp_path / "apart" / "1.png") == presence.SINGLE


def test_pipe_is_not_waited_for(build: Any, photos: Path, index: Path) -> None:
    os.mkfifo(photos / "pipe")
    build(photos)
    assert reason(index, photos / "pipe") == presence.NOT_AN_IMAGE


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_of_archives(kind: str, build: Any, index: Path, tmp_path: Path) -> None:
    write = write_zip if kind == "zip" else write_tar
    place = write(tmp_path / f"x.{kind}", "a/0.png", "a/.1.png")
    build(place)
    assert reason(index, f"{place}!/a/0.png") is None
    assert reason(index, f"{place}!/a/.1.png") == presence.NOT_LISTED
    write(place, "a/0.png", "b/2.png")
    assert reason(index, f"{place}!/b/2.png") == presence.NEW
    place.unlink()
    assert reason(index, f"{place}!/b/2.png") == f"there is no {place} now"


def test_rows_of_tables(build: Any, photos: Path, index: Path) -> None:
    table = photos / "table.csv"
    table.write_text(f"path\n{CLASSES[0]}/0.png\n")
    build(table)
    other = photos / CLASSES[0] / "1.png"
    assert reason(index, photos / CLASSES[0] / "0.png") is None
    assert reason(index, other) == f"it is in no source of the index ({table}); `simsearch add` adds it"
    table.write_text(f"path\n{CLASSES[0]}/0.png\n{CLASSES[0]}/1.png\n")
    assert reason(index, other) == presence.NEW


def test_empty_name(build: Any, photos: Path, index: Path) -> None:
    build(photos)
    with pytest.raises(UsageError, match="an empty name matches no item"):
        asked(index, "")
