"""Where images come from: what is listed, what is skipped, what is read, and what is said of what cannot be."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import simsearch
from simsearch import api, archives, images, manifests, opening, sources, sync
from simsearch.errors import ImageError, MissingExtraError, UsageError
from simsearch.sources import Entry, FolderSource, Listing, Source
from tests.models import CellModel

needs_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")


def png(seed: int = 0) -> bytes:
    """A small picture; another seed gives another one."""
    out = io.BytesIO()
    colours = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    Image.fromarray(colours.repeat(8, 0).repeat(8, 1)).save(out, "PNG")
    return out.getvalue()


def put(root: Path, *names: str) -> Path:
    """Writes a different picture to each path below a folder."""
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed))
    return root


def listed(place: Path, exclude: Sequence[str] = ()) -> Listing:
    source = opening.resolve(str(place))
    try:
        return source.listing(exclude)
    finally:
        source.close()


def paths(listing: Listing) -> list[str]:
    return [entry.path for entry in listing.entries]


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Callable[..., sync.Summary]]:
    """Builds `tmp_path/index` from places, or brings it up to date where none are named."""
    opened: list[simsearch.Engine] = []

    def run(*places: Path, **options: Any) -> sync.Summary:
        names = [str(place) for place in places]
        engine, summary = api.build_with_summary(
            names, tmp_path / "index", CellModel(), device="cpu", options=sync.Options(**options)
        )
        opened.append(engine)
        return summary

    yield run
    for engine in opened:
        engine.close()


# -- folders


def test_folder_lists_its_images_by_relative_path_in_a_fixed_order(tmp_path: Path) -> None:
    put(tmp_path, "b.png", "a/2.png", "a/1.png", "a/x/3.png", "B.PNG")
    assert paths(listed(tmp_path)) == ["B.PNG", "b.png", "a/1.png", "a/2.png", "a/x/3.png"]
    entry = listed(tmp_path).entries[1]
    facts = (tmp_path / "b.png").stat()
    assert (entry.size, entry.stamp, entry.problem) == (facts.st_size, facts.st_mtime_ns, None)
    assert FolderSource(str(tmp_path)).read("a/x/3.png") == (tmp_path / "a/x/3.png").read_bytes()


def test_hidden_files_and_folders_are_left_alone(tmp_path: Path) -> None:
    listing = listed(put(tmp_path, "a.png", ".b.png", ".cache/c.png", "d/.e/f.png"))
    assert (paths(listing), listing.skipped) == (["a.png"], 0)


def test_folder_that_is_hidden_itself_can_be_named(tmp_path: Path) -> None:
    assert paths(listed(put(tmp_path / ".pictures", "a.png"))) == ["a.png"]


def test_file_that_is_no_image_is_counted(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").touch()
    assert listed(tmp_path).skipped == 2


def test_content_is_recognised_without_an_extension(tmp_path: Path) -> None:
    put(tmp_path, "picture", "picture.txt", "IMG_0001")
    assert paths(listed(tmp_path)) == ["IMG_0001", "picture", "picture.txt"]


def test_file_that_claims_to_be_an_image_is_listed_whatever_it_holds(tmp_path: Path) -> None:
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
def test_excluded_names_paths_and_folders_are_left_out(
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


def test_folder_with_two_ways_to_it_is_listed_once(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png")
    (tmp_path / "b").symlink_to("a")
    assert paths(listed(tmp_path)) == ["a/1.png"]


def test_link_to_itself_is_a_broken_image_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "self").symlink_to("self")
    listing = listed(put(tmp_path, "a.png"))
    assert paths(listing) == ["a.png", "self.png"]
    assert "symbolic links" in str(listing.entries[1].problem)
    assert listing.skipped == 1


def test_links_to_files_and_folders_elsewhere_are_followed(tmp_path: Path) -> None:
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
    assert [(entry.path, entry.problem) for entry in listing.entries] == [("gone.jpg", sources.GONE)]
    assert listing.skipped == 1


@pytest.mark.parametrize("name", ["pipe", "pipe.jpg"])
def test_pipe_is_skipped_and_never_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    refused: list[str] = []

    def use() -> None:
        refused.append(f"{len(listed(tmp_path).entries)} listed, {listed(tmp_path).skipped} skipped")
        try:
            opening.read_path(str(tmp_path / name))
        except ImageError as error:
            refused.append(str(error))

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    thread.join(10)
    if thread.is_alive():  # let it go
        os.close(os.open(tmp_path / name, os.O_RDWR))
    assert refused == ["0 listed, 1 skipped", "not a regular file"]


def test_folder_that_cannot_be_listed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a/1.png", "b/2.png")
    scan = os.scandir

    def refusing(folder: str) -> Any:
        if folder.endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    listing = listed(tmp_path)
    assert (paths(listing), listing.unread) == (["b/2.png"], [("a", "Permission denied")])


def test_what_lies_in_a_folder_that_cannot_be_listed_stays_in_the_index(
    tmp_path: Path, build: Callable[..., sync.Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = put(tmp_path / "root", "a/1.png", "a/x/2.png", "b/3.png")
    build(root)
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda f: scan(f) if not f.endswith("/a") else scan("/nowhere"))
    summary = build(root)
    assert (summary.items, summary.removed, summary.unchanged) == (3, 0, 1)
    assert summary.unread == [(str(root / "a"), sources.GONE)]


def test_root_that_is_gone_is_an_error_and_removes_nothing(tmp_path: Path, build: Callable[..., sync.Summary]) -> None:
    root = put(tmp_path / "root", "a/1.png", "a/2.png")
    build(root)
    root.rename(tmp_path / "unmounted")
    with pytest.raises(UsageError, match=r"root holds no images, but the index has 2 from it") as caught:
        build()
    assert "is the disk mounted?" in str(caught.value.hint)
    assert build(prune=False).items == 2
    (tmp_path / "unmounted").rename(root)
    assert build().unchanged == 2


def test_index_inside_its_own_source_is_skipped(tmp_path: Path, build: Callable[..., sync.Summary]) -> None:
    put(tmp_path, "a.png")
    build(tmp_path)
    put(tmp_path / "index", "b.png")
    assert (tmp_path / "index/items.sqlite").exists()
    assert paths(listed(tmp_path)) == ["a.png"]


@pytest.mark.parametrize(
    "name", ["new\nline.png", "tab\t'\"quote.png", " .png", "!", "a!/b.png", "\U0001f408.png", "-k.png"]
)
def test_odd_names_are_listed_read_and_opened_as_printed(name: str, tmp_path: Path) -> None:
    put(tmp_path, name)
    (path,) = paths(listed(tmp_path))
    assert path == name
    source = FolderSource(str(tmp_path))
    assert source.read(path) == opening.read_path(source.display(path)) == (tmp_path / name).read_bytes()


def test_names_that_are_no_utf8_survive(tmp_path: Path, build: Callable[..., sync.Summary]) -> None:
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
def test_file_times_of_any_century_can_be_kept(year: int, tmp_path: Path, build: Callable[..., sync.Summary]) -> None:
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
    for module in ("sources", "archives"):
        monkeypatch.setattr(f"simsearch.{module}.LARGEST_BYTES", 10)
    for name in ("a.png", "a.zip!/a.png", "a.tar!/a.png"):
        with pytest.raises(ImageError, match=r"^too large: .*the limit is 10"):
            opening.read_path(str(tmp_path / name))


# -- labels


@pytest.mark.parametrize(
    ("names", "forced", "expected"),
    [
        (["cat/1.png", "dog/2.png"], False, ["cat", "dog"]),
        (["train/cat/1.png", "test/cat/2.png"], False, ["cat", "cat"]),
        (["cat/1.png", "2.png"], False, [None, None]),
        (["cat/1.png", "2.png"], True, ["cat", None]),
        (["1.png"], False, [None]),
        ([], False, []),
    ],
)
def test_folders_are_labels_if_every_image_sits_in_one(
    names: list[str], forced: bool, expected: list[str | None]
) -> None:
    assert sources.folder_labels([Entry(name, 1, 1) for name in names], forced) == expected


# -- arguments


def test_kind_of_a_source_follows_from_its_name(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "folder.zip/a.png")
    write_zip(tmp_path / "X.ZIP", "a.png")
    for name in ("x.tar", "x.tar.gz", "x.tgz", "x.tar.bz2", "x.tar.xz"):
        write_tar(tmp_path / name, "a.png")
    (tmp_path / "m.csv").write_text("path\na.png\n")
    (tmp_path / "m.jsonl").write_text('{"path": "a.png"}\n')
    kinds = {
        ".": "folder", "folder.zip": "folder", "a.png": "folder", "X.ZIP": "zip", "x.tar": "tar", "x.tar.gz": "tar",
        "x.tgz": "tar", "x.tar.bz2": "tar", "x.tar.xz": "tar", "m.csv": "manifest", "m.jsonl": "manifest",
    }  # fmt: skip
    for name, kind in kinds.items():
        source = opening.resolve(str(tmp_path / name))
        assert source.kind == kind, name
        assert paths(source.listing()), name
        source.close()
        again = opening.reopen(kind, source.root)
        assert type(again) is type(source)
        again.close()


def test_source_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="no file or folder at 'nowhere'"):
        opening.resolve("nowhere")
    with pytest.raises(UsageError, match="no file or folder at 'a"):
        opening.resolve("a\0b")
    with pytest.raises(UsageError, match="unknown kind 'tape'"):
        opening.reopen("tape", "/x")


# -- archives


def write_zip(place: Path, *names: str, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(place, "w", compression) as archive:
        for seed, name in enumerate(names):
            archive.writestr(name, png(seed))
    return place


def write_tar(place: Path, *names: str) -> Path:
    compression = {"gz": "gz", "tgz": "gz", "bz2": "bz2", "xz": "xz"}.get(place.suffix[1:], "")
    with tarfile.open(str(place), f"w:{compression}") as archive:  # type: ignore[call-overload]
        for seed, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(png(seed)), 1_000_000
            archive.addfile(member, io.BytesIO(png(seed)))
    return place


NESTED = ("cat/1.png", "data/train/dog/2.png", "cat/3")


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tar.xz"])
def test_archive_lists_images_and_labels_them_by_folder(
    name: str, tmp_path: Path, build: Callable[..., sync.Summary]
) -> None:
    place = (write_zip if name.endswith("zip") else write_tar)(tmp_path / name, *NESTED)
    listing = listed(place)
    assert sorted(paths(listing)) == sorted(NESTED)
    labels = sources.folder_labels(listing.entries, False)
    assert sorted(map(str, labels)) == ["cat", "cat", "dog"]
    assert build(place).items == 3
    with simsearch.open(tmp_path / "index", model=CellModel()) as engine:
        (match,) = engine.search(png(1), k=1)
        assert (match.path, match.label, match.distance) == (f"{place}!/data/train/dog/2.png", "dog", 0)
        assert opening.read_path(match.path) == png(1)


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_hidden_members_and_what_a_mac_adds_are_left_alone(name: str, tmp_path: Path) -> None:
    names = ("a.png", "__MACOSX/a.png", "__MACOSX/._a.png", "b/._c.png", ".hidden/d.png", "b/e.png")
    place = (write_zip if name.endswith("zip") else write_tar)(tmp_path / name, *names)
    assert paths(listed(place)) == ["a.png", "b/e.png"]


def test_member_that_is_no_image_is_counted(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", png())
        archive.writestr("notes.txt", "hello")
        archive.mkdir("folder.png")
    with tarfile.open(str(tmp_path / "x.tar"), "w") as tar:
        for name, data in (("a.png", png()), ("notes.txt", b"hello")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    for name in ("x.zip", "x.tar"):
        assert (paths(listed(tmp_path / name)), listed(tmp_path / name).skipped) == (["a.png"], 1)


def test_tar_of_the_current_folder_has_the_same_paths_as_any_other(tmp_path: Path) -> None:
    place = write_tar(tmp_path / "x.tar", "./cat/1.png", "./2.png")
    assert paths(listed(place)) == ["cat/1.png", "2.png"]
    assert sources.folder_labels(listed(place).entries, True) == ["cat", None]
    assert opening.read_path(f"{place}!/2.png") == png(1)


def test_member_whose_checksum_is_wrong_fails_alone(tmp_path: Path, build: Callable[..., sync.Summary]) -> None:
    place = write_zip(tmp_path / "x.zip", "a.png", "b.png", compression=zipfile.ZIP_STORED)
    data = bytearray(place.read_bytes())
    data[data.index(png(1)) + 60] ^= 255
    place.write_bytes(data)
    summary = build(place)
    assert (summary.items, summary.failed) == (1, 1)
    with pytest.raises(ImageError, match=r"cannot be read from the archive: Bad CRC-32"):
        opening.read_path(f"{place}!/b.png")


def test_encrypted_member_fails_with_its_reason(tmp_path: Path) -> None:
    place = write_zip(tmp_path / "x.zip", "a.png", "b", compression=zipfile.ZIP_STORED)
    data = bytearray(place.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag in both of each member's headers
        start = -1
        while (start := data.find(signature, start + 1)) >= 0:
            data[start + offset] |= 1
    place.write_bytes(data)
    listing = listed(place)
    assert (paths(listing), listing.skipped) == (["a.png"], 1)
    with pytest.raises(ImageError, match="encrypted, password required"):
        opening.read_path(f"{place}!/a.png")


def test_zip_made_anew_of_the_same_images_is_unchanged(tmp_path: Path, build: Callable[..., sync.Summary]) -> None:
    build(write_zip(tmp_path / "x.zip", *NESTED))
    summary = build(write_zip(tmp_path / "x.zip", *NESTED, compression=zipfile.ZIP_STORED))
    assert (summary.unchanged, summary.to_read) == (3, 0)


def test_of_two_members_with_one_name_the_last_counts(tmp_path: Path, build: Callable[..., sync.Summary]) -> None:
    with warnings.catch_warnings(action="ignore"):
        place = write_zip(tmp_path / "x.zip", "a.png", "a.png")
    tar = write_tar(tmp_path / "x.tar", "a.png", "a.png")
    assert build(place, tar).items == 2
    assert opening.read_path(f"{place}!/a.png") == opening.read_path(f"{tar}!/a.png") == png(1)


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tar.xz", "x.tar.zst"])
def test_file_that_is_no_archive_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"no archive at all " * 100)
    with pytest.raises(UsageError, match=rf"{name} cannot be read as a (zip|tar) archive: \S") as caught:
        opening.resolve(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert not str(caught.value).endswith(":")


@pytest.mark.parametrize("name", ["x.zip", "lzma.zip", "x.tar", "x.tar.gz", "x.tar.xz"])
def test_damaged_archives_are_refused_or_give_what_they_can(name: str, tmp_path: Path) -> None:
    place = tmp_path / name
    if name == "lzma.zip":
        write_zip(place, "a/1.png", "b/2", "\xfc.png", compression=zipfile.ZIP_LZMA)
    else:
        (write_zip if name.endswith("zip") else write_tar)(place, "a/1.png", "b/2", "\xfc.png")
    data = place.read_bytes()
    generator = np.random.default_rng(0)
    for attempt in range(150):
        damaged = bytearray(data)
        if attempt % 5 == 0:
            damaged = damaged[: generator.integers(0, len(data))]
        else:
            for spot in generator.integers(0, len(data), 4):
                damaged[spot] = generator.choice([0, 255, int(generator.integers(0, 256))])
        place.write_bytes(damaged)
        source: Source | None = None
        try:
            source = opening.resolve(str(place))
            for entry in source.listing().entries:
                try:
                    source.read(entry.path)
                except ImageError as refused:
                    assert str(refused).strip()
        except UsageError as refused:
            assert "\n" not in str(refused)
        finally:
            if source is not None:
                source.close()


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_archive_can_be_read_by_many_threads(name: str, tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(40)]
    source = opening.resolve(str((write_zip if name.endswith("zip") else write_tar)(tmp_path / name, *names)))
    wrong: list[str] = []

    def use() -> None:
        wrong.extend(name for number, name in enumerate(names) if source.read(name) != png(number))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    source.close()
    assert not wrong


def test_a_compressed_archive_is_not_begun_anew_for_one_step_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As threads ask: nearly in order. What is passed over and not asked for does not pile up."""
    names = [f"{number}.png" for number in range(40)]
    write_tar(tmp_path / "x.tar", *names)
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes()))
    source = opening.resolve(str(tmp_path / "x.tar.gz"))
    assert isinstance(source, archives.TarSource)
    assert len(source.listing().entries) == 40
    begun: list[int] = []
    seek = gzip.GzipFile.seek

    def noted(file: gzip.GzipFile, offset: int, whence: int = 0) -> int:
        begun.extend([offset] if not whence and offset < file.tell() else [])
        return seek(file, offset, whence)

    monkeypatch.setattr(gzip.GzipFile, "seek", noted)
    monkeypatch.setattr(archives, "KEPT", 3)
    for number in (2, 1, 0, 3, 5, 4, 39, 37, 38):
        assert source.read(f"{number}.png") == png(number)
    assert len(begun) == 1  # from the listing's end
    assert source.read("0.png") == png(0)
    assert source.read("39.png") == png(39)
    assert len(source._passed) <= 3
    source.close()


