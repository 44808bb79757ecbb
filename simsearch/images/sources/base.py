"""Sources of images. A `Source` lists images and reads their bytes; `FolderSource` is the simplest kind.

A source has a root (a path or an address), and the paths of its images are relative to the root, so that an index can
move together with its images. The path of an image inside a container (an archive, a Parquet file, a data set) is
printed as `container!/member`.

File names are `str` as `os.fsdecode` returns them, so that bytes that are not UTF-8 are kept.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import stat
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from simsearch.common.regular_files import open_nonblocking
from simsearch.errors import ImageError
from simsearch.images.decode import EXTENSIONS, LARGEST_BYTES, left_out, looks_like_image
from simsearch.images.sources.exclude import Exclusion
from simsearch.images.sources.remote import addresses

if TYPE_CHECKING:
    from collections.abc import Sequence

SEPARATOR = "!/"
"""Separates a container and its member in a printed path."""

DATASET_PREFIX = "torchvision/"
"""The prefix of a root that names a data set of torchvision."""

GONE = os.strerror(errno.ENOENT)
"""`Entry.problem` of a file that does not exist."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source.

    path: relative to the source's root. size: in bytes.
    stamp: a number that changes with the image, such as a file's mtime in ns or a zip member's CRC. An image with the
    same size and stamp counts as unchanged.
    problem: the reason that the image cannot be read, if listing has found one.
    """

    path: str
    size: int
    stamp: int
    label: str | None = None
    metadata: dict[str, Any] | None = None
    problem: str | None = None


@dataclass
class Listing:
    """The result of listing a source.

    entries: the images.
    skipped: number of files that are not in `entries`; files that match `exclude` are not counted.
    left_out: for each reason, the number of skipped files that are never read, such as videos.
    unread: folders that could not be listed, and files for which the request to a web server failed, with the reasons.
    matched: the patterns of `exclude` that matched at least one path.
    """

    entries: list[Entry] = field(default_factory=list)
    skipped: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    unread: list[tuple[str, str]] = field(default_factory=list)
    matched: set[str] = field(default_factory=set)

    def leave_out(self, reason: str) -> None:
        """Counts a file in `skipped`, and in `left_out` under the reason given."""
        self.skipped += 1
        self.left_out[reason] += 1

    def skip(self, path: str, head: bytes = b"") -> None:
        """Counts a file in `skipped`, and also in `left_out` if files of its kind, such as videos, are never read.

        head: the file's first bytes, which show its kind if the extension does not.
        """
        if (kind := left_out(path, head)) is not None:
            self.leave_out(f"{kind}s, which are not read")
        else:
            self.skipped += 1


class Source(ABC):
    """A collection of images. An index records it by its `kind`, such as "folder" or "zip", and its `root`."""

    kind: str
    download = True
    """False if a missing data set must not be downloaded, because only an index names it."""

    nests = False
    """True for folders: one source can lie inside another, and a source can be restricted to single images."""

    quick = False
    """True to give up soon on an image on another machine, because a user is waiting for it."""

    public_only = False
    """True to refuse web servers that are not on the public Internet, for a source that only an index names."""

    remote = False
    """True if reading an image waits for another machine, so that several should be read at once."""

    labelled = False
    """True if the source itself has labels; otherwise the names of the images' folders may be used as labels."""

    def __init__(self, root: str, within: str = "") -> None:
        self.root = root
        self.within = within
        """The relative path of the only file or folder to list, if the kind of source supports that; empty for all."""
        self.only: frozenset[str] | None = None
        """The only paths to list, for a folder from which single files were added; None for all."""
        self.outside = True
        """False to leave out files outside `folder`, including those that links lead to."""

    @property
    def folder(self) -> str | None:
        """The folder that the paths are relative to; None if the images are in a container."""
        return None

    @abstractmethod
    def listing(self, exclude: Sequence[str] = ()) -> Listing:
        """Lists images in a fixed order, without those that match `exclude` (see `Exclusion`). Raises UsageError."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """Reads the bytes of an image. Raises ImageError with the reason. Safe for several threads."""

    def stream(self, path: str) -> IO[bytes]:
        """Opens an image as a file, for images that are too large to hold in memory. Raises ImageError, like `read`."""
        return io.BytesIO(self.read(path))

    def identity(self, path: str) -> tuple[Any, ...] | None:
        """Returns a value that is equal for two paths of one file, even in two sources; None if there is no file."""
        return file_identity(self.display(path))

    def size_and_stamp(self, path: str) -> tuple[int, int] | None:
        """Returns an image's size and stamp (see `Entry`); None if it does not exist, or is a part of a container."""
        return None

    def is_link(self, path: str) -> bool:
        """Returns True if the path of an image, or of its container, leads through a link."""
        return os.path.realpath(self.display(path)) != self.display(path)

    def display(self, path: str) -> str:
        """Returns an image's path as it is printed. `simsearch query` accepts the printed path."""
        return display_path(self.kind, self.root, path)

    def close(self) -> None:
        """Closes open files."""
        return


