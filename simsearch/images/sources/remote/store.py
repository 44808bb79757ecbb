"""Lists and reads the objects of a server, and repeats requests after temporary errors.

Each scheme has a subclass: `s3.S3Store`, `gcs.GcsStore`, `http.HttpStore`. The subclasses turn the errors of their
libraries into the exceptions below, and this module decides to try again, to give up on one object, or on the build.
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
"""Requests to one server at once."""

ATTEMPTS, FIRST_WAIT, LONGEST_WAIT = 5, 0.5, 20.0
"""Attempts for each request, and the first and longest wait (seconds) between; waits double, with random changes."""

CONNECT_SECONDS, READ_SECONDS, WHOLE_SECONDS = 10.0, 30.0, 300.0
"""Limits for connecting, for each wait for bytes, and for a request as a whole."""

QUICK_ATTEMPTS, QUICK_SECONDS = 2, 15.0
"""Attempts, and seconds for a request as a whole, if a user is waiting for the picture."""

LOST = 16
"""After this many objects in a row without a connection, the server counts as unavailable."""

PART_BYTES = 8 << 20
"""A large object is read in parts of this size."""


@dataclass(frozen=True, slots=True)
class RemoteObject:
    """An object on a server.

    path: relative to the source's root. size: in bytes; None if the server does not say. identity: a text that changes
    with the content (ETag, checksum, generation, or size and time); empty if the server gives none.
    """

    path: str
    size: int | None
    identity: str

    @property
    def stamp(self) -> int:
        """The identity as the 63 bits that an index keeps."""
        return int.from_bytes(hashlib.sha256(self.identity.encode("utf-8", "replace")).digest()[:8], "big") >> 1


class TransientError(Exception):
    """A temporary error. connection: True if the server was not reached. wait: seconds that the server asked for."""

    def __init__(self, reason: str, *, connection: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.connection, self.wait = connection, wait


class MissingError(Exception):
    """The object or its bucket does not exist; the message names the missing one."""


class DeniedError(Exception):
    """The server refuses to give out the object, or to list the bucket."""


class StoreStoppedError(ImageError):
    """The source was closed while it was being read."""


def is_picture(path: str) -> bool:
    """Returns True if the extension of a name is that of an image format."""
    return os.path.splitext(path)[1].lower() in EXTENSIONS


class Store(ABC):
    """The objects below one address. Safe for several threads.

    root: the address; see `addresses`. quick: try less often, because a user is waiting.
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
        """Lists the objects below a path, in any order. Each request is made by `_attempt`."""

    @abstractmethod
    def _info(self, path: str) -> RemoteObject:
        """Asks for one object's size and identity."""

    @abstractmethod
    def _read(self, path: str, start: int | None, end: int | None, most: int) -> bytes:
        """Reads an object, or its bytes from `start` to before `end`; at most `most` + 1 bytes."""

    @abstractmethod
    def server(self) -> str:
        """Returns the server's name for messages."""

    def denied_hint(self) -> str | None:
        """Returns the hint for an error about a denied listing."""
        return None

    ranges = True
    """False if the server is known to send whole objects only."""

    unread: list[tuple[str, str]]
    """Folders that could not be listed by the last `objects`, with reasons."""

    # -- called by sources

    def objects(self, within: str = "") -> Iterator[RemoteObject]:
        """Lists the objects below a path of the source.

        Raises UsageError if there is no such bucket, or access is denied, and UnavailableError if a request fails for
        good: then nothing may be concluded from what was listed.
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
        """Returns an object's size and identity; None if it does not exist.

        Raises ImageError if it cannot be asked for, UsageError for credentials.
        """
        try:
            return self._attempt(lambda: self._info(path))
        except MissingError:
            return None
        except (DeniedError, TransientError) as error:
            raise ImageError(str(error)) from error

    def read(self, path: str, start: int | None = None, end: int | None = None, size: int | None = None) -> bytes:
        """Reads an object, or its bytes from `start` to before `end`.

        size: of the whole object when it was listed, if known. If another size arrives, the object has changed, or is
        incomplete.
        Raises ImageError with the reason, UsageError for credentials, UnavailableError if the server does not answer.
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
        """Reads an object into a temporary file, in parts. Raises as `read`."""
        if size is None or size <= PART_BYTES:
            return io.BytesIO(self.read(path, size=size))
        if size > LARGEST_BYTES:
            raise ImageError(f"too large: {size:,} bytes, the limit is {LARGEST_BYTES:,}")
        return self.spool(path, size)

    def spool(self, path: str, size: int) -> IO[bytes]:
        """Copies an object of any size into a temporary file, which is deleted when it is closed. Raises as `read`."""
        before = self.info(path)
        file = tempfile.TemporaryFile()  # noqa: SIM115, closed by the caller
        try:
            if self.ranges:
                for start in range(0, size, PART_BYTES):
                    file.write(self.read(path, start, min(size, start + PART_BYTES)))
            else:
                self._save_whole(path, size, file)
            if before is None or self.info(path) != before:
                raise ImageError("it has changed while it was read")
            file.seek(0)
        except SimsearchError:  # some are OSErrors too
            file.close()
            raise
        except OSError as error:
            file.close()
            raise ImageError(f"no temporary file can hold it: {error.strerror or error}") from error
        except BaseException:
            file.close()
            raise
        return file

    def _save_whole(self, path: str, size: int, file: IO[bytes]) -> None:
        """Copies a whole object into a file, for servers that do not send parts. Raises ImageError."""

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
        """Writes a whole object, at most about `most` bytes, into a file; for servers without ranges."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends the waits of all threads; nothing can be read afterwards."""
        self._stop.set()

    # -- trying again

    def _attempt(self, request: Callable[[], T]) -> T:
        """Makes a request, and repeats it after temporary errors. Raises the error of the last attempt."""
        wait = FIRST_WAIT
        for attempt in range(self._attempts):
            if self._stop.is_set():
                raise StoreStoppedError("stopped")
            try:
                return request()
            except TransientError as error:
                if attempt + 1 == self._attempts:
                    raise
                self._stop.wait(min(LONGEST_WAIT, max(error.wait, random.uniform(wait / 2, wait))))
                wait *= 2
        raise AssertionError("no attempts")

    def _has_changed(self, path: str, start: int | None, size: int) -> bool:
        """Returns True if an object that was read as a whole has this size now: it was replaced after it was listed."""
        return start is None and self._info(path).size == size

    def _count_lost(self, error: TransientError) -> None:
        """Counts objects in a row that failed without a connection. Raises UnavailableError if there are too many."""
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
            hint="nothing was removed; the same `build` goes on once the server answers",
        )