# -- paths as printed


def test_member_is_read_by_its_printed_path(tmp_path: Path) -> None:
    place = write_zip(tmp_path / "x.zip", "a/b.png")
    assert opening.read_path(f"{place}!/a/b.png") == png()
    with pytest.raises(ImageError, match="no such member in the archive"):
        opening.read_path(f"{place}!/a/c.png")


def test_folder_whose_name_ends_in_an_exclamation_mark_is_no_archive(tmp_path: Path) -> None:
    folder = put(tmp_path / "wow!", "a.png")
    write_zip(folder / "x.zip", "b/c!/d.png")
    assert opening.read_path(f"{folder}/a.png") == png()
    assert opening.read_path(f"{folder}/x.zip!/b/c!/d.png") == png()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.png", "No such file or directory"),
        ("nowhere.zip!/a.png", "no file or folder at"),
        ("broken.zip!/a.png", "cannot be read as a zip archive"),
        (".", "Is a directory"),
        ("a\0b.png", "null byte"),
        ("x" * 5000, "File name too long"),
    ],
)
def test_path_that_cannot_be_read_says_why(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(b"PK")
    with pytest.raises(ImageError, match=message):
        opening.read_path(os.path.join(tmp_path, name))


# -- manifests


def manifest(tmp_path: Path, text: str, name: str = "m.csv") -> Listing:
    put(tmp_path, "a.png", "b/c.png")
    (tmp_path / name).write_bytes(text.encode())
    return listed(tmp_path / name)


def test_csv_gives_labels_and_typed_metadata(tmp_path: Path) -> None:
    first, second = manifest(
        tmp_path,
        'path,label,year,price,code,note,share\na.png,cat,1999,1.50,007,"a ""quoted"", note",-1e-3\nb/c.png,7,,,,,\n',
    ).entries
    assert (first.path, first.label, second.label) == ("a.png", "cat", "7")
    assert first.metadata == {"year": 1999, "price": 1.5, "code": "007", "note": 'a "quoted", note', "share": -0.001}
    assert second.metadata is None
    assert first.size == (tmp_path / "a.png").stat().st_size
    assert first.problem is None


def test_json_lines_keep_their_types(tmp_path: Path) -> None:
    text = (
        '{"path": "a.png", "label": 3, "tags": ["x"], "ok": true, "none": null, "n": "5"}\n\n  \n{"path": "b/c.png"}\n'
    )
    first, second = manifest(tmp_path, text, "m.jsonl").entries
    assert (first.label, first.metadata) == ("3", {"tags": ["x"], "ok": True, "n": "5"})
    assert (second.path, second.label, second.metadata) == ("b/c.png", None, None)


def test_manifest_source_reads_relative_and_absolute_paths(tmp_path: Path) -> None:
    elsewhere = put(tmp_path / "elsewhere", "d.png")
    text = f"path\na.png\n{elsewhere}/d.png\nelsewhere/../b/c.png\n"
    assert [entry.problem for entry in manifest(tmp_path, text).entries] == [None] * 3
    source = opening.resolve(str(tmp_path / "m.csv"))
    assert source.display("a.png") == str(tmp_path / "a.png")
    assert source.display(f"{elsewhere}/d.png") == f"{elsewhere}/d.png"
    assert source.read(f"{elsewhere}/d.png") == png()
    assert source.read("a.png") == png(0)


def test_missing_file_of_a_manifest_is_a_failure(tmp_path: Path, build: Callable[..., sync.Summary]) -> None:
    manifest(tmp_path, "path\na.png\ngone.png\nb\n")
    summary = build(tmp_path / "m.csv")
    assert (summary.items, summary.failed) == (1, 2)
    with simsearch.open(tmp_path / "index", model=CellModel()) as engine:
        assert dict(engine.failures()) == {
            str(tmp_path / "gone.png"): "No such file or directory",
            str(tmp_path / "b"): "Is a directory",
        }


def test_path_named_twice_is_taken_once_and_excluded_ones_not_at_all(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b/c.png")
    (tmp_path / "m.csv").write_text("path,label\na.png,first\na.png,second\nb/c.png,x\n")
    assert [(entry.path, entry.label) for entry in listed(tmp_path / "m.csv", ["b"]).entries] == [("a.png", "first")]


def test_labels_of_a_manifest_are_its_own_and_no_folders(tmp_path: Path, build: Callable[..., sync.Summary]) -> None:
    manifest(tmp_path, "path,label\na.png,\nb/c.png,mine\n")
    build(tmp_path / "m.csv")
    with simsearch.open(tmp_path / "index", model=CellModel()) as engine:
        assert {match.relative: match.label for match in engine.search(png())} == {"a.png": None, "b/c.png": "mine"}


def test_changed_metadata_needs_no_computation(tmp_path: Path, build: Callable[..., sync.Summary]) -> None:
    manifest(tmp_path, "path,n\na.png,1\n")
    build(tmp_path / "m.csv")
    manifest(tmp_path, "path,n\na.png,2\n")
    os.utime(tmp_path / "a.png", (5, 5))
    assert build(tmp_path / "m.csv").computed == 0
    with simsearch.open(tmp_path / "index", model=CellModel()) as engine:
        assert [match.metadata for match in engine.search(png(), where={"n": 2})] == [{"n": 2}]


@pytest.mark.parametrize(("name", "text"), [("m.csv", "path\na.png\n"), ("m.jsonl", '{"path": "a.png"}')])
def test_byte_order_mark_and_windows_line_ends_do_not_matter(name: str, text: str, tmp_path: Path) -> None:
    assert paths(manifest(tmp_path, "\ufeff" + text.replace("\n", "\r\n"), name)) == ["a.png"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "", "the first line names no column 'path'"),
        ("m.csv", "file,label\na.png,x\n", "the first line names no column 'path'"),
        ("m.csv", "path,label\na.png,x\n,y\n", "line 3: there is no 'path'"),
        ("m.jsonl", '{"path": "a.png"}\n\nnope\n', "line 3: Expecting value"),
        ("m.jsonl", '{"path": "a.png"}\n[1]\n', "line 2: not a JSON object"),
        ("m.jsonl", '{"label": "x"}\n', "line 1: there is no 'path'"),
        ("m.jsonl", '{"path": 7}\n', "line 1: there is no 'path'"),
        ("m.jsonl", '{"path": "a\\ud800.png"}\n', r"line 1: the path 'a\\ud800.png' cannot name a file"),
        ("m.jsonl", '{"path": "a.png", "n": %s}\n' % ("9" * 5000), "line 1: Exceeds the limit"),
        ("m.jsonl", '{"path": "a.png", "n": %s}\n' % ("[" * 100_000), r"line 1: \S"),
    ],
)
def test_bad_lines_are_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"{name}(: |, ){message}"):
        manifest(tmp_path, text, name)


