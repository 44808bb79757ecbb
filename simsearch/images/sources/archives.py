"""Zip and tar archives as sources of images. Members are read in place, or copied to temporary files if large."""

from __future__ import annotations

import bisect
import contextlib
import io
import os
import stat
import tarfile
import threading
import weakref
import zipfile
from typing import IO, TYPE_CHECKING, Any, TypeVar

from simsearch.errors import ImageError, UnavailableError, UsageError
from simsearch.images.decode import EXTENSIONS, LARGEST_BYTES, looks_like_image
from simsearch.images.sources.base import Entry, Listing, Source, file_identity, first_line, spool
from simsearch.images.sources.exclude import Exclusion
from simsearch.images.sources.members import MOST_LINKS, by_path, is_hidden, link_target, member_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

CACHED_MEMBERS, CACHED_BYTES = 64, 64 << 20
"""Limits on the number and the bytes of the members that are cached for a compressed tar archive.

Members that were decompressed only to reach a later member are cached, until they are read.
"""


LONGEST_LINK = 4096
"""The most bytes that are read of a symbolic link in a .zip file."""

HIDDEN, LINK_OUT = "hidden files of an archive", "links that lead to no file of the archive"
"""Reasons for leaving out members."""


def _has_image_extension(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in EXTENSIONS


class ZipSource(Source):
    """A .zip file as a source. Raises UsageError if it cannot be read.

    A member's stamp (see `Entry`) is its CRC-32, so images that are zipped again count as unchanged.
    """

    kind = "zip"

    def __init__(self, root: str) -> None:
        super().__init__(root)
        try:
            self._archive = zipfile.ZipFile(self._container())
        except UnavailableError:  # a remote archive cannot be reached
            raise
        except Exception as error:  # hostile bytes make the readers of archives raise nearly anything
            raise UsageError(f"{root} cannot be read as a zip archive: {first_line(error)}") from error
        self._members = by_path(
            (member.orig_filename, member) for member in self._archive.infolist() if not _is_zip_folder(member)
        )  # `filename` is cut off at a NUL byte
        links = {path: member for path, member in self._members.items() if stat.S_ISLNK(member.external_attr >> 16)}
        texts = {path: self._link_text(member) for path, member in links.items()}
        targets = {path: link_target(path, texts) for path in links}
        files = {path: member for path, member in self._members.items() if path not in links}
        self._broken = sum(target not in files for target in targets.values())
        self._members = files | {path: files[target] for path, target in targets.items() if target in files}

    def _container(self) -> str | IO[bytes]:
        """Returns what `zipfile` opens: the archive's path, or an open file in the subclasses for remote archives."""
        return self.root

    def _link_text(self, member: zipfile.ZipInfo) -> str:
        """Returns the path that a symbolic link contains; "/", which leads nowhere, if the link cannot be read."""
        try:
            with self._archive.open(member) as file:
                return os.fsdecode(file.read(LONGEST_LINK))
        except Exception:
            return "/"

    def listing(self, exclude: Sequence[str] = ()) -> Listing:
        found, leave_out = Listing(), Exclusion(exclude, self.root)
        for _ in range(self._broken):
            found.leave_out(LINK_OUT)
        for path, member in sorted(self._members.items()):
            if is_hidden(path):
                found.leave_out(HIDDEN)
            elif leave_out(path):
                continue
            elif _has_image_extension(path) or self._sniff(member):
                found.entries.append(Entry(path, member.file_size, member.CRC))
            else:
                found.skip(path)
        found.matched = leave_out.matched
        return found

    def identity(self, path: str) -> tuple[Any, ...] | None:
        member, archive = self._members.get(path), file_identity(self.root)
        return None if member is None or archive is None else (*archive, member.header_offset)

    def is_link(self, path: str) -> bool:
        return os.path.realpath(self.root) != self.root

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
        member = self._members.get(path) or self._members.get(member_path(path))  # older versions recorded the name
        if member is None:
            raise ImageError("no such member in the archive")
        if member.file_size > LARGEST_BYTES:
            raise ImageError(f"too large: the limit is {LARGEST_BYTES:,} bytes")
        if member.flag_bits & 1:
            raise ImageError("cannot be read from the archive: it is encrypted, password required")
        try:
            with self._archive.open(member) as file:
                return read(file)
        except Exception as error:
            raise ImageError(f"cannot be read from the archive: {first_line(error)}") from error

    def close(self) -> None:
        self._archive.close()


def _is_zip_folder(member: zipfile.ZipInfo) -> bool:
    name = member.orig_filename
    return name.endswith("/") or (name.endswith("\\") and not member.file_size)


def _offset(pair: tuple[str, tarfile.TarInfo]) -> int:
    return pair[1].offset_data


def _kept_by_links(members: Sequence[tarfile.TarInfo]) -> dict[str, tarfile.TarInfo]:
    """Returns a dict from the path of a hard link to its file, for files that can only be reached through such a link.

    An archive may contain a file, then a hard link to it, and then another file with the name of the first. That name
    now means the later file, so only the link still leads to the first.
    """
    seen: dict[str, tarfile.TarInfo] = {}
    for member in members:
        before = seen.get(member_path(member.linkname)) if member.islnk() else None
        seen[member_path(member.name)] = member if before is None else before
    return {
        path: member
        for path, member in seen.items()
        if member.isfile() and path != (own := member_path(member.name)) and seen[own] is not member
    }


def _stamp(member: tarfile.TarInfo) -> int:
    """Returns a member's modification time in seconds; 0 if SQLite cannot store the time."""
    return int(member.mtime) if abs(member.mtime) < 2**62 else 0


class TarSource(Source):
    """A .tar file, plain or compressed, as a source. Raises UsageError if it cannot be read.

    Members are listed in the archive's order, in which reading is fastest. A link is listed after the file that it
    leads to. Links that lead to no file of the archive are left out.

    Several threads may share the source. Together they read the members in nearly, but not exactly, the archive's
    order. Going back in a compressed archive would mean decompressing it again from its start. Therefore, members that
    are decompressed on the way to a later one are cached; old ones are dropped from the cache.
    """

    kind = "tar"

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._lock = threading.Lock()
        try:
            self._archive = self._open_archive()
        except UnavailableError:  # a remote archive cannot be reached
            raise
        except Exception as error:
            raise UsageError(f"{root} cannot be read as a tar archive: {first_line(error)}") from error
        self._closing = weakref.finalize(self, self._archive.close)  # a ZipFile closes itself
        self._members: dict[str, tarfile.TarInfo] | None = None
        self._links: dict[str, str] = {}
        """Maps the path of each link to the path of the file that it leads to."""
        self._broken = self._other = 0
        self._compressed = not isinstance(self._archive.fileobj, io.BufferedReader)
        self._order: list[tuple[int, str]] = []
        self._position = 0
        self._skipped: dict[str, bytes] = {}

    def _open_archive(self) -> tarfile.TarFile:
        return tarfile.open(self.root)

    def _members_by_path(self) -> dict[str, tarfile.TarInfo]:
        """Returns a dict from the path of each file and link to the file; reads the members at the first call.

        Raises UsageError if the archive is damaged.
        """
        if self._members is None:
            try:
                listed = [member for member in self._archive.getmembers() if not member.isdir()]
                members = by_path((member.name, member) for member in listed) | _kept_by_links(listed)
                files = {path: member for path, member in members.items() if member.isfile()}
                self._follow_links(members, files)
            except Exception as error:
                raise UsageError(f"{self.root} is damaged: {first_line(error)}") from error
            self._order = [(member.offset_data, path) for path, member in files.items()] * self._compressed
            self._order.sort()
            in_order = sorted(
                {**files, **{path: files[target] for path, target in self._links.items()}}.items(), key=_offset
            )
            self._members = dict(in_order)
        return self._members

    def _follow_links(self, members: dict[str, tarfile.TarInfo], files: dict[str, tarfile.TarInfo]) -> None:
        """Finds the file that each link leads to, and records the file's path in `_links`.

        A hard link contains the name of a member; a symbolic link contains a path relative to its own folder.
        Also counts the links that lead to no file (`_broken`), and the pipes and devices (`_other`).
        members: all members by path. files: the regular files among them.
        """
        texts = {path: member.linkname for path, member in members.items() if member.issym()}
        hard = {path: member_path(member.linkname) for path, member in members.items() if member.islnk()}
        for path in [*hard, *texts]:
            target: str | None = path
            for _ in range(MOST_LINKS):
                target = link_target(hard.get(target or "", target or ""), texts)
                if target not in hard:
                    break
            if target in files and target is not None:
                self._links[path] = target
        self._broken = len(hard) + len(texts) - len(self._links)
        self._other = len(members) - len(hard) - len(texts) - len(files)  # pipes and devices

    def listing(self, exclude: Sequence[str] = ()) -> Listing:
        found, leave_out = Listing(), Exclusion(exclude, self.root)
        with self._lock:
            for path, member in self._members_by_path().items():
                if is_hidden(path):
                    found.leave_out(HIDDEN)
                elif leave_out(path):
                    continue
                elif _has_image_extension(path) or self._sniff(member):
                    found.entries.append(Entry(path, member.size, _stamp(member)))
                else:
                    found.skip(path)
            found.skipped += self._other
            for _ in range(self._broken):
                found.leave_out(LINK_OUT)
        found.matched = leave_out.matched
        return found

    def identity(self, path: str) -> tuple[Any, ...] | None:
        archive = file_identity(self.root)
        with self._lock:
            member = self._members_by_path().get(path)
        return None if member is None or archive is None else (*archive, member.offset_data)

    def is_link(self, path: str) -> bool:
        return path in self._links or os.path.realpath(self.root) != self.root

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
        """Caches members that have to be decompressed anyway: those between the last member read and `member`."""
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
            try:
                if path not in self._members_by_path():
                    path = member_path(path)  # older versions recorded the name
                member = self._members_by_path().get(path)
            except UsageError as error:
                raise ImageError(str(error)) from error
            path = self._links.get(path, path)
            if (skipped := self._skipped.pop(path, None)) is not None:
                return read(io.BytesIO(skipped))
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
