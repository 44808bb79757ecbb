"""Zip and tar archives as sources. Members are read in place; nothing is ever extracted to disk."""

from __future__ import annotations

import bisect
import contextlib
import io
import os
import tarfile
import threading
import weakref
import zipfile
from typing import IO, TYPE_CHECKING, TypeVar

from simsearch.errors import ImageError, UsageError
from simsearch.images.decode import EXTENSIONS, LARGEST_BYTES, looks_like_image
from simsearch.images.sources.base import Entry, Listing, Source, excluded, first_line, spool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

CACHED_MEMBERS, CACHED_BYTES = 64, 64 << 20
"""Limits of a compressed archive's cache of skipped members."""


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def _has_image_extension(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in EXTENSIONS


class ZipSource(Source):
    """A .zip file. A member's stamp is its CRC-32, so zipping unchanged images again changes nothing."""

    kind = "zip"

    def __init__(self, root: str) -> None:
        super().__init__(root)
        try:
            self._archive = zipfile.ZipFile(root)
        except Exception as error:  # hostile bytes make the readers of archives raise nearly anything
            raise UsageError(f"{root} cannot be read as a zip archive: {first_line(error)}") from error
        self._members = {member.filename: member for member in self._archive.infolist()}  # the last of equal names

    def listing(self, exclude: Sequence[str] = ()) -> Listing:
        found = Listing()
        for path, member in sorted(self._members.items()):
            if not path or member.is_dir() or _is_hidden(path) or excluded(path, exclude):
                continue
            if _has_image_extension(path) or self._sniff(member):
                found.entries.append(Entry(path, member.file_size, member.CRC))
            else:
                found.skip(path)
        return found

    def _sniff(self, member: zipfile.ZipInfo) -> bool:
        try:
            with self._archive.open(member) as file:
                return looks_like_image(file.read(32))
        except Exception:
            return False

    def read(self, path: str) -> bytes:
        return self._read(path, lambda file: file.read(LARGEST_BYTES + 1))

    def stream(self, path: str) -> IO[bytes]:
        return self._read(path, spool)

    def _read(self, path: str, read: Callable[[IO[bytes]], T]) -> T:
        member = self._members.get(path)
        if member is None:
            raise ImageError("no such member in the archive")
        if member.file_size > LARGEST_BYTES:
            raise ImageError(f"too large: the limit is {LARGEST_BYTES:,} bytes")
        try:
            with self._archive.open(member) as file:
                return read(file)
        except Exception as error:
            raise ImageError(f"cannot be read from the archive: {first_line(error)}") from error

    def close(self) -> None:
        self._archive.close()


class TarSource(Source):
    """A .tar file, plain or compressed. Members are listed in the archive's order, in which reading is fastest.

    Several threads read in nearly that order. Going back in a compressed archive means unpacking it from its start, so
    the last members that were skipped are cached.
    """

    kind = "tar"

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._lock = threading.Lock()
        try:
            self._archive = tarfile.open(root)  # noqa: SIM115, closed by close()
        except Exception as error:
            raise UsageError(f"{root} cannot be read as a tar archive: {first_line(error)}") from error
        self._closing = weakref.finalize(self, self._archive.close)  # as a ZipFile does by itself
        self._members: dict[str, tarfile.TarInfo] | None = None
        self._compressed = not isinstance(self._archive.fileobj, io.BufferedReader)
        self._order: list[tuple[int, str]] = []
        self._position = 0
        self._skipped: dict[str, bytes] = {}

    def _members_by_path(self) -> dict[str, tarfile.TarInfo]:
        """Reads the archive's list of members on first use. Raises UsageError."""
        if self._members is None:
            try:
                files = [member for member in self._archive.getmembers() if member.isfile()]
            except Exception as error:
                raise UsageError(f"{self.root} is damaged: {first_line(error)}") from error
            self._members = {member.name.removeprefix("./"): member for member in files}
            self._order = [(member.offset_data, path) for path, member in self._members.items()] * self._compressed
            self._order.sort()
        return self._members

    def listing(self, exclude: Sequence[str] = ()) -> Listing:
        found = Listing()
        with self._lock:
            for path, member in self._members_by_path().items():
                if _is_hidden(path) or excluded(path, exclude):
                    continue
                if _has_image_extension(path) or self._sniff(member):
                    stamp = int(member.mtime) if abs(member.mtime) < 2**62 else 0  # it may be infinite
                    found.entries.append(Entry(path, member.size, stamp))
                else:
                    found.skip(path)
        return found

    def _sniff(self, member: tarfile.TarInfo) -> bool:
        try:
            return looks_like_image(self._open(member).read(32))
        except Exception:
            return False

    def _open(self, member: tarfile.TarInfo) -> IO[bytes]:
        file = self._archive.extractfile(member)
        if file is None:
            raise ImageError("not a regular file")
        return file

    def _cache_skipped(self, member: tarfile.TarInfo) -> None:
        """Caches the members between the last one that was read and this one, which is read next."""
        end = bisect.bisect_left(self._order, (member.offset_data, ""))
        start = bisect.bisect_left(self._order, (self._position, ""))
        self._position = member.offset_data + 1
        for _, path in self._order[max(start, end - CACHED_MEMBERS) : end]:
            skipped = self._members_by_path()[path]
            if skipped.size <= CACHED_BYTES:
                self._skipped[path] = self._open(skipped).read()
            while len(self._skipped) > CACHED_MEMBERS or sum(map(len, self._skipped.values())) > CACHED_BYTES:
                del self._skipped[next(iter(self._skipped))]

    def read(self, path: str) -> bytes:
        return self._read(path, lambda file: file.read())

    def stream(self, path: str) -> IO[bytes]:
        return self._read(path, spool)

    def _read(self, path: str, read: Callable[[IO[bytes]], T]) -> T:
        with self._lock:
            if (skipped := self._skipped.pop(path, None)) is not None:
                return read(io.BytesIO(skipped))
            try:
                member = self._members_by_path().get(path)
            except UsageError as error:
                raise ImageError(str(error)) from error
            if member is None:
                raise ImageError("no such member in the archive")
            if member.size > LARGEST_BYTES:
                raise ImageError(f"too large: the limit is {LARGEST_BYTES:,} bytes")
            if self._compressed:
                with contextlib.suppress(Exception):  # reading the member itself reports a damaged archive
                    self._cache_skipped(member)
            try:
                return read(self._open(member))
            except Exception as error:
                raise ImageError(f"cannot be read from the archive: {first_line(error)}") from error

    def close(self) -> None:
        self._closing()