def test_manifest_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes("path\ncaf\xe9.png\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"m\.csv cannot be read: 'utf-8' codec"):
        listed(tmp_path / "m.csv")


def test_name_that_no_file_can_have_is_a_failure_of_that_line(tmp_path: Path) -> None:
    listing = manifest(tmp_path, '{"path": "a\\u0000b.png"}\n{"path": "a.png"}\n', "m.jsonl")
    assert [entry.problem for entry in listing.entries] == ["embedded null byte", None]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.jsonl", '{"path": "a.png", "x": NaN, "n": 1}\n{"path": "b/c.png", "x": [Infinity, 1e999], "n": 2}\n'),
        ("m.csv", "path,x,n\na.png,1e999,1\nb/c.png,%s,2\n" % ("9" * 5000)),
    ],
)
def test_numbers_that_json_cannot_hold_do_not_break_filters(
    name: str, text: str, tmp_path: Path, build: Callable[..., sync.Summary]
) -> None:
    manifest(tmp_path, text, name)
    build(tmp_path / name)
    with simsearch.open(tmp_path / "index", model=CellModel()) as engine:
        (match,) = engine.search(png(), where={"n": 1})
        assert match.relative == "a.png"
        json.dumps([match.metadata for match in engine.search(png())], allow_nan=False)


