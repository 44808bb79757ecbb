"""Pictures on other machines that an index names: read by permission only, and nothing but what was recorded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import simsearch
from simsearch.errors import ImageError, UsageError
from simsearch.images.sources.remote import permission
from simsearch.storage import item_files
from tests.helpers.client import Client
from tests.helpers.models import Colours
from tests.helpers.pictures import draw
from tests.helpers.remote import forget_permissions, own_cache, s3, s3_process, upload
from tests.helpers.s3_server import BUCKET, S3Server, client
from tests.helpers.web import Web, folder_files, serving

__all__ = ["own_cache", "s3", "s3_process"]

PLACE = f"s3://{BUCKET}/pictures"


@pytest.fixture
def engine(s3: S3Server, photos: Path, tmp_path: Path, colours: Colours) -> Iterator[simsearch.Engine]:
    upload(s3, photos)
    with simsearch.build(PLACE, tmp_path / "index", model=colours) as engine:
        s3.forget()
        yield engine


def image(engine: simsearch.Engine, number: int = 1, what: str = "image") -> Any:
    return Client(simsearch.create_app(engine))("GET", f"/v1/items/{number}/{what}")


def test_named_by_this_user(engine: simsearch.Engine, photos: Path, s3: S3Server) -> None:
    answer = image(engine)
    assert answer.status_code == 200 and answer.content == (photos / "amber" / "0.png").read_bytes()
    assert image(engine, 2, "thumbnail").status_code == 200
    assert set(s3.tries) == {"pictures/amber/0.png", "pictures/amber/1.png"}


def test_index_of_a_stranger(
    engine: simsearch.Engine, own_cache: Path, s3: S3Server, tmp_path: Path, colours: Colours, monkeypatch: Any
) -> None:
    """It names a bucket: no request is sent there, whatever is asked for."""
    forget_permissions(own_cache, monkeypatch)
    seen: list[str] = []
    s3.plan = lambda method, key, query: seen.append(key)
    with simsearch.open(engine.path, model=colours) as other:
        for what in ("image", "thumbnail"):
            answer = image(other, 1, what)
            assert answer.status_code == 404 and b"not named on this machine" in answer.content
        with pytest.raises(ImageError, match=f"names the remote source {PLACE}"):
            item_files.read(other.index, 1)
        assert other.search_by_id(1, k=2)[1].path.startswith(PLACE)  # its features are at hand
    with pytest.raises(UsageError, match="not named on this machine"):
        simsearch.build([], engine.path, model=colours)
    assert seen == []
    with simsearch.build(PLACE + "/blue", tmp_path / "own", model=colours):
        pass  # a part that the user has named does not permit the whole
    with simsearch.open(engine.path, model=colours) as other, pytest.raises(ImageError):
        item_files.read(other.index, 1)


@pytest.mark.parametrize("how", ["variable", "process"])
def test_permission_for_all(
    engine: simsearch.Engine, own_cache: Path, s3: S3Server, colours: Colours, monkeypatch: Any, how: str
) -> None:
    forget_permissions(own_cache, monkeypatch)
    if how == "variable":
        monkeypatch.setenv(permission.VARIABLE, "1")
    else:
        permission.grant_all()
    with simsearch.open(engine.path, model=colours) as other:
        assert image(other).status_code == 200
    assert not list((own_cache / "remote" / "named").glob("*"))


def test_object_that_has_changed_is_not_given_out(engine: simsearch.Engine, s3: S3Server, tmp_path: Path) -> None:
    client(s3).put_object(
        Bucket=BUCKET, Key="pictures/amber/0.png", Body=draw(tmp_path / "other.png", 900).read_bytes()
    )
    answer = image(engine)
    assert answer.status_code == 404 and b"has changed since it was indexed" in answer.content
    client(s3).delete_object(Bucket=BUCKET, Key="pictures/amber/1.png")
    assert image(engine, 2).status_code == 404


def test_after_a_fork(engine: simsearch.Engine, photos: Path) -> None:
    expected = (photos / "amber" / "0.png").read_bytes()
    assert item_files.read(engine.index, 1) == expected
    child = os.fork()
    if child == 0:
        os._exit(0 if item_files.read(engine.index, 1) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert item_files.read(engine.index, 1) == expected


def test_server_that_fails_is_given_up_soon(engine: simsearch.Engine, s3: S3Server) -> None:
    s3.plan = lambda method, key, query: "slow-down"
    answer = image(engine)
    assert answer.status_code == 404 and b"answered 503" in answer.content


@pytest.fixture
def web(photos: Path) -> Iterator[Web]:
    pytest.importorskip("aiohttp", reason="the extra [remote] is not installed")
    with serving(folder_files(photos)) as server:
        yield server


def test_private_web_server_of_a_stranger(
    web: Web, own_cache: Path, tmp_path: Path, colours: Colours, monkeypatch: Any
) -> None:
    """Even where all is permitted, an index cannot lead a service into its own network."""
    with simsearch.build(f"{web.url}/pictures", tmp_path / "index", model=colours) as engine:
        assert image(engine).status_code == 200
    forget_permissions(own_cache, monkeypatch)
    permission.grant_all()
    web.forget()
    with simsearch.open(tmp_path / "index", model=colours) as other:
        answer = image(other)
    assert answer.status_code == 404 and not web.gets and not web.heads


@pytest.mark.parametrize("path", ["../secret.png", "rose/../../secret.png", "/secret.png", "rose//0.png"])
def test_paths_that_lead_out_of_a_source(
    web: Web, photos: Path, tmp_path: Path, colours: Colours, path: str, own_cache: Path
) -> None:
    """A stranger's index may name a source that the user has named, with other paths."""
    web.files["/secret.png"] = (photos / "rose" / "0.png").read_bytes()
    with simsearch.build(f"{web.url}/pictures", tmp_path / "index", model=colours) as engine:
        web.forget()
        [source] = [*engine.index.sources(_reader(engine)).values()]
        with pytest.raises(ImageError):
            source.read(path)
    assert not web.gets and not web.heads


def _reader(engine: simsearch.Engine) -> Any:
    with engine.reading() as reader:
        return reader


def test_url_that_a_stranger_searches_by(engine: simsearch.Engine, s3: S3Server) -> None:
    answer = Client(simsearch.create_app(engine, allow_urls=True))(
        "POST", "/v1/search", json={"url": f"{PLACE}/amber/0.png"}
    )
    assert answer.status_code in {400, 422} and not s3.tries
