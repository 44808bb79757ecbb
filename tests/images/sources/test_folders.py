"""Folders as sources."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import simsearch
from simsearch.errors import ImageError, UsageError
from simsearch.images.sources import base, resolve
from simsearch.images.sources.base import Entry, FolderSource
from simsearch.indexing import options
from tests.helpers.models import CellModel
from tests.helpers.sources import listed, paths, png, put, write_tar, write_zip

# -- folders


def test_folder_lists_relative_paths_in_order(tmp_path: Path) -> None:
    put(tmp_path, "b.png", "a/2.png", "a/1.png", "a/x/3.png", "B.PNG")
    assert paths(listed(tmp_path)) == ["B.PNG", "b.png", "a/1.png", "a/2.png", "a/x/3.png"]
    entry = listed(tmp_path).entries[1]
    facts = (tmp_path / "b.png").stat()
    assert (entry.size, entry.stamp, entry.problem) == (facts.st_size, facts.st_mtime_ns, None)
    assert FolderSource(str(tmp_path)).read("a/x/3.png") == (tmp_path / "a/x/3.png").read_bytes()


def test_hidden_files_and_folders_are_left_alone(tmp_path: Path) -> None:
    listing = listed(put(tmp_path, "a.png", ".b.png", ".cache/c.png", "d/.e/f.png"))
    assert (paths(listing), listing.skipped) == (["a.png"], 0)


def test_hidden_folder_can_be_named(tmp_path: Path) -> None:
    assert paths(listed(put(tmp_path / ".pictures", "a.png"))) == ["a.png"]


def zipped(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder.parent / "archive"), "zip", folder))


def test_file_that_is_no_image_is_counted(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").touch()
    assert listed(tmp_path).skipped == 2


def test_videos_and_drawings_are_counted_by_kind(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    for name in ("a.mp4", "b.MOV", "c.svg"):
        (tmp_path / name).touch()
    for listing in (listed(tmp_path), listed(zipped(tmp_path))):
        assert listing.left_out == {"videos, which are not read": 2, "SVG drawings, which are not read": 1}
        assert listing.skipped == 3


def test_content_is_recognised_without_extension(tmp_path: Path) -> None:
    put(tmp_path, "picture", "picture.txt", "IMG_0001")
    assert paths(listed(tmp_path)) == ["IMG_0001", "picture", "picture.txt"]


def test_image_extension_is_listed_always(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.PNG").touch()
    assert paths(listed(tmp_path)) == ["empty.PNG", "text.jpg"]


@pytest.mark.parametrize(
    ("exclude", "expected"),
    [
        (["raw"], ["a.png", "raw.png"]),
        (["raw/*"], ["a.png", "raw.png"]),
        (["r*"], ["a.png"]),
        (["*.png"], []),
        (["deep"], ["a.png", "raw.png", "raw/1.png"]),
        (["raw/deep"], ["a.png", "raw.png", "raw/1.png"]),
        (["1.png", "2.png"], ["a.png", "raw.png"]),
        (["RAW"], ["a.png", "raw.png", "raw/1.png", "raw/deep/2.png"]),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_excluded_names_and_folders_are_left_out(
    kind: str, exclude: list[str], expected: list[str], tmp_path: Path
) -> None:
    names = ["a.png", "raw.png", "raw/1.png", "raw/deep/2.png"]
    place = {
        "folder": lambda: put(tmp_path, *names),
        "zip": lambda: write_zip(tmp_path / "x.zip", *names),
        "tar": lambda: write_tar(tmp_path / "x.tar", *names),
    }[kind]()
    assert paths(listed(place, exclude)) == expected


def test_links_that_lead_back_up_end(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "here").symlink_to(".")
    assert paths(listed(tmp_path)) == ["a/1.png"]


def test_folder_linked_twice_is_listed_once(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png")
    (tmp_path / "b").symlink_to("a")
    assert paths(listed(tmp_path)) == ["a/1.png"]


def test_link_to_itself_is_broken_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "self").symlink_to("self")
    listing = listed(put(tmp_path, "a.png"))
    assert paths(listing) == ["a.png", "self.png"]
    assert "symbolic links" in str(listing.entries[1].problem)
    assert listing.skipped == 1


def test_links_to_elsewhere_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "one.png", "more/two.png")
    root = put(tmp_path / "root", "three.png")
    (root / "link.png").symlink_to(tmp_path / "elsewhere/one.png")
    (root / "folder").symlink_to(tmp_path / "elsewhere/more")
    assert paths(listed(root)) == ["link.png", "three.png", "folder/two.png"]
    assert FolderSource(str(root)).read("folder/two.png") == (tmp_path / "elsewhere/more/two.png").read_bytes()


def test_broken_link_is_an_image_with_a_problem(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "gone").symlink_to("nowhere")
    listing = listed(tmp_path)
    assert [(entry.path, entry.problem) for entry in listing.entries] == [("gone.jpg", base.GONE)]
    assert listing.skipped == 1


@pytest.mark.parametrize("name", ["pipe", "pipe.jpg"])
def test_pipe_is_skipped_and_never_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    refused: list[str] = []

    def use() -> None:
        refused.append(f"{len(listed(tmp_path).entries)} listed, {listed(tmp_path).skipped} skipped")
        try:
            resolve.read_path(str(tmp_path / name))
        except ImageError as error:
            refused.append(str(error))

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    thread.join(10)
    if thread.is_alive():  # let it go
        os.close(os.open(tmp_path / name, os.O_RDWR))
    assert refused == ["0 listed, 1 skipped", "not a regular file"]


@pytest.mark.parametrize("name", ["pipe", "pipe.jpg", "pipe.csv", "pipe.zip", "pipe.parquet"])
def test_pipe_is_no_source(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UsageError, match="is not a regular file"):
        resolve.resolve(str(tmp_path / name))
    with pytest.raises(UsageError, match="is not a regular file"):
        resolve.resolve(os.devnull)


def test_unlistable_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a/1.png", "b/2.png")
    scan = os.scandir

    def refusing(folder: str) -> Any:
        if folder.endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    listing = listed(tmp_path)
    assert (paths(listing), listing.unread) == (["b/2.png"], [("a", "Permission denied")])


def test_items_of_unlistable_folder_stay(
    tmp_path: Path, build: Callable[..., options.Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = put(tmp_path / "root", "a/1.png", "a/x/2.png", "b/3.png")
    build(root)
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda f: scan(f) if not f.endswith("/a") else scan("/nowhere"))
    summary = build(root)
    assert (summary.items, summary.removed, summary.unchanged) == (3, 0, 1)
    assert summary.unread == [(str(root / "a"), base.GONE)]


def test_missing_root_is_refused_removes_nothing(tmp_path: Path, build: Callable[..., options.Summary]) -> None:
    root = put(tmp_path / "root", "a/1.png", "a/2.png")
    build(root)
    root.rename(tmp_path / "unmounted")
    with pytest.raises(UsageError, match=r"root holds no images, but the index has 2 items from it") as caught:
        build()
    assert "is the disk mounted?" in str(caught.value.hint)
    assert build(prune=False).items == 2
    (tmp_path / "unmounted").rename(root)
    assert build().unchanged == 2


def test_index_inside_its_own_source_is_skipped(tmp_path: Path, build: Callable[..., options.Summary]) -> None:
    put(tmp_path, "a.png")
    build(tmp_path)
    put(tmp_path / "index", "b.png")
    assert (tmp_path / "index/items.sqlite").exists()
    assert paths(listed(tmp_path)) == ["a.png"]


@pytest.mark.parametrize(
    "name", ["new\nline.png", "tab\t'\"quote.png", " .png", "!", "a!/b.png", "\U0001f408.png", "-k.png"]
)
def test_odd_names_are_read_as_printed(name: str, tmp_path: Path) -> None:
    put(tmp_path, name)
    (path,) = paths(listed(tmp_path))
    assert path == name
    source = FolderSource(str(tmp_path))
    assert source.read(path) == resolve.read_path(source.display(path)) == (tmp_path / name).read_bytes()


def test_names_that_are_no_utf8_survive(tmp_path: Path, build: Callable[..., options.Summary]) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"root", b"\xff\xfe")
    os.makedirs(folder)
    with open(os.path.join(folder, b"caf\xe9.png"), "wb") as file:
        file.write(png())
    (path,) = paths(listed(tmp_path / "root"))
    assert os.fsencode(path) == b"\xff\xfe/caf\xe9.png"
    assert FolderSource(str(tmp_path / "root")).read(path) == png()
    build(tmp_path / "root")
    with simsearch.open(tmp_path / "index", model=CellModel()) as engine:
        (match,) = engine.search(png())
    assert os.path.exists(match.path)
    assert match.label == "\ufffd\ufffd"
    assert build(tmp_path / "root").unchanged == 1


@pytest.mark.parametrize("year", [1960, 2400])
def test_file_times_of_any_century_can_be_kept(
    year: int, tmp_path: Path, build: Callable[..., options.Summary]
) -> None:
    put(tmp_path / "root", "a.png")
    seconds = (year - 1970) * 31_556_952
    os.utime(tmp_path / "root/a.png", (seconds, seconds))
    assert build(tmp_path / "root").added == 1
    assert build(tmp_path / "root").unchanged == 1


def test_single_file_is_a_source(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "a/2.png")
    listing = listed(tmp_path / "a/1.png")
    assert paths(listing) == ["1.png"]


def test_files_beyond_the_limit_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.png")
    write_zip(tmp_path / "a.zip", "a.png")
    write_tar(tmp_path / "a.tar", "a.png")
    for module in ("base", "archives"):
        monkeypatch.setattr(f"simsearch.images.sources.{module}.LARGEST_BYTES", 10)
    for name in ("a.png", "a.zip!/a.png", "a.tar!/a.png"):
        with pytest.raises(ImageError, match=r"^too large: .*the limit is 10"):
            resolve.read_path(str(tmp_path / name))


# -- labels


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat/1.png", "dog/2.png"], ["cat", "dog"]),
        (["train/cat/1.png", "test/cat/2.png"], ["cat", "cat"]),
        (["cat/1.png", "2.png"], ["cat", None]),
        (["1.png"], [None]),
        ([], []),
    ],
)
def test_folders_are_labels(names: list[str], expected: list[str | None]) -> None:
    assert base.folder_labels([Entry(name, 1, 1) for name in names]) == expected