def test_halves_of_characters_in_a_label_are_replaced(tmp_path: Path, build: Callable[..., sync.Summary]) -> None:
    manifest(tmp_path, '{"path": "a.png", "label": "a\\ud800b"}\n', "m.jsonl")
    build(tmp_path / "m.jsonl")
    with simsearch.open(tmp_path / "index", model=CellModel()) as engine:
        assert engine.search(png())[0].label == "a?b"


# -- Parquet


def table(place: Path, columns: dict[str, Any], **options: Any) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), place, **options)
    return place


@needs_pyarrow
def test_parquet_column_of_bytes_with_labels_and_metadata(tmp_path: Path, build: Callable[..., sync.Summary]) -> None:
    data = [png(seed) for seed in range(3)]
    place = table(tmp_path / "x.parquet", {"n": [1, 2, 3], "photo": data, "label": ["cat", None, "dog"]})
    listing = listed(place)
    assert paths(listing) == ["row-00000000", "row-00000001", "row-00000002"]
    assert [entry.label for entry in listing.entries] == ["cat", None, "dog"]
    assert [entry.metadata for entry in listing.entries] == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert build(place).items == 3
    with simsearch.open(tmp_path / "index", model=CellModel()) as engine:
        (match,) = engine.search(data[2], k=1, where={"n": 3})
    assert (match.path, match.label, match.distance) == (f"{place}!/row-00000002", "dog", 0)
    assert opening.read_path(match.path) == data[2]
    assert build(place).unchanged == 3


