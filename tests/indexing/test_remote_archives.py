"""Builds from archives on other machines."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from simsearch.errors import SimsearchError, UsageError
from tests.helpers.pictures import draw
from tests.helpers.remote import own_cache, s3, s3_process
from tests.helpers.s3_server import BUCKET, S3Server, client
from tests.helpers.sync import ALL, failures, ids, sources, told
from tests.helpers.web import serving

__all__ = ["own_cache", "s3", "s3_process"]

ZIP, TAR = f"s3://{BUCKET}/pictures.zip", f"s3://{BUCKET}/pictures.tar"


def zipped(folder: Path, path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for each in sorted(folder.rglob("*.png")):
            archive.write(each, each.relative_to(folder))
    return path


def tarred(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for each in sorted(folder.rglob("*.png")):
            archive.add(each, str(each.relative_to(folder)))
    return path


def put(server: S3Server, path: Path, key: str | None = None) -> None:
    client(server).put_object(Bucket=BUCKET, Key=key or path.name, Body=path.read_bytes())
    server.forget()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_zip(build: Any, s3: S3Server, photos: Path, index: Path, tmp_path: Path, method: int) -> None:
    path = zipped(photos, tmp_path / "pictures.zip", method)
    put(s3, path)
    assert told(build(ZIP)) == {"added": ALL, "computed": ALL}
    assert [(row.kind, row.root) for row in sources(index)] == [("remote-zip", ZIP)]
    if method != zipfile.ZIP_LZMA:
        assert ALL < s3.gets["pictures.zip"] <= ALL + 3  # a range for each member, and the list
    s3.forget()
    assert told(build()) == {"unchanged": ALL}
    assert s3.gets["pictures.zip"] <= 3  # its list of members


def test_zip_that_changes(build: Any, s3: S3Server, photos: Path, index: Path, tmp_path: Path) -> None:
    put(s3, zipped(photos, tmp_path / "pictures.zip"))
    build(ZIP)
    draw(photos / "blue" / "0.png", 800)
    (photos / "rose" / "0.png").unlink()
    put(s3, zipped(photos, tmp_path / "pictures.zip"))
    assert told(build()) == {"updated": 1, "removed": 1, "unchanged": ALL - 2, "computed": 1}
    assert s3.gets["pictures.zip"] <= 4


def test_damaged_member_of_a_zip(build: Any, s3: S3Server, photos: Path, index: Path, tmp_path: Path) -> None:
    path = zipped(photos, tmp_path / "pictures.zip", zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[60] ^= 255
    path.write_bytes(data)
    put(s3, path)
    assert told(build(ZIP)) == {"added": ALL - 1, "computed": ALL - 1, "failed": 1}
    assert failures(index)[0][1] == "cannot be read from the archive: its checksum is wrong"


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_tar_is_copied_once(build: Any, s3: S3Server, photos: Path, index: Path, tmp_path: Path, suffix: str) -> None:
    put(s3, tarred(photos, tmp_path / f"pictures{suffix}"))
    place = f"s3://{BUCKET}/pictures{suffix}"
    assert told(build(place)) == {"added": ALL, "computed": ALL}
    assert dict(s3.gets) == {f"pictures{suffix}": 1}
    s3.forget()
    assert told(build()) == {"unchanged": ALL}
    assert told(build(exclude=("rose/",)))["unchanged"] == ALL - 6
    assert not s3.tries  # its list is kept
    draw(photos / "blue" / "new.png", 800)
    put(s3, tarred(photos, tmp_path / f"pictures{suffix}"))
    assert told(build(place, exclude=("rose/",)))["added"] == 1
    assert dict(s3.gets) == {f"pictures{suffix}": 1}


@pytest.mark.parametrize("ranges", [True, False])
def test_archives_on_web_servers(build: Any, photos: Path, tmp_path: Path, own_cache: Path, ranges: bool) -> None:
    pytest.importorskip("aiohttp", reason="the extra [remote] is not installed")
    files = {
        "/a/pictures.zip": zipped(photos / "rose", tmp_path / "a.zip").read_bytes(),
        "/a/pictures.tar": tarred(photos / "blue", tmp_path / "b.tar").read_bytes(),
    }
    with serving(files) as web:
        web.ranges = ranges
        assert told(build(f"{web.url}/a/pictures.zip", f"{web.url}/a/pictures.tar")) == {"added": 12, "computed": 12}
        web.forget()
        assert told(build()) == {"unchanged": 12}
        assert "/a/pictures.tar" not in web.gets


def test_archive_that_is_none(build: Any, s3: S3Server, tmp_path: Path) -> None:
    (tmp_path / "pictures.zip").write_bytes(b"not a zip at all")
    put(s3, tmp_path / "pictures.zip")
    put(s3, tmp_path / "pictures.zip", "pictures.tar")
    for place in (ZIP, TAR):
        with pytest.raises(UsageError, match=rf"{place} cannot be read as a (zip|tar) archive"):
            build(place)
    with pytest.raises(UsageError, match=f"there is no archive at s3://{BUCKET}/none.zip"):
        build(f"s3://{BUCKET}/none.zip")


@pytest.mark.parametrize("place", [ZIP, TAR])
def test_archive_whose_server_fails(
    build: Any, s3: S3Server, photos: Path, index: Path, tmp_path: Path, place: str
) -> None:
    put(s3, zipped(photos, tmp_path / "pictures.zip"))
    put(s3, tarred(photos, tmp_path / "pictures.tar"))
    build(place)
    draw(photos / "blue" / "new.png", 800)
    put(s3, zipped(photos, tmp_path / "pictures.zip"))
    put(s3, tarred(photos, tmp_path / "pictures.tar"))
    s3.plan = lambda method, key, query: "slow-down"
    with pytest.raises(SimsearchError, match=place):
        build()
    assert len(ids(index)) == ALL
