"""ZIP and tar archives as sources."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import simsearch
from simsearch.errors import ImageError, UsageError
from simsearch.images.sources import archives, base, resolve
from simsearch.images.sources.base import Source
from simsearch.indexing import options
from simsearch.search import duplicates
from tests.helpers.models import CellModel
from tests.helpers.sources import listed, paths, png, put, write_tar, write_zip

NESTED = ("cat/1.png", "data/train/dog/2.png", "cat/3")


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tar.xz"])
def test_archive_images_are_labelled_by_folder(
    name: str, tmp_path: Path, build: Callable[..., options.Summary]
) -> None:
    place = (write_zip if name.endswith("zip") else write_tar)(tmp_path / name, *NESTED)
    listing = listed(place)
    assert sorted(paths(listing)) == sorted(NESTED)
    labels = base.folder_labels(listing.entries)
    assert sorted(map(str, labels)) == ["cat", "cat", "dog"]
    assert build(place).items == 3
    with simsearch.open(tmp_path / "index", model=CellModel()) as engine:
        (match,) = engine.search(png(1), k=1)
        assert (match.path, match.label, match.distance) == (f"{place}!/data/train/dog/2.png", "dog", 0)
        assert resolve.read_path(match.path) == png(1)


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_hidden_and_mac_members_are_skipped(name: str, tmp_path: Path) -> None:
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


def test_tar_of_current_folder_has_plain_paths(tmp_path: Path) -> None:
    place = write_tar(tmp_path / "x.tar", "./cat/1.png", "./2.png")
    assert paths(listed(place)) == ["cat/1.png", "2.png"]
    assert base.folder_labels(listed(place).entries) == ["cat", None]
    assert resolve.read_path(f"{place}!/2.png") == png(1)


SPELLINGS = (
    "./cat/1.png",
    "../cat/1.png",
    "/cat/1.png",
    "cat/./1.png",
    "x/../cat/1.png",
    "cat\\1.png",
    ".\\cat\\1.png",
    "C:\\cat\\1.png",
    "c:/cat/1.png",
    "//cat//1.png",
    "../../cat/1.png",
)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_member_names_are_normalised(kind: str, spelling: str, tmp_path: Path) -> None:
    write = write_zip if kind == "zip" else write_tar
    place = write(tmp_path / f"x.{kind}", spelling, spelling.replace("1", "2"), spelling.replace("cat", "__MACOSX"))
    listing = listed(place)
    assert (sorted(paths(listing)), listing.left_out) == (["cat/1.png", "cat/2.png"], {archives.HIDDEN: 1})
    assert base.folder_labels(listing.entries) == ["cat", "cat"]
    assert resolve.read_path(f"{place}!/cat/2.png") == png(1)
    assert resolve.read_path(f"{place}!/{spelling}") == png(0)  # as the member is called


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_odd_member_names_lose_nothing(kind: str, tmp_path: Path) -> None:
    names = ("a.png", "../a.png", "/a.png", "b..png", "c/d.", "e./f.png", "g\\._h.png", "...png", "b/..png")
    listing = listed((write_zip if kind == "zip" else write_tar)(tmp_path / f"x.{kind}", *names))
    assert sorted(paths(listing)) == ["a (2).png", "a (3).png", "a.png", "b..png", "c/d.", "e./f.png"]
    assert listing.left_out == {archives.HIDDEN: 3}
    for path, seed in (("a.png", 0), ("a (2).png", 1), ("a (3).png", 2)):
        assert resolve.read_path(f"{tmp_path}/x.{kind}!/{path}") == png(seed)


PIECES = ("..", ".", "/", "//", "\\", "a", "b", "cat", "C:", "é", "__MACOSX", "._x", ".h", " ", "...", "a.", "x.png")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_any_names_are_all_accounted_for(kind: str, tmp_path: Path) -> None:
    """Every member is an image of its own or counted as left out, and its path is one."""
    random = np.random.default_rng(1)
    for number in range(40):
        names = {"".join(random.choice(PIECES, random.integers(1, 9))).rstrip("/\\") + ".png" for _ in range(6)}
        place = (write_zip if kind == "zip" else write_tar)(tmp_path / f"{number}.{kind}", *sorted(names))
        listing = listed(place)
        found = paths(listing)
        assert len(set(found)) + listing.skipped == len(names), names
        contents = [resolve.read_path(f"{place}!/{path}") for path in found]
        assert len(set(contents)) == len(contents)
        assert not any(part in {"", ".", ".."} for path in found for part in path.split("/"))


def test_zip_names_with_nul(tmp_path: Path) -> None:
    """The library cuts them there."""
    data = write_zip(tmp_path / "x.zip", "aXb.png", "aXc.png", "Xd.png", "e.png").read_bytes()
    (tmp_path / "x.zip").write_bytes(data.replace(b"aXb", b"a\0b").replace(b"aXc", b"a\0c").replace(b"Xd.", b"\0d."))
    found = sorted(paths(listed(tmp_path / "x.zip")))
    assert found == ["a\ufffdb.png", "a\ufffdc.png", "e.png", "\ufffdd.png"]
    assert sorted(resolve.read_path(f"{tmp_path}/x.zip!/{path}") for path in found) == sorted(map(png, range(4)))


# -- links


def write_links(place: Path, **links: str) -> Path:
    """An archive of p/1.png and p/2.png and of links; hard ones begin with `hard`."""
    if place.suffix == ".zip":
        write_zip(place, "p/1.png", "p/2.png")
        with zipfile.ZipFile(place, "a") as archive:
            for name, target in links.items():
                member = zipfile.ZipInfo(f"p/best/{name}.png")
                member.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(member, target)
        return place
    with tarfile.open(str(place), "w:gz" if place.suffix == ".gz" else "w") as tar:
        for name, target in links.items():
            link = tarfile.TarInfo(f"./p/best/{name}.png")
            link.type, link.linkname = (tarfile.LNKTYPE if name.startswith("hard") else tarfile.SYMTYPE), target
            tar.addfile(link)
        for seed in (0, 1):
            picture = tarfile.TarInfo(f"./p/{seed + 1}.png")
            picture.size = len(png(seed))
            tar.addfile(picture, io.BytesIO(png(seed)))
    return place


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
def test_links_are_the_files_they_name(name: str, tmp_path: Path, build: Callable[..., options.Summary]) -> None:
    links = {"soft": "../1.png", "chain": "soft.png", "back": "..\\2.png", "root": "../../p/2.png"}
    if name != "x.zip":
        links |= {"hard1": "./p/1.png", "hard2": "p/2.png"}
    place = write_links(tmp_path / name, **links)
    assert build(place).items == 2 + len(links)
    for link, target in links.items():
        assert resolve.read_path(f"{place}!/p/best/{link}.png") == png("2" in target), link
    with simsearch.open(tmp_path / "index", model=CellModel()) as engine:
        assert duplicates.duplicate_groups(engine.snapshots, 0) == []


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
def test_links_out_of_the_archive_are_counted(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(5))
    links = {
        "absolute": str(tmp_path / "secret.png"),
        "out": "../../../secret.png",
        "itself": "itself.png",
        "one": "two.png",
        "two": "one.png",
        "folder": "..",
        "gone": "gone/x.png",
        "drive": "C:/p/1.png",
        "empty": "",
    }
    if name != "x.zip":
        links |= {"hard": "p/3.png", "hard_loop": "p/best/hard_loop.png"}
    listing = listed(write_links(tmp_path / name, **links))
    assert (sorted(paths(listing)), listing.left_out) == (["p/1.png", "p/2.png"], {archives.LINK_OUT: len(links)})


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_hard_link_keeps_a_file_that_is_replaced_later(name: str, tmp_path: Path) -> None:
    place = tmp_path / name
    with tarfile.open(str(place), "w:gz" if name.endswith("gz") else "w") as tar:
        for path, content in (("a.png", png(0)), ("b.png", "a.png"), ("c.png", "b.png"), ("a.png", png(1))):
            member = tarfile.TarInfo(path)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.LNKTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    source = resolve.resolve(str(place))
    assert [entry.path for entry in source.listing().entries] == ["b.png", "c.png", "a.png"]
    assert [source.read(path) for path in ("a.png", "b.png", "c.png")] == [png(1), png(0), png(0)]
    assert source.identity("b.png") == source.identity("c.png") != source.identity("a.png")


def test_member_with_wrong_checksum_fails_alone(tmp_path: Path, build: Callable[..., options.Summary]) -> None:
    place = write_zip(tmp_path / "x.zip", "a.png", "b.png", compression=zipfile.ZIP_STORED)
    data = bytearray(place.read_bytes())
    data[data.index(png(1)) + 60] ^= 255
    place.write_bytes(data)
    summary = build(place)
    assert (summary.items, summary.failed) == (1, 1)
    with pytest.raises(ImageError, match=r"cannot be read from the archive: Bad CRC-32"):
        resolve.read_path(f"{place}!/b.png")


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
        resolve.read_path(f"{place}!/a.png")


def test_recreated_zip_is_unchanged(tmp_path: Path, build: Callable[..., options.Summary]) -> None:
    build(write_zip(tmp_path / "x.zip", *NESTED))
    summary = build(write_zip(tmp_path / "x.zip", *NESTED, compression=zipfile.ZIP_STORED))
    assert (summary.unchanged, summary.to_read) == (3, 0)


def test_last_member_of_a_name_counts(tmp_path: Path, build: Callable[..., options.Summary]) -> None:
    with warnings.catch_warnings(action="ignore"):
        place = write_zip(tmp_path / "x.zip", "a.png", "a.png")
    tar = write_tar(tmp_path / "x.tar", "a.png", "a.png")
    assert build(place, tar).items == 2
    assert resolve.read_path(f"{place}!/a.png") == resolve.read_path(f"{tar}!/a.png") == png(1)


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tar.xz", "x.tar.zst"])
def test_non_archive_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"no archive at all " * 100)
    with pytest.raises(UsageError, match=rf"{name} cannot be read as a (zip|tar) archive: \S") as caught:
        resolve.resolve(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert not str(caught.value).endswith(":")


@pytest.mark.parametrize("name", ["x.zip", "lzma.zip", "x.tar", "x.tar.gz", "x.tar.xz"])
def test_damaged_archive_is_refused_or_read(name: str, tmp_path: Path) -> None:
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
            source = resolve.resolve(str(place))
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
    source = resolve.resolve(str((write_zip if name.endswith("zip") else write_tar)(tmp_path / name, *names)))
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


def test_compressed_tar_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads read members nearly in order. Skipped members that are never read do not pile up."""
    names = [f"{number}.png" for number in range(40)]
    write_tar(tmp_path / "x.tar", *names)
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes()))
    source = resolve.resolve(str(tmp_path / "x.tar.gz"))
    assert isinstance(source, archives.TarSource)
    assert len(source.listing().entries) == 40
    begun: list[int] = []
    seek = gzip.GzipFile.seek

    def noted(file: gzip.GzipFile, offset: int, whence: int = 0) -> int:
        begun.extend([offset] if not whence and offset < file.tell() else [])
        return seek(file, offset, whence)

    monkeypatch.setattr(gzip.GzipFile, "seek", noted)
    monkeypatch.setattr(archives, "CACHED_MEMBERS", 3)
    for number in (2, 1, 0, 3, 5, 4, 39, 37, 38):
        assert source.read(f"{number}.png") == png(number)
    assert len(begun) == 1  # from the listing's end
    assert source.read("0.png") == png(0)
    assert source.read("39.png") == png(39)
    assert len(source._skipped) <= 3
    source.close()


# -- paths as printed


def test_member_is_read_by_its_printed_path(tmp_path: Path) -> None:
    place = write_zip(tmp_path / "x.zip", "a/b.png")
    assert resolve.read_path(f"{place}!/a/b.png") == png()
    with pytest.raises(ImageError, match="no such member in the archive"):
        resolve.read_path(f"{place}!/a/c.png")


def test_folder_ending_in_bang_is_no_archive(tmp_path: Path) -> None:
    folder = put(tmp_path / "wow!", "a.png")
    write_zip(folder / "x.zip", "b/c!/d.png")
    assert resolve.read_path(f"{folder}/a.png") == png()
    assert resolve.read_path(f"{folder}/x.zip!/b/c!/d.png") == png()