@needs_pyarrow
def test_parquet_struct_as_hugging_face_writes_it(tmp_path: Path) -> None:
    rows = [{"bytes": png(seed), "path": f"{seed}.png"} for seed in range(2)]
    place = table(tmp_path / "x.parquet", {"other": [b"1", b"2"], "image": rows, "label": [0, 1]})
    assert [entry.label for entry in listed(place).entries] == ["0", "1"]
    assert opening.read_path(f"{place}!/row-00000001") == png(1)


@needs_pyarrow
def test_parquet_path_column_names_rows_where_it_is_unique(tmp_path: Path) -> None:
    data = [png(seed) for seed in range(2)]
    assert paths(listed(table(tmp_path / "x.parquet", {"i": data, "path": ["a/1.png", "b"]}))) == ["a/1.png", "b"]
    assert opening.read_path(f"{tmp_path}/x.parquet!/b") == png(1)
    assert paths(listed(table(tmp_path / "y.parquet", {"i": data, "path": ["a", "a"]}))) == [
        "row-00000000",
        "row-00000001",
    ]
    with pytest.raises(ImageError, match="no such row in the table"):
        opening.read_path(f"{tmp_path}/x.parquet!/c")


@needs_pyarrow
def test_parquet_rows_are_found_in_whatever_group_they_lie(tmp_path: Path) -> None:
    data = [png(seed) for seed in range(20)]
    source = opening.resolve(str(table(tmp_path / "x.parquet", {"image": data}, row_group_size=3)))
    assert [source.read(entry.path) for entry in reversed(source.listing().entries)] == data[::-1]
    source.close()


