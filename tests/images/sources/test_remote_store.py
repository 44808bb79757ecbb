"""What `Store` makes of errors: it tries again, gives up on an object, or on the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from simsearch.errors import ImageError, UnavailableError, UsageError
from simsearch.images.sources.remote import addresses, permission, store
from simsearch.images.sources.remote.store import (
    DeniedError,
    MissingError,
    RemoteObject,
    Store,
    StoreStoppedError,
    TransientError,
)
from tests.helpers.remote import own_cache

__all__ = ["own_cache"]


WAITS: list[float] = []
"""Seconds before each further attempt."""


class Noting(threading.Event):
    """Does not wait, but notes for how long it would have."""

    def wait(self, timeout: float | None = None) -> bool:
        WAITS.append(timeout or 0.0)
        return self.is_set()


class Scripted(Store):
    """Raises the given errors, one for each request, then answers."""

    def __init__(self, *errors: Exception, data: bytes = b"content", **options: Any) -> None:
        super().__init__("s3://bucket/pictures", **options)
        self._stop = Noting()
        self.errors, self.data, self.requests = list(errors), data, 0
        self.size: int | None = None

    def request(self) -> None:
        self.requests += 1
        if self.errors:
            raise self.errors.pop(0)

    def server(self) -> str:
        return "server"

    def _objects(self, within: str) -> Iterator[RemoteObject]:
        self._attempt(self.request)
        yield RemoteObject("a.png", 7, "1")

    def _info(self, path: str) -> RemoteObject:
        self.request()
        return RemoteObject(path, len(self.data) if self.size is None else self.size, "1")

    def _read(self, path: str, start: int | None, end: int | None, most: int) -> bytes:
        self.request()
        return self.data[start:end]


@pytest.fixture
def waits() -> list[float]:
    WAITS.clear()
    return WAITS


def test_waits_double_within_limits(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "ATTEMPTS", 9)
    opened = Scripted(*[TransientError("busy") for _ in range(8)])
    assert opened.read("a.png") == b"content" and opened.requests == 9
    assert all(0.25 * 2**n <= wait <= 0.5 * 2**n or wait == store.LONGEST_WAIT for n, wait in enumerate(waits))
    assert waits[-1] == store.LONGEST_WAIT


def test_the_server_may_ask_for_longer(waits: list[float]) -> None:
    assert Scripted(TransientError("busy", wait=7.0), TransientError("busy", wait=9999)).read("a.png")
    assert waits == [7.0, store.LONGEST_WAIT]


@pytest.mark.parametrize(("quick", "attempts"), [(False, store.ATTEMPTS), (True, store.QUICK_ATTEMPTS)])
def test_attempts(waits: list[float], quick: bool, attempts: int) -> None:
    opened = Scripted(*[TransientError("busy") for _ in range(20)], quick=quick)
    with pytest.raises(ImageError, match=f"busy \\({attempts} attempts\\)"):
        opened.read("a.png")
    assert opened.requests == attempts


@pytest.mark.parametrize("error", [MissingError("gone"), DeniedError("denied"), UsageError("credentials")])
def test_other_errors_are_not_tried_again(waits: list[float], error: Exception) -> None:
    opened = Scripted(error)
    with pytest.raises(UsageError if isinstance(error, UsageError) else ImageError):
        opened.read("a.png")
    assert opened.requests == 1 and not waits


def test_server_without_connections_is_given_up(waits: list[float]) -> None:
    def failing(reader: Scripted, connection: bool) -> None:
        reader.errors = [TransientError("no answer", connection=connection) for _ in range(store.ATTEMPTS)]
        reader.read("a.png")

    opened = Scripted()
    for _ in range(store.LOST - 1):
        with pytest.raises(ImageError):
            failing(opened, True)
    assert opened.read("a.png") == b"content"  # it answers: the count begins again
    for _ in range(2 * store.LOST):
        with pytest.raises(ImageError):
            failing(opened, False)
    for _ in range(store.LOST - 1):
        with pytest.raises(ImageError):
            failing(opened, True)
    with pytest.raises(UnavailableError, match="s3://bucket/pictures cannot be read: no answer"):
        failing(opened, True)


def test_listing_errors(waits: list[float]) -> None:
    cases: list[tuple[Callable[[], Exception], type[Exception]]] = [
        (lambda: MissingError("there is no bucket"), UsageError),
        (lambda: DeniedError("access denied"), UsageError),
        (lambda: TransientError("busy"), UnavailableError),
    ]
    for make, expected in cases:
        with pytest.raises(expected, match="s3://bucket/pictures cannot be listed"):
            list(Scripted(*[make() for _ in range(9)]).objects())


def test_another_size_than_listed(waits: list[float]) -> None:
    opened = Scripted()
    assert opened.read("a.png", size=9) == b"content"  # the server says that it has this size now
    opened.size = 9
    with pytest.raises(ImageError, match="7 bytes came in place of 9"):
        opened.read("a.png", size=9)


def test_large_object_is_read_in_parts(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PART_BYTES", 4)
    opened = Scripted(TransientError("busy"), TransientError("busy"), data=b"0123456789")
    with opened.stream("a.png", 10) as file:
        assert file.read() == b"0123456789"
    assert opened.requests == 2 + 1 + 3 + 1


def test_object_that_changes_between_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PART_BYTES", 4)
    opened = Scripted(data=b"0123456789")
    read, parts = opened._read, list[int]()

    def changing(path: str, start: int | None, end: int | None, most: int) -> bytes:
        parts.append(start or 0)
        opened.size = 10 + len(parts)
        return read(path, start, end, most)

    monkeypatch.setattr(opened, "_read", changing)
    with pytest.raises(ImageError, match="has changed while it was read"):
        opened.stream("a.png", 10)


def test_closing_ends_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FIRST_WAIT", 30.0)
    opened = Scripted(*[TransientError("busy") for _ in range(9)])
    opened._stop = threading.Event()
    threading.Timer(0.1, opened.close).start()
    start = time.monotonic()
    with pytest.raises(StoreStoppedError):
        opened.read("a.png")
    assert time.monotonic() - start < 5


def test_stamps_have_63_bits() -> None:
    stamps = {RemoteObject("a", 1, str(n)).stamp for n in range(1000)}
    assert len(stamps) == 1000 and all(0 <= stamp < 2**63 for stamp in stamps)


@pytest.mark.parametrize("named", ["s3://bucket", "s3://bucket/a", "s3://bucket/a/b"])
def test_permission_holds_below_what_was_named(own_cache: Path, named: str) -> None:
    assert not permission.is_granted("s3://bucket/a/b")
    permission.grant(named)
    permission._named.clear()  # another process
    assert permission.is_granted("s3://bucket/a/b") and permission.is_named("s3://bucket/a/b/c")
    for other in ("s3://bucket2/a/b", "gs://bucket/a/b", "s3://bucke", "https://bucket/a/b"):
        assert not permission.is_granted(other)
    assert permission.is_granted("s3://bucket/ab") == (named == "s3://bucket")


@pytest.mark.parametrize("value", ["", "0"])
def test_variable_that_permits_nothing(own_cache: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(permission.VARIABLE, value)
    assert not permission.is_granted("s3://bucket/a")


def test_permission_without_a_cache(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_cache.write_text("not a folder")
    permission.grant("s3://bucket/a")
    assert permission.is_granted("s3://bucket/a")


def test_roots_of_an_index_are_checked() -> None:
    for root in ("s3://bucket/a/", "https://host/a?b", "https://me@host/a", "s3://", "file:///etc", "https://HOST/a"):
        try:
            assert addresses.normalized(root) != root
        except UsageError:
            continue
