"""Where images come from. A source lists its images and reads the bytes of one.

A source has a root on disk; the path of each image in it is relative to that root, so that an index survives when both
move. An image inside a container (an archive, a table, a data set) is written `container!/member`.

Names of files are `str` as `os.fsdecode` gives them, so that bytes which are no UTF-8 survive.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import io
import os
import shutil
import stat
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from simsearch.errors import ImageError
from simsearch.images.decode import EXTENSIONS, LARGEST_BYTES, looks_like_image

if TYPE_CHECKING:
    from collections.abc import Sequence

SEPARATOR = "!/"
"""Between a container and its member in a printed path."""

GONE = os.strerror(errno.ENOENT)
"""The problem of an entry whose file does not exist (any more)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source.

    size in bytes and stamp (a file's mtime in ns, a zip member's CRC, ...) tell whether it may have changed.
    problem: why it cannot be read, known from listing alone.
    """

    path: str
    size: int
    stamp: int
    label: str | None = None
    metadata: dict[str, Any] | None = None
    problem: str | None = None


@dataclass
class Listing:
    """What a source holds. skipped: files that are no images. unread: folders that could not be listed."""

    entries: list[Entry] = field(default_factory=list)
    skipped: int = 0
    unread: list[tuple[str, str]] = field(default_factory=list)


class Source(ABC):
    """A place with images. `kind` and `root` identify it in the index."""

    kind: str
    labelled = False
    """Whether the source itself says each image's label; otherwise folders may."""

    def __init__(self, root: str, within: str = "") -> None:
        self.root = root
        self.within = within
        """Only this file or folder below the root is listed, where the kind of source can; a relative path."""

    @abstractmethod
    def listing(self, exclude: Sequence[str] = ()) -> Listing:
        """All images, in a fixed order. exclude: globs over relative paths or single names, to be left out."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """The bytes of one image. Raises ImageError with the reason. Safe for several threads."""

    def stream(self, path: str) -> IO[bytes]:
        """One image, opened: for one that is better not held in memory as a whole. As `read` otherwise."""
        return io.BytesIO(self.read(path))

    def display(self, path: str) -> str:
        """The path as printed: it can be given back to `query`."""
        return display_path(self.kind, self.root, path)

    def close(self) -> None:
        """Lets go of open files."""
        return


class FolderSource(Source):
    """A folder and all below it. Hidden files and folders are skipped, links are followed, each folder once."""

    kind = "folder"

    def __init__(self, root: str, within: str = "") -> None:
        super().__init__(root, within)
        self.only: frozenset[str] | None = None
        """Only these paths are listed: of a folder from which single files were added."""

    def listing(self, exclude: Sequence[str] = ()) -> Listing:
        found = Listing()
        start = os.path.join(self.root, self.within) if self.within else self.root
        if self.only is not None:
            for path in sorted(path for path in self.only if os.path.lexists(self.display(path))):
                self._file(self.display(path), path, found, named=True)
        elif os.path.isdir(start) or not self.within:  # a root that is gone is no image that is gone
            self._walk(start, self.within, exclude, found, set())
        else:
            self._file(start, self.within, found, named=True)
        return found

    def _walk(
        self, folder: str, relative: str, exclude: Sequence[str], found: Listing, seen: set[tuple[int, int]]
    ) -> None:
        pending = [(folder, relative)]
        while pending:
            folder, relative = pending.pop()
            try:
                facts = os.stat(folder)
                if (facts.st_dev, facts.st_ino) in seen:  # a link back up, or a second way to the same folder
                    continue
                seen.add((facts.st_dev, facts.st_ino))
                with os.scandir(folder) as scan:
                    children = sorted(scan, key=lambda child: os.fsencode(child.name))
            except OSError as error:
                found.unread.append((relative, error.strerror or str(error)))
                continue
            if {"items.sqlite", "meta.json", "features"} <= {child.name for child in children}:
                continue  # an index inside its own source
            below = []
            for child in children:
                path = f"{relative}/{child.name}" if relative else child.name
                if child.name.startswith(".") or excluded(path, exclude):
                    continue
                if _is_folder(child):
                    below.append((child.path, path))
                else:
                    self._file(child.path, path, found)
            pending.extend(reversed(below))

    def _file(self, full: str, path: str, found: Listing, named: bool = False) -> None:
        claims = named or os.path.splitext(path)[1].lower() in EXTENSIONS
        try:
            facts = os.stat(full)
            if not stat.S_ISREG(facts.st_mode):  # a pipe would block, a device never end
                found.skipped += 1
                return
            if not claims:
                with open(full, "rb") as file:
                    claims = looks_like_image(file.read(32))
        except OSError as error:
            if claims:
                found.entries.append(Entry(path, 0, 0, problem=_reason(error)))
            else:
                found.skipped += 1
            return
        if claims:
            found.entries.append(Entry(path, facts.st_size, file_stamp(facts)))
        else:
            found.skipped += 1

    def read(self, path: str) -> bytes:
        return read_file(self.display(path))

    def stream(self, path: str) -> IO[bytes]:
        return open_file(self.display(path))


def _is_folder(child: os.DirEntry[str]) -> bool:
    try:
        return child.is_dir()
    except OSError:  # a link to itself, for one
        return False


def display_path(kind: str, root: str, path: str) -> str:
    """How an image of a source is printed; the one place that knows where members of each kind lie."""
    if kind == "folder":
        return os.path.join(root, path)
    if kind == "manifest":
        return os.path.join(os.path.dirname(root), path)
    return root + SEPARATOR + path


def read_file(path: str) -> bytes:
    """A regular file's bytes. Raises ImageError with the reason."""
    with open_file(path) as file:
        try:
            return file.read()
        except OSError as error:
            raise ImageError(_reason(error)) from error