@needs_pyarrow
def test_parquet_groups_are_read_once_where_threads_meet(tmp_path: Path) -> None:
    data = [png(seed) for seed in range(20)]
    source = opening.resolve(str(table(tmp_path / "x.parquet", {"image": data}, row_group_size=5)))
    assert isinstance(source, manifests.ParquetSource)
    read: list[int] = []
    file = source._file

    class Counted:
        metadata, close = file.metadata, file.close

        def read_row_group(self, number: int, columns: list[str]) -> Any:
            read.append(number)
            return file.read_row_group(number, columns)

    source._file = Counted()
    for row in (0, 1, 2, 3, 5, 4, 6, 8, 10, 9, 7, 11, 15, 14):
        assert source.read(f"row-{row:08d}") == data[row]
    assert read == [0, 1, 2, 3]
    source.close()


@needs_pyarrow
def test_parquet_cut_short_meanwhile_is_a_failure(tmp_path: Path) -> None:
    """In a process of its own, which a signal would end were the file mapped into its memory."""
    data = [np.random.default_rng(seed).bytes(200_000) for seed in range(20)]
    place = table(tmp_path / "x.parquet", {"image": data}, row_group_size=5, use_dictionary=False)
    code = (
        "import os, sys; from simsearch import errors, opening; source = opening.resolve(sys.argv[1])\n"
        "source.read('row-00000000'); os.truncate(sys.argv[1], 1_500_000)\n"
        "try: source.read('row-00000019')\n"
        "except errors.ImageError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cannot be read from the table: ")


