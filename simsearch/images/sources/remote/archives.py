"""Archives on other machines, as sources.

A .zip file contains a list of its members. This list is read first. Then each member is read with a request for its
range of bytes; several members can be read at once. A build that continues an interrupted one need not read the members
that were already indexed. If the server sends only whole files, the .zip file is copied into a temporary file instead.

A .tar file has no list of members, so the whole file is copied into a temporary file. The list made from the copy is
kept in the cache folder, so that an unchanged archive need not be copied again to be listed.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import io
import json
import struct
import tarfile
import threading
import zipfile
import zlib
from abc import abstractmethod
from collections import Counter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar

from simsearch.common import outside_json
from simsearch.common.atomic_files import atomic_write
from simsearch.common.cache import cache_dir
from simsearch.errors import ImageError, UsageError
from simsearch.images.decode import LARGEST_BYTES
from simsearch.images.sources.archives import TarSource, ZipSource
from simsearch.images.sources.base import Entry, Listing, Source
from simsearch.images.sources.exclude import Exclusion
from simsearch.images.sources.members import member_path
from simsearch.images.sources.remote import addresses
from simsearch.images.sources.remote.source import RemoteStoreMixin
from simsearch.images.sources.remote.store import RemoteObject

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

A = TypeVar("A", ZipSource, "_SpooledTar")

BLOCK_BYTES = 1 << 20
"""The list of a .zip file's members is read in parts of this size."""

LOCAL_HEADER = 30
"""Number of bytes in a member's header in a .zip file, up to the member's name."""

LONGEST_HEADER = LOCAL_HEADER + 2 * 0xFFFF


class _RemoteArchive(RemoteStoreMixin, Source, Generic[A]):
    """An archive that is one object on a server. It is opened when it is first listed or read."""

    remote = True

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._init_store()
        self._folder, _, self._name = root.rpartition("/")
        self._opening = threading.Lock()
        self._archive: A | None = None
        self._facts: RemoteObject | None = None

    @abstractmethod
    def _open(self) -> A:
        """Opens the archive.

        Raises UsageError if it cannot be opened, and UnavailableError if the server was not reached (see `Store.read`).
        """

    def _members(self) -> A:
        """Returns the opened archive, as a source of its members; opens the archive at the first call.

        Raises UsageError if the archive cannot be opened, and UnavailableError if the server was not reached (see
        `Store.read`).
        """
        with self._opening:
            if self._archive is None:
                self._archive = self._open()
            return self._archive

    def read(self, path: str) -> bytes:
        with _as_image_error():
            return self._members().read(path)

    def close(self) -> None:
        self._close_store()
        with self._opening:
            opened, self._archive = self._archive, None
        if opened is not None:
            opened.close()

    def facts(self) -> RemoteObject:
        """Returns the archive's size and identity.

        Raises UsageError if the archive does not exist, is empty, or has no known size.
        """
        if self._facts is None:
            try:
                found = self._opened(self._folder).info(self._name)
            except ImageError as error:
                raise UsageError(f"{self.root} cannot be read: {error}", **error.hints) from error
            if found is None:
                raise UsageError(f"there is no archive at {self.root}")
            if not found.size:
                raise UsageError(f"{self.root} is empty, or the server does not tell the size of the file")
            self._facts = found
        return self._facts

    def copy(self) -> IO[bytes]:
        """Copies the archive into a temporary file, and returns the file.

        Raises UsageError if it cannot be copied, and UnavailableError if the server was not reached (see `Store.read`).
        """
        try:
            return self._opened(self._folder).spool(self._name, self.facts().size or 0)
        except ImageError as error:
            raise UsageError(f"{self.root} cannot be read: {error}", **error.hints) from error

    def read_part(self, start: int, end: int) -> bytes:
        """Reads the archive's bytes from `start` to before `end`. Raises the errors of `Store.read`."""
        return self._opened(self._folder).read(self._name, start, end)

    def identity(self, path: str) -> tuple[Any, ...] | None:
        return (self.display(path),)

    def is_link(self, path: str) -> bool:
        return False


@contextlib.contextmanager
def _as_image_error() -> Iterator[None]:
    """Turns a UsageError of the `with` block into an ImageError.

    The block reads an image, which opens the archive first. Callers that read an image expect only ImageError, also if
    the archive cannot be opened.
    """
    try:
        yield
    except UsageError as error:
        raise ImageError(str(error), **error.hints) from error


class _Spooled(Source):
    """Base class of archives in a temporary file. Closing the source closes the file."""

    def __init__(self, root: str, file: IO[bytes]) -> None:
        self._file = file
        with contextlib.ExitStack() as stack:
            stack.callback(file.close)
            super().__init__(root)
            stack.pop_all()

    def close(self) -> None:
        super().close()
        self._file.close()


class RemoteZipSource(_RemoteArchive[ZipSource]):
    """A .zip file on another machine; otherwise like `ZipSource`."""

    kind = addresses.ZIP_KIND

    def _open(self) -> ZipSource:
        self.facts()
        ranges = self._opened(self._folder).ranges
        return _RangedZip(self) if ranges else _SpooledZip(self.root, self.copy())

    def listing(self, exclude: Sequence[str] = ()) -> Listing:
        return self._members().listing(exclude)


