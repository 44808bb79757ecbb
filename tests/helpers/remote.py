"""Fixtures of tests with remote sources; import what is used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simsearch.images.sources.remote import permission, store
from tests.helpers import s3_server
from tests.helpers.s3_server import BUCKET, S3Server

SECRET = "secret-that-nobody-may-see"


@pytest.fixture(scope="session")
def s3_process() -> Iterator[S3Server]:
    pytest.importorskip("moto", reason="moto is not installed")
    pytest.importorskip("s3fs", reason="the extra [remote] is not installed")
    server = S3Server()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def s3(s3_process: S3Server, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> S3Server:
    """A server with one bucket, as the environment names it."""
    s3_process.plan = lambda method, key, query: None
    s3_process.delay = 0.0
    s3_server.empty(s3_process)
    s3_server.client(s3_process).create_bucket(Bucket=BUCKET)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "SIMSEARCH_ANONYMOUS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_process.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reader")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3_process.forget()
    return s3_process


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, in which no address was named; waits between attempts are short."""
    monkeypatch.setenv("SIMSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(permission.VARIABLE, raising=False)
    monkeypatch.setattr(permission, "_named", set())
    monkeypatch.setattr(store, "FIRST_WAIT", 0.01)
    return tmp_path / "cache"


def upload(server: S3Server, folder: Path, prefix: str = "pictures") -> Any:
    """Copies a folder into the bucket; returns the client that did it."""
    made = s3_server.client(server)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            made.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}" if prefix else name, Body=path.read_bytes())
    server.forget()
    return made


def forget_permissions(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes another user of this one: nothing was named."""
    monkeypatch.setattr(permission, "_named", set())
    for path in (cache / "remote" / "named").glob("*"):
        path.unlink()
