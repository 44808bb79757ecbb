"""Builds from a bucket of Google Cloud Storage."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simsearch.errors import UnavailableError, UsageError
from tests.helpers import gcs_server
from tests.helpers.gcs_server import BUCKET, GcsServer
from tests.helpers.pictures import draw
from tests.helpers.remote import own_cache
from tests.helpers.sync import ALL, failures, ids, told

__all__ = ["own_cache"]

PLACE = f"gs://{BUCKET}/pictures"


@pytest.fixture
def server(photos: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> Iterator[GcsServer]:
    retry = pytest.importorskip("gcsfs.retry", reason="the extra [remote] is not installed")
    monkeypatch.setattr(retry.random, "random", lambda: 0.0)

    async def no_wait(seconds: float) -> None:
        return

    class NoWait:
        sleep = staticmethod(no_wait)

    monkeypatch.setattr(retry, "asyncio", NoWait)
    with gcs_server.serving() as running:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", running.url)
        running.objects = {
            f"pictures/{path.relative_to(photos).as_posix()}": path.read_bytes() for path in photos.rglob("*.png")
        }
        yield running


def test_a_bucket_like_a_folder(build: Any, server: GcsServer, photos: Path, index: Path) -> None:
    assert told(build(PLACE)) == {"added": ALL, "computed": ALL}
    assert dict(server.gets) == dict.fromkeys(server.objects, 1)
    server.gets.clear()
    assert told(build()) == {"unchanged": ALL}
    server.objects["pictures/blue/0.png"] = draw(photos / "new.png", 800).read_bytes()
    del server.objects["pictures/rose/0.png"]
    assert told(build()) == {"updated": 1, "removed": 1, "unchanged": ALL - 2, "computed": 1}
    assert dict(server.gets) == {"pictures/blue/0.png": 1}


def test_faults(build: Any, server: GcsServer, index: Path) -> None:
    server.statuses = {"": [503, 429], "pictures/blue/0.png": [500], "pictures/rose/0.png": [403] * 99}
    assert told(build(PLACE)) == {"added": ALL - 1, "failed": 1, "computed": ALL - 1}
    assert failures(index) == [("rose/0.png", "access denied")]


def test_listing_that_fails_removes_nothing(build: Any, server: GcsServer, index: Path) -> None:
    build(PLACE)
    server.objects.clear()
    server.statuses[""] = [503] * 99
    with pytest.raises(UnavailableError, match=r"cannot be listed: .* answered 503"):
        build()
    server.statuses[""] = [403]
    with pytest.raises(UsageError, match="cannot be listed: access denied"):
        build()
    assert len(ids(index)) == ALL


def test_archive(build: Any, server: GcsServer, photos: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for each in sorted(photos.rglob("*.png")):
            archive.write(each, each.relative_to(photos))
    server.objects = {"a.zip": (tmp_path / "a.zip").read_bytes()}
    assert told(build(f"gs://{BUCKET}/a.zip")) == {"added": ALL, "computed": ALL}


def test_wrong_uses(build: Any, server: GcsServer) -> None:
    with pytest.raises(UsageError, match="there is no bucket nowhere"):
        build("gs://nowhere/pictures")
    with pytest.raises(UsageError, match=f"nothing is stored below gs://{BUCKET}/none/"):
        build(f"gs://{BUCKET}/none")
