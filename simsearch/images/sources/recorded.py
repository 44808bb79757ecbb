"""Opens pictures that an index names, after checking each picture. No other module hands out their content.

An index may come from a stranger, and the file at a recorded path may have been replaced since. So a picture is only
opened if it is a regular file, its SHA-256 is the recorded one, and it decodes as an image. The file must also lie
inside its source, with links followed, unless `build --allow-outside` has permitted other files.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import IO, TYPE_CHECKING, TypeVar

from simsearch.common.machine import MemoryBudget
from simsearch.errors import ImageError
from simsearch.images import decode, memory

if TYPE_CHECKING:
    from simsearch.images.sources.base import Source

Key = TypeVar("Key", bound=Hashable)

CHECK_SIDE = 32
"""The `shorter_side` (pixels) with which a file is decoded to check that it is an image."""

REMEMBERED = 1 << 16
"""Number of checked files to remember. A file is checked again if its size or times have changed."""

F_GETPATH = 50
"""macOS: the fcntl that returns the path of an open file."""


class _Recent(OrderedDict[Key, None]):
    """Remembers which files have passed a check, so that it need not be repeated. Safe for several threads.

    A file is remembered by a key that changes with its content. Only the last `REMEMBERED` keys are kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def knows(self, key: Key) -> bool:
        with self._lock:
            return key in self

    def remember(self, key: Key) -> None:
        with self._lock:
            self[key] = None
            if len(self) > REMEMBERED:
                self.popitem(last=False)


_hashed: _Recent[tuple[object, ...]] = _Recent()
_decoded: _Recent[bytes] = _Recent()


def open_recorded(
    source: Source,
    path: str,
    digest: bytes,
    *,
    decodes: bool = True,
    budget: MemoryBudget | None = None,
) -> IO[bytes]:
    """Opens a picture that an index names, after checking it; the caller closes the file. Raises ImageError.

    path: the picture's path in the source.
    digest: the SHA-256 that the index recorded.
    decodes: True to check that the picture can be decoded. False is for a caller that decodes the picture itself and
    hands out only its pixels.
    budget: memory shared by all pictures that are being decoded; None for no limit.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(source.stream(path))
        if source.folder is not None and not source.outside:
            _check_inside(file, source.folder)
        _check_digest(file, digest)
        if decodes and not _decoded.knows(digest):
            needed = memory.peak_memory(file, CHECK_SIDE) if budget is not None else 0
            with budget.hold(needed) if budget is not None else contextlib.nullcontext():
                decode.decode_image(file, CHECK_SIDE)
            file.seek(0)
            _decoded.remember(digest)
        stack.pop_all()
        return file


def read_recorded(source: Source, path: str, digest: bytes) -> bytes:
    """Returns the bytes of a picture that an index names, checked as by `open_recorded`. Raises ImageError."""
    with open_recorded(source, path, digest) as file:
        return file.read()


def is_inside(path: str, folder: str) -> bool:
    """Returns True if a path, with its links followed, leads to a place below `folder`."""
    real = os.path.realpath(folder)
    return os.path.realpath(path).startswith(real.rstrip("/") + "/")


def _check_inside(file: IO[bytes], folder: str) -> None:
    """Raises ImageError if an open file does not lie below a folder."""
    if not _path_of(file).startswith(os.path.realpath(folder).rstrip("/") + "/"):
        raise ImageError(
            "the file lies outside its source",
            hint="a build with allow_outside=True permits such files",
            shell_hint="`build --allow-outside` permits such files",
        )


def _path_of(file: IO[bytes]) -> str:
    """Returns the path of an open file, with all links followed; "" if the system cannot tell the path."""
    descriptor = file.fileno()
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{descriptor}")
    with contextlib.suppress(OSError, ValueError):
        return os.fsdecode(fcntl.fcntl(descriptor, F_GETPATH, bytes(1024)).rstrip(b"\0"))
    return ""


def _check_digest(file: IO[bytes], digest: bytes) -> None:
    """Raises ImageError if the SHA-256 of a file's content is not `digest`. Leaves the file at its start."""
    key = _identity(file, digest)
    if key is not None and _hashed.knows(key):
        return
    found = hashlib.sha256()
    try:
        while block := file.read(1 << 20):
            found.update(block)
        file.seek(0)
    except OSError as error:
        raise ImageError(error.strerror or str(error)) from error
    if found.digest() != digest:
        raise ImageError("the file has changed since it was indexed")
    if key is not None and key == _identity(file, digest):
        _hashed.remember(key)


def _identity(file: IO[bytes], digest: bytes) -> tuple[object, ...] | None:
    """Returns the key by which `_hashed` remembers that the SHA-256 of a file on disk is `digest`.

    The key changes when the file's content changes. Returns None for a file in memory.
    """
    try:
        facts = os.fstat(file.fileno())
    except OSError:  # io.UnsupportedOperation: a file in memory
        return None
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, digest