class _SpooledZip(_Spooled, ZipSource):
    """A .zip file in a temporary file, for servers that send whole files only."""

    def _container(self) -> IO[bytes]:
        return self._file


class _RangedZip(ZipSource):
    """A remote .zip file whose members are read by ranges of bytes."""

    def __init__(self, archive: RemoteZipSource) -> None:
        self._remote = archive
        super().__init__(archive.root)
        self._starts = sorted({member.header_offset for member in self._archive.infolist()} | {self._archive.start_dir})

    def _container(self) -> IO[bytes]:
        size = self._remote.facts().size or 0
        return io.BufferedReader(_RangedFile(self._remote, size), BLOCK_BYTES)

    def read(self, path: str) -> bytes:
        """Reads a member in one request, for its range of bytes."""
        member = self._members.get(path) or self._members.get(member_path(path))
        if member is None:
            raise ImageError("no such member in the archive")
        if member.file_size > LARGEST_BYTES or member.compress_size > LARGEST_BYTES:
            raise ImageError(f"too large: the limit is {LARGEST_BYTES:,} bytes")
        if member.flag_bits & 1 or member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            return super().read(path)
        start = member.header_offset
        end = min(self._end_of(start), start + LONGEST_HEADER + member.compress_size)
        return _content(member, self._remote.read_part(start, end))

    def _end_of(self, start: int) -> int:
        """Returns the offset at which the next member, or the list of members, begins.

        start: the offset of a member.
        """
        place = bisect.bisect_right(self._starts, start)
        return self._starts[place] if place < len(self._starts) else self._remote.facts().size or start


def _content(member: zipfile.ZipInfo, data: bytes) -> bytes:
    """Returns a member's content, decompressed. Raises ImageError if the member is damaged.

    data: bytes of the archive, from the member's header on.
    """
    if len(data) < LOCAL_HEADER or data[:4] != b"PK\3\4":
        raise ImageError("cannot be read from the archive: it has changed, or is damaged")
    name, extra = struct.unpack_from("<HH", data, 26)
    start = LOCAL_HEADER + name + extra
    packed = data[start : start + member.compress_size]
    try:
        if member.compress_type == zipfile.ZIP_DEFLATED:
            packed = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, member.file_size + 1)
    except zlib.error as error:
        raise ImageError(f"cannot be read from the archive: {error}") from error
    if len(packed) != member.file_size or zlib.crc32(packed) != member.CRC:
        raise ImageError("cannot be read from the archive: its checksum is wrong")
    return packed


class _RangedFile(io.RawIOBase):
    """A remote archive as a seekable file, which reads by ranges of bytes."""

    def __init__(self, archive: RemoteZipSource, size: int) -> None:
        self._archive, self._size, self._position = archive, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._size, self._position + len(buffer))
        if end <= self._position:
            return 0
        data = self._archive.read_part(self._position, end)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class RemoteTarSource(_RemoteArchive["_SpooledTar"]):
    """A .tar file on another machine, plain or compressed; otherwise like `TarSource`."""

    kind = addresses.TAR_KIND

    def _open(self) -> _SpooledTar:
        return _SpooledTar(self.root, self.copy())

    def listing(self, exclude: Sequence[str] = ()) -> Listing:
        facts, leave_out = self.facts(), Exclusion(exclude, self.root)
        place = _list_file(self.root, facts) if facts.identity else None
        found = _read_list(place) if place is not None else None
        if found is None:
            found = self._members().listing()
            if place is not None:
                _write_list(place, found)
        found.entries = [entry for entry in found.entries if not leave_out(entry.path)]
        found.matched = leave_out.matched
        return found

    def stream(self, path: str) -> IO[bytes]:
        with _as_image_error():
            return self._members().stream(path)


class _SpooledTar(_Spooled, TarSource):
    """A .tar file in a temporary file."""

    def __init__(self, root: str, file: IO[bytes]) -> None:
        super().__init__(root, file)
        self._compressed = self._archive.fileobj is not file

    def _open_archive(self) -> tarfile.TarFile:
        return tarfile.open(fileobj=self._file)


def _list_file(root: str, facts: RemoteObject) -> Path:
    key = json.dumps([root, facts.size, facts.identity])
    return cache_dir() / "remote" / "lists" / (hashlib.sha256(key.encode()).hexdigest() + ".json")


def _write_list(path: Path, found: Listing) -> None:
    """Writes the list of an archive's members to the cache. Errors are ignored, as the list can be made again."""
    entries = [[entry.path, entry.size, entry.stamp] for entry in found.entries]
    content = {"entries": entries, "skipped": found.skipped, "left_out": dict(found.left_out)}
    with contextlib.suppress(OSError, UsageError, UnicodeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(content).encode(), follow_links=False)


def _read_list(path: Path) -> Listing | None:
    """Reads a list of members from the cache; None if there is none, or it is damaged."""
    try:
        content = outside_json.parse(path.read_bytes())
        entries = [Entry(str(name), int(size), int(stamp)) for name, size, stamp in content["entries"]]
        return Listing(entries, int(content["skipped"]), Counter(content["left_out"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