@needs_pyarrow
def test_parquet_row_without_bytes_is_a_failure(tmp_path: Path, build: Callable[..., sync.Summary]) -> None:
    rows = [{"bytes": png(), "path": None}, None, {"bytes": None, "path": "x"}]
    summary = build(table(tmp_path / "x.parquet", {"image": rows}))
    assert (summary.items, summary.failed) == (1, 2)
    with simsearch.open(tmp_path / "index", model=CellModel()) as engine:
        assert {reason for _, reason in engine.failures()} == {"empty file"}


@needs_pyarrow
def test_parquet_columns_that_metadata_cannot_hold_are_left_out(tmp_path: Path) -> None:
    import pyarrow

    columns = {
        "image": [png()],
        "when": pyarrow.array([1], pyarrow.timestamp("ns")),
        "late": pyarrow.array([2**40], pyarrow.timestamp("s")),
        "lasts": pyarrow.array([1], pyarrow.duration("ns")),
        "nothing": [float("nan")],
        "null": pyarrow.array([None], pyarrow.int64()),
        "list": [[1, 2]],
        "more": [b"bytes"],
        "yes": [True],
        "word": pyarrow.array(["w"]).dictionary_encode(),
        "share": [0.5],
    }
    (entry,) = listed(table(tmp_path / "x.parquet", columns)).entries
    assert entry.metadata == {"yes": True, "word": "w", "share": 0.5}


@needs_pyarrow
def test_parquet_without_images_names_its_columns(tmp_path: Path) -> None:
    place = table(tmp_path / "x.parquet", {"a": [1], "b": ["x"]})
    with pytest.raises(UsageError, match="no column holds image bytes") as caught:
        opening.resolve(str(place))
    assert caught.value.hint == "its columns: a, b"


@needs_pyarrow
def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    place = table(tmp_path / "x.parquet", {"image": [png(seed) for seed in range(6)], "label": list("abcabc")})
    data = place.read_bytes()
    place.write_bytes(b"no parquet at all")
    with pytest.raises(UsageError, match="cannot be read as Parquet"):
        opening.resolve(str(place))
    generator = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(data)
        for spot in generator.integers(0, len(data), 3):
            damaged[spot] = generator.integers(0, 256)
        place.write_bytes(damaged)
        try:
            source = opening.resolve(str(place))
            for entry in source.listing().entries:
                source.read(entry.path)
        except (UsageError, ImageError) as refused:
            assert "\n" not in str(refused)


def test_parquet_without_the_extra_names_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").touch()
    with pytest.raises(MissingExtraError, match=r"reading Parquet needs the \[parquet\] extra") as caught:
        opening.resolve(str(tmp_path / "x.parquet"))
    assert caught.value.hint == "pip install 'simsearch[parquet]'"


# -- data sets of torchvision


class Swatches:
    """What torchvision's data sets look like: four pictures of two classes, and others for testing."""

    classes = ("amber", ("blue", "azure"))

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        if not download and not os.path.exists(os.path.join(root, "data")):
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        Path(root, "data").touch()
        self.train, self.folder = train, root

    def __len__(self) -> int:
        return 4 if self.train else 2

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        image = Image.open(io.BytesIO(png(number if self.train else 100 + number)))
        return image, number % 2


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[type], None]:
    """Puts a class into the place of torchvision's CIFAR10."""
    import torchvision

    monkeypatch.setenv("SIMSEARCH_DATASETS", str(tmp_path / "datasets"))
    return lambda kind: monkeypatch.setattr(torchvision.datasets, "CIFAR10", kind)


def test_data_set_of_torchvision_is_a_source(
    dataset: Callable[[type], None], tmp_path: Path, build: Callable[..., sync.Summary]
) -> None:
    dataset(Swatches)
    listing = opening.resolve("torchvision/CIFAR10").listing(["3"])
    assert [(entry.path, entry.label) for entry in listing.entries] == [("0", "amber"), ("1", "blue"), ("2", "amber")]
    assert build(Path("torchvision/CIFAR10"), Path("torchvision/CIFAR10:test")).items == 6
    assert (tmp_path / "datasets/CIFAR10/data").exists()
    with simsearch.open(tmp_path / "index", model=CellModel()) as engine:
        (match,) = engine.search(png(101), k=1)
    assert (match.path, match.label, match.distance) == ("torchvision/CIFAR10:test!/1", "blue", 0)
    assert images.decode(opening.read_path(match.path)).image.tobytes() == images.decode(png(101)).image.tobytes()
    assert build(Path("torchvision/CIFAR10")).unchanged == 4


