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

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")

KEPT, KEPT_BYTES = 64, 64 << 20
"""Members of a compressed archive that were passed over, and their bytes at most, which are kept for who asks next."""


def _hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def _claims(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in EXTENSIONS


class ZipSource(Source):
    """A .zip file; a member's stamp is its CRC-32, so that re-zipping unchanged images changes nothing."""

    kind = "zip"

    def __init__(self, root: str) -> None:
        super().__init__(root)
        try:
            self._archive = zipfile.ZipFile(root)
        except Exception as error:  # hostile bytes make the readers of archives raise nearly anything
            raise UsageError(f"{root} cannot be read as a zip archive: {first_line(error)}") from error
        self._members = {member.filename: member for member in self._archive.infolist()}  # of two alike, the last

    def listing(self, exclude: Sequence[str] = ()) -> Listing:
        found = Listing()
        for path, member in sorted(self._members.items()):
            if not path or member.is_dir() or _hidden(path) or excluded(path, exclude):
                continue
            if _claims(path) or self._sniff(member):
                found.entries.append(Entry(path, member.file_size, member.CRC))
            else:
                found.skipped += 1
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

    def _read(self, path: str, how: Callable[[IO[bytes]], T]) -> T:
        member = self._members.get(path)
        if member is None:
            raise ImageError("no such member in the archive")
        if member.file_size > LARGEST_BYTES:
            raise ImageError(f"too large: the limit is {LARGEST_BYTES:,} bytes")
        try:
            with self._archive.open(member) as file:
                return how(file)
        except Exception as error:
            raise ImageError(f"cannot be read from the archive: {first_line(error)}") from error

    def close(self) -> None:
        self._archive.close()


class TarSource(Source):
    """A .tar file, plain or compressed. Members are listed in the archive's order, in which reading is quickest.

    Threads ask in nearly that order. For one step back a compressed archive would be unpacked from its start again, so
    the last members that were passed over are kept.
    """

    kind = "tar"

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._lock = threading.Lock()
        try:
            self._archive = tarfile.open(root)  # noqa: SIM115, closed by close()
        except Exception as error:
            raise UsageError(f"{root} cannot be read as a tar archive: {first_line(error)}") from error
        self._closing = weakref.finalize(self, self._archive.close)  # a ZipFile sees to that itself
        self._members: dict[str, tarfile.TarInfo] | None = None
        self._compressed = not isinstance(self._archive.fileobj, io.BufferedReader)
        self._order: list[tuple[int, str]] = []
        self._position = 0
        self._passed: dict[str, bytes] = {}

    def _index(self) -> dict[str, tarfile.TarInfo]:
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
            for path, member in self._index().items():
                if _hidden(path) or excluded(path, exclude):
                    continue
                if _claims(path) or self._sniff(member):
                    found.entries.append(Entry(path, member.size, int(member.mtime)))
                else:
                    found.skipped += 1
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

    def _pass_over(self, member: tarfile.TarInfo) -> None:
        """Keeps what lies between the last member that was read and this one, before it is read."""
        end = bisect.bisect_left(self._order, (member.offset_data, ""))
        start = bisect.bisect_left(self._order, (self._position, ""))
        self._position = member.offset_data + 1
        for _, path in self._order[max(start, end - KEPT) : end]:
            passed = self._index()[path]
            if passed.size <= KEPT_BYTES:
                self._passed[path] = self._open(passed).read()
            while len(self._passed) > KEPT or sum(map(len, self._passed.values())) > KEPT_BYTES:
                del self._passed[next(iter(self._passed))]

    def read(self, path: str) -> bytes:
        return self._read(path, lambda file: file.read())

    def stream(self, path: str) -> IO[bytes]:
        return self._read(path, spool)

    def _read(self, path: str, how: Callable[[IO[bytes]], T]) -> T:
        with self._lock:
            if (passed := self._passed.pop(path, None)) is not None:
                return how(io.BytesIO(passed))
            try:
                member = self._index().get(path)
            except UsageError as error:
                raise ImageError(str(error)) from error
            if member is None:
                raise ImageError("no such member in the archive")
            if member.size > LARGEST_BYTES:
                raise ImageError(f"too large: the limit is {LARGEST_BYTES:,} bytes")
            if self._compressed:
                with contextlib.suppress(Exception):  # a damaged archive, of which this member says as much
                    self._pass_over(member)
            try:
                return how(self._open(member))
            except Exception as error:
                raise ImageError(f"cannot be read from the archive: {first_line(error)}") from error

    def close(self) -> None:
        self._closing()