def open_file(path: str) -> IO[bytes]:
    """A regular file, opened. Raises ImageError with the reason."""
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(path, "rb", opener=_open_nonblocking))
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise ImageError("not a regular file")
            if facts.st_size > LARGEST_BYTES:
                raise ImageError(f"too large: {facts.st_size:,} bytes, the limit is {LARGEST_BYTES:,}")
            stack.pop_all()
            return file
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise ImageError(_reason(error)) from error


def spool(member: IO[bytes]) -> IO[bytes]:
    """A member of an archive as a file of its own, which has no name and is gone when it is closed."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile())
        shutil.copyfileobj(member, file, 1 << 20)
        file.seek(0)
        stack.pop_all()
        return file


def file_stamp(facts: os.stat_result) -> int:
    """A file's mtime in ns, in the 63 bits that a database has for it (enough until the year 2262)."""
    return facts.st_mtime_ns & (2**63 - 1)


def excluded(path: str, globs: Sequence[str]) -> bool:
    """Whether a relative path, a folder on its way, or the name of either matches one of the globs."""
    parts = path.split("/") if globs else []
    for count, name in enumerate(parts, 1):
        start = "/".join(parts[:count])
        if any(fnmatch.fnmatchcase(start, glob) or fnmatch.fnmatchcase(name, glob) for glob in globs):
            return True
    return False


def folder_labels(entries: Sequence[Entry], forced: bool) -> list[str | None]:
    """The name of the folder that each image sits in, if every image sits in one; else None for all.

    forced: images at the top do not keep the others from being labelled.
    """
    parents = [entry.path.rpartition("/")[0].rpartition("/")[2] or None for entry in entries]
    if not forced and not all(parents):
        return [None] * len(entries)
    return list(parents)


def first_line(error: Exception) -> str:
    """What another library says of a failure, in one line."""
    return str(error).strip().partition("\n")[0].rstrip(": ") or type(error).__name__


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _open_nonblocking(path: str, flags: int) -> int:
    """Opens a pipe too without waiting for somebody to write to it."""
    return os.open(path, flags | os.O_NONBLOCK)