def test_real_data_set_is_read_from_its_files_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMSEARCH_DATASETS", str(tmp_path))
    raw = tmp_path / "MNIST/MNIST/raw"
    raw.mkdir(parents=True)
    digits = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        header = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in digits.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + digits.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x0c" + bytes(range(10)) + b"\0\1")
    source = opening.resolve("torchvision/MNIST:test")
    listing = source.listing()
    assert paths(listing) == [f"{number:02d}" for number in range(12)]
    assert (listing.entries[3].label, listing.entries[11].label) == ("3 - three", "1 - one")
    decoded = images.decode(source.read("11")).image
    assert (np.asarray(decoded) == digits[11, ..., None]).all()
    with pytest.raises(ImageError, match="the data set has no image '12'"):
        source.read("12")
    with pytest.raises(ImageError, match="the data set has no image 'x'"):
        source.read("x")


def test_unknown_data_set_has_a_hint() -> None:
    with pytest.raises(UsageError, match="torchvision has no data set 'cifar10'") as caught:
        opening.resolve("torchvision/cifar10").listing()
    assert caught.value.hint == "did you mean torchvision/CIFAR10?"
    with pytest.raises(UsageError, match="torchvision has no data set 'Nothing'") as caught:
        opening.resolve("torchvision/Nothing").listing()
    assert caught.value.hint == "see torchvision.datasets for the names"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CIFAR10:val", "the data set CIFAR10 has no split 'val'"),
        ("STL10:val", "Unknown value 'val' for argument split"),
        ("Imagenette:test", "Unknown value 'test' for argument split"),
    ],
)
def test_unknown_split_is_refused(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMSEARCH_DATASETS", str(tmp_path))
    with pytest.raises(UsageError, match=message) as caught:
        opening.resolve(f"torchvision/{name}").listing()
    assert "network" not in str(caught.value.hint)


def test_data_set_that_cannot_be_had_says_where_its_files_belong(
    dataset: Callable[[type], None], tmp_path: Path
) -> None:
    class Offline(Swatches):
        def __init__(self, root: str, download: bool = False) -> None:
            raise OSError("<urlopen error no network>\nsecond line")

    dataset(Offline)
    with pytest.raises(
        UsageError, match=r"torchvision/CIFAR10 cannot be opened: <urlopen error no network>$"
    ) as caught:
        opening.resolve("torchvision/CIFAR10").listing()
    assert caught.value.hint == f"put its files into {tmp_path}/datasets/CIFAR10 where there is no network"


def test_arguments_that_a_data_set_hands_on_are_its_own(dataset: Callable[[type], None]) -> None:
    class Handing(Swatches):
        def __init__(self, root: str, **arguments: Any) -> None:
            super().__init__(root, **arguments)

    dataset(Handing)
    assert len(opening.resolve("torchvision/CIFAR10:test").listing().entries) == 2


@pytest.mark.parametrize("item", [(1, 2, 3), np.zeros((3, 3)), ("text", 0)], ids=["triple", "array", "text"])
def test_data_set_of_something_else_is_refused(dataset: Callable[[type], None], item: Any) -> None:
    class Other(Swatches):
        def __getitem__(self, number: int) -> Any:
            return item

    dataset(Other)
    with pytest.raises(UsageError, match=r"torchvision/CIFAR10 does not hold single images"):
        opening.resolve("torchvision/CIFAR10").listing()
    with pytest.raises(UsageError, match="FakeData is no data set that is kept in files"):
        opening.resolve("torchvision/FakeData").listing()


def test_damaged_image_of_a_data_set_is_a_failure(
    dataset: Callable[[type], None], build: Callable[..., sync.Summary]
) -> None:
    class Damaged(Swatches):
        def __getitem__(self, number: int) -> tuple[Any, Any]:
            if number == 1:
                raise OSError("image file is truncated")
            return super().__getitem__(number)

    dataset(Damaged)
    summary = build(Path("torchvision/CIFAR10"))
    assert (summary.items, summary.failed) == (3, 1)
    with pytest.raises(ImageError, match="cannot be read from the data set: image file is truncated"):
        opening.resolve("torchvision/CIFAR10").read("1")


def test_folder_called_torchvision_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "torchvision/CIFAR10/a.png")
    monkeypatch.chdir(tmp_path)
    assert opening.resolve("torchvision/CIFAR10").kind == "folder"


def test_a_data_set_of_files_is_read_without_decoding_it_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    for label in ("cat", "dog"):
        (tmp_path / "Folders" / label).mkdir(parents=True)
        (tmp_path / "Folders" / label / "0.png").write_bytes(png())

    def never(path: str) -> None:
        raise AssertionError("decoded")

    class Folders(torchvision.datasets.ImageFolder):  # type: ignore[misc]
        def __init__(self, root: str) -> None:
            super().__init__(root, loader=never)

    monkeypatch.setattr(torchvision.datasets, "Folders", Folders, raising=False)
    monkeypatch.setattr(torchvision.datasets, "__all__", (*torchvision.datasets.__all__, "Folders"))
    monkeypatch.setenv("SIMSEARCH_DATASETS", str(tmp_path))
    source = opening.resolve("torchvision/Folders")
    assert [(entry.path, entry.label, entry.size) for entry in source.listing().entries] == [
        ("0", "cat", len(png())), ("1", "dog", len(png())),
    ]  # fmt: skip
    assert source.read("1") == png()
