"""Finds the source or image behind a name: a user's argument, a source recorded in an index, or a printed path."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from simsearch.common import fork
from simsearch.common.lazy import LazyModule
from simsearch.errors import ImageError, IndexDamagedError, UsageError
from simsearch.images import decode
from simsearch.images.decode import EXTENSIONS, looks_like_image
from simsearch.images.sources.base import (
    DATASET_PREFIX,
    SEPARATOR,
    FolderSource,
    Listing,
    Source,
    display_path,
    read_file,
)
from simsearch.images.sources.remote import addresses, permission

if TYPE_CHECKING:
    from simsearch.images.sources import archives, parquet, tables, torchvision
    from simsearch.images.sources.remote import archives as remote_archives
    from simsearch.images.sources.remote import source as remote_source
else:  # a query by an image file needs none of them
    archives = LazyModule("simsearch.images.sources.archives")
    parquet = LazyModule("simsearch.images.sources.parquet")
    tables = LazyModule("simsearch.images.sources.tables")
    torchvision = LazyModule("simsearch.images.sources.torchvision")
    remote_archives = LazyModule("simsearch.images.sources.remote.archives")
    remote_source = LazyModule("simsearch.images.sources.remote.source")

SOURCE_CLASSES: Mapping[str, Callable[[str], Source]] = {
    "folder": FolderSource,
    "zip": lambda root: archives.ZipSource(root),
    "tar": lambda root: archives.TarSource(root),
    "manifest": lambda root: tables.ManifestSource(root),
    "parquet": lambda root: parquet.ParquetSource(root),
    "dataset": lambda root: torchvision.TorchvisionSource(root),
    addresses.KIND: lambda root: remote_source.RemoteSource(root),
    addresses.ZIP_KIND: lambda root: remote_archives.RemoteZipSource(root),
    addresses.TAR_KIND: lambda root: remote_archives.RemoteTarSource(root),
}
"""Maps each `Source.kind` to the function that makes a source from its root."""

_REMOTE_KINDS = {"zip": addresses.ZIP_KIND, "tar": addresses.TAR_KIND}
"""Maps the kind of an archive on disk to the kind of the same archive on another machine."""

_KINDS_BY_SUFFIX = {
    ".zip": "zip",
    ".tar": "tar",
    ".tar.gz": "tar",
    ".tgz": "tar",
    ".tar.bz2": "tar",
    ".tbz2": "tar",
    ".tar.xz": "tar",
    ".txz": "tar",
    ".tar.zst": "tar",
    ".csv": "manifest",
    ".jsonl": "manifest",
    ".ndjson": "manifest",
    ".parquet": "parquet",
}


def resolve(name: str) -> Source:
    """Returns the source that a command-line argument names. Raises UsageError if there is none.

    For a single image, the source is its folder, restricted to this image.
    """
    if not name:
        raise UsageError("an empty name is not a source", hint="write . for the current folder")
    if name.startswith(DATASET_PREFIX) and not os.path.exists(name):
        return SOURCE_CLASSES["dataset"](name)
    if addresses.scheme_of(name) is not None and not os.path.exists(name):
        return _resolve_remote(name)
    path = os.path.abspath(os.path.expanduser(name))
    if os.path.isdir(path):
        return FolderSource(path)
    if not os.path.exists(path):
        raise UsageError(f"no file or folder at {name!r}", hint="for a data set of torchvision, write torchvision/NAME")
    if not os.path.isfile(path):  # reading a pipe may block, reading a device may never end
        raise UsageError(f"{name!r} is not a regular file", hint="write a pipe's content to a file first")
    lower = path.lower()
    for suffix, kind in _KINDS_BY_SUFFIX.items():
        if lower.endswith(suffix):
            return SOURCE_CLASSES[kind](path)
    if os.path.splitext(lower)[1] not in EXTENSIONS:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if not looks_like_image(file.read(32)):
                kinds = "a folder, .zip, .tar, .csv, .jsonl, .parquet, or an image"
                raise UsageError(f"{name!r} is neither a source nor an image", hint=f"a source is {kinds}")
    return FolderSource(os.path.dirname(path), within=os.path.basename(path))


def _resolve_remote(name: str) -> Source:
    """Returns the source at an address that the user has named, and permits reading from it. Raises UsageError.

    No request is made. For an address with the extension of an image, the source is the folder above it, restricted to
    this image.
    """
    source = _remote_source(addresses.normalized(name))
    permission.grant(source.root)
    return source


def _remote_source(root: str) -> Source:
    parent, _, last = root.rpartition("/")
    if "/" not in root.partition("://")[2]:
        last = ""
    kind = next((kind for suffix, kind in _KINDS_BY_SUFFIX.items() if last.lower().endswith(suffix)), None)
    if kind in _REMOTE_KINDS:
        return SOURCE_CLASSES[_REMOTE_KINDS[kind]](root)
    if kind is not None:
        raise UsageError(
            f"{root}: a {kind} on another machine cannot be a source", hint=f"copy the {kind} to this machine"
        )
    if os.path.splitext(last)[1].lower() in EXTENSIONS:
        return remote_source.RemoteSource(parent, within=last)
    return remote_source.RemoteSource(root)


def as_names(given: Any) -> list[str]:
    """Returns a path, or an iterable of paths, as a list of str. Raises UsageError for other values."""
    single = isinstance(given, str | bytes | os.PathLike) or not isinstance(given, Iterable)
    names = [given] if single else list(given)
    for name in names:
        if not isinstance(name, str | bytes | os.PathLike):
            raise UsageError(f"{name!r} is not a path")
    return [os.fsdecode(name) for name in names]


def reopen(kind: str, root: str, *, checked: bool = False) -> Source:
    """Opens a source that an index names.

    kind, root: as the index has recorded them.
    checked: True if the caller has already checked that the user permits reading the source.
    Raises UsageError for a source that cannot be opened, and for a remote source that the user has not permitted.
    """
    if kind not in SOURCE_CLASSES:
        raise UsageError(
            f"the index has a source of unknown kind {kind!r}", hint="a newer simsearch may know this kind"
        )
    if addresses.is_kind(kind):
        if root != addresses.normalized(root):
            raise UsageError(f"the index names a remote source by an invalid address: {root}")
        source = SOURCE_CLASSES[kind](root)
        if not checked:
            permission.check(root)
            source.public_only = not permission.is_named(root)
        return source
    if kind not in {"folder", "dataset"} and os.path.exists(root) and not os.path.isfile(root):
        raise UsageError(f"{root} is not a regular file")  # opening a pipe would wait for a writer
    return SOURCE_CLASSES[kind](root)


def read_remote(address: str) -> bytes:
    """Reads an image at an address that the user has named: an object, or a member of an archive.

    Raises ImageError, UsageError.
    """
    container, separator, member = address.partition(SEPARATOR)
    source = _remote_source(addresses.normalized(container))
    path = member if separator else source.within
    if not path:
        raise UsageError(
            f"{address!r} is not the address of an image",
            hint="the address must end in the extension of an image, such as .jpg",
        )
    try:
        with source.stream(path) as file:
            return file.read()
    except ImageError as error:
        raise ImageError(f"{address}: {error}", **error.hints) from error
    finally:
        source.close()


def part(kind: str, root: str, within: str) -> Source:
    """Returns a source that lists a part of a folder, local or remote.

    kind, root: of the folder. within: the relative path of the only file or folder to list.
    """
    return FolderSource(root, within) if kind == FolderSource.kind else remote_source.RemoteSource(root, within)


def read_path(path: str) -> bytes:
    """Reads an image by a path as it is printed: a file, or `container!/member`. Raises ImageError."""
    container, separator, member = path.partition(SEPARATOR)
    if not separator or os.path.exists(path):
        return read_file(os.path.expanduser(path))
    while not os.path.isfile(os.path.expanduser(container)) and SEPARATOR in member:  # a folder called "wow!"
        further, _, member = member.partition(SEPARATOR)
        container += SEPARATOR + further
    try:
        source = resolve(container)
    except UsageError as error:
        raise ImageError(str(error)) from error
    try:
        return source.read(member)
    finally:
        source.close()


def read_picture(picture: Any) -> tuple[bytes, str]:
    """Reads an image given as bytes, an open binary file or a path; returns its bytes and its name for messages.

    A file is read from its current position to its end. Raises ImageError, UsageError.
    """
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture), getattr(picture, "name", "the image given as bytes")
    if hasattr(picture, "read"):
        name = getattr(picture, "name", None)  # None for a SpooledTemporaryFile, a number for an open descriptor
        return _read_file_object(picture), name if isinstance(name, str) and name else "the image given as a file"
    try:
        name = os.fspath(picture)
    except TypeError:
        raise UsageError(f"an image cannot be given as {type(picture).__name__}") from None
    try:
        return read_path(name), name
    except ImageError as error:
        raise ImageError(f"{name}: {error}", **error.hints) from error


def _read_file_object(file: Any) -> bytes:
    try:
        data = file.read()
    except (OSError, ValueError) as error:  # ValueError: a closed file, or text in another encoding
        raise ImageError(f"the file given as an image cannot be read: {error}") from error
    if not isinstance(data, bytes):
        raise UsageError("the file given as an image is not open in binary mode", hint='open it with open(path, "rb")')
    return data


def open_picture(picture: Any, shorter_side: int | None, name: str | None = None) -> decode.DecodedImage:
    """Decodes an image given as a path, bytes, a binary file, a PIL image or an (H, W, 3) uint8 array.

    shorter_side: the pixels needed along the shorter side, as for `decode.decode_image`; None for the full size.
    name: the image's name in errors.
    Raises ImageError, UsageError.
    """
    if isinstance(picture, Image.Image):
        rgb = decode.from_pil(picture)
        return decode.DecodedImage(rgb, *rgb.size)
    if isinstance(picture, np.ndarray):
        image = decode.from_array(picture)
        return decode.DecodedImage(image, *image.size)
    data, found = read_picture(picture)
    try:
        return decode.decode_image(data, shorter_side)
    except ImageError as error:
        raise ImageError(f"{name or found}: {error}", **error.hints) from error


class RecordedSource(Source):
    """A source that an index names. Its folder, container or server is opened when an image is first read.

    outside: True if `build --allow-outside` permitted images outside the source's folder.
    """

    def __init__(self, kind: str, root: str, outside: bool = False) -> None:
        super().__init__(root)
        self.kind, self.outside = kind, outside
        self._opened: Source | None = None
        self._lock = threading.Lock()
        fork.in_child(self._open_again)

    def _open_again(self) -> None:
        """Drops the open source in a forked process; the next read opens it again.

        Otherwise an open archive would share its file position with the parent process.
        """
        fork.never_close(self._opened)
        self._opened, self._lock = None, threading.Lock()

    def _source(self) -> Source:
        with self._lock:
            if self._opened is None:
                try:
                    self._opened = reopen(self.kind, self.root)
                    self._opened.download, self._opened.outside = False, self.outside
                    self._opened.quick = True
                except UsageError as error:
                    raise ImageError(str(error), **error.hints) from error
            return self._opened

    @property
    def folder(self) -> str | None:
        return self._source().folder

    def listing(self, exclude: Sequence[str] = ()) -> Listing:
        return self._source().listing(exclude)

    def read(self, path: str) -> bytes:
        return self._source().read(path)

    def stream(self, path: str) -> IO[bytes]:
        return self._source().stream(path)

    def close(self) -> None:
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def identity(self, path: str) -> tuple[Any, ...] | None:
        try:
            return self._source().identity(path)
        except ImageError:  # the container is gone
            return None

    def size_and_stamp(self, path: str) -> tuple[int, int] | None:
        try:
            return self._source().size_and_stamp(path)
        except ImageError:
            return None

    def is_link(self, path: str) -> bool:
        try:
            return self._source().is_link(path)
        except ImageError:
            return False

    def display(self, path: str) -> str:
        return display_path(self.kind, self.root, path)


class Sources(dict[int, Source]):
    """Maps the number of each source in an index to the source. An unknown number raises IndexDamagedError."""

    def __missing__(self, number: int) -> Source:
        raise IndexDamagedError(f"items.sqlite: an item belongs to source {number}, which does not exist")