class FolderSource(Source):
    """A folder with its subfolders, without hidden files. Links are followed, but each folder is listed once."""

    kind = "folder"
    nests = True

    @property
    def folder(self) -> str:
        return self.root

    def listing(self, exclude: Sequence[str] = ()) -> Listing:
        found = Listing()
        leave_out = Exclusion(exclude, self.root)
        start = os.path.join(self.root, self.within) if self.within else self.root
        if self.only is not None:
            for path in sorted(path for path in self.only if os.path.lexists(self.display(path))):
                self._file(self.display(path), path, found, named=True)
        elif os.path.isdir(start) or not self.within:  # a missing root is an unread folder, not an image
            self._walk(start, self.within, leave_out, found, set())
        else:
            self._file(start, self.within, found, named=True)
        found.matched = leave_out.matched
        return found

    def _walk(
        self, folder: str, relative: str, leave_out: Exclusion, found: Listing, seen: set[tuple[int, int]]
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
                continue  # an index that lies inside the source
            below = []
            for child in children:
                path = f"{relative}/{child.name}" if relative else child.name
                if child.name.startswith("."):
                    continue
                is_folder = _is_folder(child)
                if leave_out(path, is_folder):
                    continue
                if is_folder:
                    below.append((child.path, path))
                else:
                    self._file(child.path, path, found)
            pending.extend(reversed(below))

    def _file(self, full: str, path: str, found: Listing, named: bool = False) -> None:
        is_image, head = named or os.path.splitext(path)[1].lower() in EXTENSIONS, b""
        try:
            facts = os.stat(full)
            if not stat.S_ISREG(facts.st_mode):  # reading a pipe may block, reading a device may never end
                found.skipped += 1
                return
            if not is_image:
                with open(full, "rb") as file:
                    head = file.read(32)
                is_image = looks_like_image(head)
        except OSError as error:
            if is_image:
                found.entries.append(Entry(path, 0, 0, problem=_reason(error)))
            else:
                found.skipped += 1
            return
        if is_image:
            found.entries.append(Entry(path, facts.st_size, file_stamp(facts)))
        else:
            found.skip(path, head)

    def size_and_stamp(self, path: str) -> tuple[int, int] | None:
        return file_size_and_stamp(self.display(path))

    def read(self, path: str) -> bytes:
        return read_file(self.display(path))

    def stream(self, path: str) -> IO[bytes]:
        return open_file(self.display(path))


def _is_folder(child: os.DirEntry[str]) -> bool:
    try:
        return child.is_dir()
    except OSError:  # for example a link to itself
        return False


def display_path(kind: str, root: str, path: str) -> str:
    """Returns the path of an image as it is printed. Only this function defines the format.

    kind, root: of the image's source. path: relative to the root.
    """
    if kind == "folder":
        return os.path.join(root, path)
    if kind == "manifest":
        return os.path.join(os.path.dirname(root), path)
    if kind == addresses.KIND:
        return addresses.joined(root, path)
    return root + SEPARATOR + path


def read_file(path: str) -> bytes:
    """Reads a regular file. Raises ImageError with the reason."""
    with open_file(path) as file:
        try:
            return file.read()
        except OSError as error:
            raise ImageError(_reason(error)) from error


def open_file(path: str) -> IO[bytes]:
    """Opens a regular file. Raises ImageError with the reason."""
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(path, "rb", opener=open_nonblocking))
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
    """Copies a member of an archive into a temporary file, which is deleted when it is closed."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile())
        shutil.copyfileobj(member, file, 1 << 20)
        file.seek(0)
        stack.pop_all()
        return file


def file_identity(path: str) -> tuple[Any, ...] | None:
    """Returns the device and inode of a file, the same for all its names; None if the file cannot be found."""
    try:
        facts = os.stat(path)
    except (OSError, ValueError):
        return None
    return (facts.st_dev, facts.st_ino) if facts.st_ino else (os.path.realpath(path),)  # some systems have no inodes


def file_size_and_stamp(path: str) -> tuple[int, int] | None:
    """Returns the size (bytes) and stamp of a file; None if the file cannot be found."""
    try:
        facts = os.stat(path)
    except (OSError, ValueError):
        return None
    return facts.st_size, file_stamp(facts)


def file_stamp(facts: os.stat_result) -> int:
    """Returns a file's mtime in ns, cut to the 63 bits that SQLite stores (enough until the year 2262)."""
    return facts.st_mtime_ns & (2**63 - 1)


def folder_labels(entries: Sequence[Entry]) -> list[str | None]:
    """Returns a label for each image: the name of its folder, or None for an image at the top of the source.

    The label of an image depends on its own path alone, so that another file cannot change it.
    """
    return [entry.path.rpartition("/")[0].rpartition("/")[2] or None for entry in entries]


def first_line(error: Exception) -> str:
    """Returns the first line of another library's error message, or the name of the error's type if there is none."""
    return str(error).strip().partition("\n")[0].rstrip(": ") or type(error).__name__


def _reason(error: OSError | ValueError) -> str:
    known = "no file has such a name" if isinstance(error, UnicodeError) else getattr(error, "strerror", None)
    return known or str(error)
