"""Lists and reads the objects of a server, and repeats requests after temporary errors.

Each scheme has a subclass of `Store`: `s3.S3Store`, `gcs.GcsStore`, `http.HttpStore`. The subclasses turn the errors of
their libraries into the exceptions below. This module then repeats the request, raises an ImageError for this object
only, or raises an error that ends the build.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, TypeVar

from simsearch.errors import ImageError, SimsearchError, UnavailableError, UsageError
from simsearch.images.decode import EXTENSIONS, LARGEST_BYTES
from simsearch.images.sources.base import GONE

T = TypeVar("T")

REQUESTS = 32
"""The most requests to one server at once."""

ATTEMPTS, FIRST_WAIT, LONGEST_WAIT = 5, 0.5, 20.0
"""Attempts for each request, and the first and longest wait (seconds) between attempts; waits double each time."""

CONNECT_SECONDS, READ_SECONDS, WHOLE_SECONDS = 10.0, 30.0, 300.0
"""Time limits (seconds) for connecting, for each wait for bytes, and for a request as a whole."""

QUICK_ATTEMPTS, QUICK_SECONDS = 2, 15.0
"""Attempts, and the time limit (seconds) for a request as a whole, if a user is waiting for the picture."""

LOST = 16
"""The server counts as unavailable after this many objects in a row that failed because it was not reached."""

PART_BYTES = 8 << 20
"""A large object is read in parts of this size."""


@dataclass(frozen=True, slots=True)
class RemoteObject:
    """An object on a server.

    path: relative to the source's root.
    size: in bytes; None if the server does not tell it.
    identity: a text that changes with the content (ETag, checksum, generation, or size and time); empty if the server
    gives none.
    """

    path: str
    size: int | None
    identity: str

    @property
    def stamp(self) -> int:
        """The identity, hashed to 63 bits, as many as an index can store."""
        return int.from_bytes(hashlib.sha256(self.identity.encode("utf-8", "replace")).digest()[:8], "big") >> 1


class TransientError(Exception):
    """A temporary error. connection: True if the server was not reached. wait: seconds that the server asks to wait."""

    def __init__(self, reason: str, *, connection: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.connection, self.wait = connection, wait


class MissingError(Exception):
    """The object or its bucket does not exist; the message tells which of them is missing."""


class DeniedError(Exception):
    """The server refuses to give out the object, or to list the bucket."""


class StoreStoppedError(ImageError):
    """The source was closed while it was being read."""


def is_picture(path: str) -> bool:
    """Returns True if the extension of a name is that of an image format."""
    return os.path.splitext(path)[1].lower() in EXTENSIONS


class Store(ABC):
    """The objects below one address. Safe for several threads.

    root: the address; see `addresses`. quick: give up sooner, because a user is waiting.
    """

    def __init__(self, root: str, *, quick: bool = False) -> None:
        self.root = root
        self._attempts = QUICK_ATTEMPTS if quick else ATTEMPTS
        self._seconds = QUICK_SECONDS if quick else WHOLE_SECONDS
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._lost = 0

    # -- implemented by each scheme: single requests, which raise the errors above, and UsageError for credentials.

    @abstractmethod
    def _objects(self, within: str) -> Iterator[RemoteObject]:
        """Lists the objects below the path `within`, in any order. Subclasses make each request through `_attempt`."""

    @abstractmethod
    def _info(self, path: str) -> RemoteObject:
        """Returns an object's size and identity, by one request."""

    @abstractmethod
    def _read(self, path: str, start: int | None, end: int | None, most: int) -> bytes:
        """Reads an object, or its bytes from `start` to before `end`.

        most: reading may stop when more bytes than this have arrived, because the caller expects no more.
        """

    @abstractmethod
    def server(self) -> str:
        """Returns the server's name for messages."""

    def denied_hint(self) -> str | None:
        """Returns the hint to show if the server refuses to list the objects."""
        return None

    ranges = True
    """False if the server is known to send whole objects only."""

    unread: list[tuple[str, str]]
    """Folders that the last call of `objects` could not list, and files whose request failed, each with the reason."""

    # -- called by sources

    def objects(self, within: str = "") -> Iterator[RemoteObject]:
        """Lists the objects below the path `within` of the source.

        Raises UsageError if the bucket does not exist or access is denied. Raises UnavailableError if a request fails
        in all attempts; objects may then be missing from the list.
        """
        self.unread = []
        try:
            yield from self._objects(within)
        except MissingError as error:
            raise UsageError(f"{self.root} cannot be listed: {error}") from error
        except DeniedError as error:
            raise UsageError(f"{self.root} cannot be listed: {error}", hint=self.denied_hint()) from error
        except TransientError as error:
            raise self._unavailable(error, "listed") from error

    def info(self, path: str) -> RemoteObject | None:
        """Returns an object's size and identity; None if the object does not exist.

        Raises ImageError if the request fails, UsageError if the credentials are refused.
        """
        try:
            return self._attempt(lambda: self._info(path))
        except MissingError:
            return None
        except (DeniedError, TransientError) as error:
            raise ImageError(str(error)) from error

    def read(self, path: str, start: int | None = None, end: int | None = None, size: int | None = None) -> bytes:
        """Reads an object, or its bytes from `start` to before `end`.

        size: the size of the whole object when it was listed, if known. If another number of bytes arrives, the object
        has changed or is incomplete.
        Raises ImageError with the reason, UsageError if the credentials are refused, UnavailableError if the server was
        not reached for `LOST` objects in a row.
        """
        expected = size if start is None or end is None else end - start

        def read() -> bytes:
            data = self._read(path, start, end, LARGEST_BYTES if expected is None else max(expected, 1 << 20))
            if expected is not None and len(data) != expected and not self._has_changed(path, start, len(data)):
                raise TransientError(f"{len(data):,} bytes came in place of {expected:,}")
            if len(data) > LARGEST_BYTES:
                raise ImageError(f"too large: the limit is {LARGEST_BYTES:,} bytes")
            return data

        try:
            data = self._attempt(read)
        except MissingError as error:
            raise ImageError(GONE) from error
        except DeniedError as error:
            raise ImageError(str(error)) from error
        except TransientError as error:
            self._count_lost(error)
            raise ImageError(f"{error} ({self._attempts} attempts)") from error
        self._lost = 0
        return data

    def stream(self, path: str, size: int | None = None) -> IO[bytes]:
        """Returns an object as an open file. A large object is read in parts, into a temporary file.

        size: the object's size in bytes, if known. Raises the errors of `read`.
        """
        if size is None or size <= PART_BYTES:
            return io.BytesIO(self.read(path, size=size))
        if size > LARGEST_BYTES:
            raise ImageError(f"too large: {size:,} bytes, the limit is {LARGEST_BYTES:,}")
        return self.spool(path, size)

    def spool(self, path: str, size: int) -> IO[bytes]:
        """Copies an object of any size into a temporary file, which is deleted when it is closed.

        Raises the errors of `read`, and ImageError if the object changes meanwhile.
        """
        before = self.info(path)
        file = tempfile.TemporaryFile()  # noqa: SIM115, closed by the caller
        try:
            if self.ranges:
                for start in range(0, size, PART_BYTES):
                    file.write(self.read(path, start, min(size, start + PART_BYTES)))
            else:
                self._save_whole(path, size, file)
            if before is None or self.info(path) != before:
                raise ImageError("the object has changed while it was read")
            file.seek(0)
        except SimsearchError:  # before OSError, because some of them are OSErrors too
            file.close()
            raise
        except OSError as error:
            file.close()
            raise ImageError(f"cannot be copied to a temporary file: {error.strerror or error}") from error
        except BaseException:
            file.close()
            raise
        return file

    def _save_whole(self, path: str, size: int, file: IO[bytes]) -> None:
        """Copies an object into a file by a single request, for servers that do not send parts.

        Raises ImageError if all attempts fail, or if the object is missing or refused.
        """

        def save() -> None:
            file.seek(0)
            file.truncate()
            self._save(path, file, size)
            if file.tell() != size:
                raise TransientError(f"{file.tell():,} bytes came in place of {size:,}")

        try:
            self._attempt(save)
        except (MissingError, DeniedError, TransientError) as error:
            raise ImageError(str(error)) from error

    def _save(self, path: str, file: IO[bytes], most: int) -> None:
        """Writes a whole object into a file, for servers that do not send parts.

        most: writing stops when the file is longer than this number of bytes.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Ends all waits between attempts, in all threads. Nothing can be read afterwards."""
        self._stop.set()

    # -- trying again

    def _attempt(self, request: Callable[[], T]) -> T:
        """Makes a request, and repeats it after temporary errors. Raises the error of the last attempt."""
        wait = FIRST_WAIT
        for attempt in range(self._attempts):
            if self._stop.is_set():
                raise StoreStoppedError("the source was closed while it was being read")
            try:
                return request()
            except TransientError as error:
                if attempt + 1 == self._attempts:
                    raise
                self._stop.wait(min(LONGEST_WAIT, max(error.wait, random.uniform(wait / 2, wait))))
                wait *= 2
        raise AssertionError("no attempts")

    def _has_changed(self, path: str, start: int | None, size: int) -> bool:
        """Returns True if the wrong number of bytes arrived only because the object was replaced after listing.

        In this case, the new content is complete and need not be read again. The function asks the server for the
        object's present size, and compares it with `size`, the number of bytes that arrived.
        start: None if the whole object was read. If only a part was read, the result is False, because the size of the
        object does not tell if the part is complete.
        """
        return start is None and self._info(path).size == size

    def _count_lost(self, error: TransientError) -> None:
        """Counts objects in a row that failed because the server was not reached.

        Raises UnavailableError if the count reaches `LOST`.
        """
        if not error.connection:
            return
        with self._lock:
            self._lost += 1
            lost = self._lost
        if lost >= LOST:
            raise self._unavailable(error, "read") from error

    def _unavailable(self, error: TransientError, done: str) -> UnavailableError:
        return UnavailableError(
            f"{self.root} cannot be {done}: {error} ({self._attempts} attempts)",
            hint="nothing was removed from the index; once the server answers, run the same build again to continue",
        )
