"""Keeps copies of remote objects in the cache folder until their features are committed to the index.

A build that is killed loses all features since its last commit. Without the kept files, the next build would have to
read the same objects from their server again. Each file is deleted once the features are committed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from simsearch.common.cache import cache_dir

KEPT_BYTES = 512 << 20
"""Limit of the kept files of one build (bytes); further objects are not kept."""

OLDEST = 7 * 24 * 3600.0
"""Files that a killed build has left are deleted at this age (seconds)."""

_DIGEST_BYTES = hashlib.sha256().digest_size

Place = tuple[str, str, int, int]
"""An object as it was listed: the root of its source, its path, its size in bytes and its stamp."""


class KeptObjects:
    """The folder of kept objects. Safe for several threads.

    A `Place` identifies an object: the root of its source, its path, its size and its stamp. The object's file is named
    by the SHA-256 of the `Place`, and begins with the SHA-256 of the object's content. Files are not synced to disk;
    the SHA-256 of the content shows if a file is incomplete.
    """

    def __init__(self) -> None:
        self._folder = cache_dir() / "remote" / "kept"
        self._lock = threading.Lock()
        self._bytes = 0
        self._ready = False

    def read(self, place: Place, read: Callable[[], bytes | IO[bytes]]) -> bytes | IO[bytes]:
        """Returns a kept object, or calls `read` and keeps the bytes that it returns. Raises the errors of `read`.

        If `read` returns an open file, the object is not kept.
        """
        data = self._find(place)
        if data is not None:
            return data
        found = read()
        if isinstance(found, bytes):
            self._keep(place, found)
        return found

    def forget(self, places: Iterable[Place]) -> None:
        """Deletes kept objects. Call it after their features or failures have been committed to the index."""
        for place in places:
            path = self._path(place)
            with contextlib.suppress(OSError):
                size = path.stat().st_size
                path.unlink()
                with self._lock:
                    self._bytes -= size

    def _path(self, place: Place) -> Path:
        name = "\0".join(map(str, place)).encode("utf-8", "surrogateescape")
        return self._folder / hashlib.sha256(name).hexdigest()

    def _find(self, place: Place) -> bytes | None:
        try:
            content = self._path(place).read_bytes()
        except OSError:
            return None
        digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        return data if digest == hashlib.sha256(data).digest() else None

    def _keep(self, place: Place, data: bytes) -> None:
        with self._lock:
            if not self._ready:
                self._prepare()
            if self._bytes + len(data) + _DIGEST_BYTES > KEPT_BYTES:
                return
            self._bytes += len(data) + _DIGEST_BYTES
        with contextlib.suppress(OSError):  # for example a full disk: then the object is not kept
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(self._path(place), flags, 0o600), "wb") as file:
                file.write(hashlib.sha256(data).digest() + data)

    def _prepare(self) -> None:
        """Makes the folder, and deletes files older than `OLDEST`, which killed builds have left."""
        self._ready = True
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            latest = time.time() - OLDEST
            for path in self._folder.iterdir():
                with contextlib.suppress(OSError):
                    if path.lstat().st_mtime < latest:
                        path.unlink()
