"""From names to sources: what a user types, what an index recorded, what was printed."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from simsearch.errors import ImageError, IndexDamagedError, UsageError
from simsearch.images import decode
from simsearch.images.decode import EXTENSIONS, looks_like_image
from simsearch.images.sources.base import SEPARATOR, FolderSource, Listing, Source, display_path, read_file


def resolve(name: str) -> Source:
    """The source that a command-line argument names. Raises UsageError if there is none."""
    from simsearch.images.sources import (
        archives,
        tables,  # a query by a file needs none of them
        torchvision,
    )

    if not name:
        raise UsageError("an empty name is no source", hint="write . for the current folder")
    if name.startswith(torchvision.PREFIX) and not os.path.exists(name):
        return torchvision.TorchvisionSource(name)
    path = os.path.abspath(os.path.expanduser(name))
    if os.path.isdir(path):
        return FolderSource(path)
    if not os.path.exists(path):
        raise UsageError(f"no file or folder at {name!r}", hint="a data set of torchvision is written torchvision/NAME")
    lower = path.lower()
    if lower.endswith(".zip"):
        return archives.ZipSource(path)
    if lower.endswith(archives.TAR_SUFFIXES):
        return archives.TarSource(path)
    if lower.endswith((".csv", ".jsonl", ".ndjson")):
        return tables.ManifestSource(path)
    if lower.endswith(".parquet"):
        return tables.ParquetSource(path)
    if os.path.splitext(lower)[1] not in EXTENSIONS and os.path.isfile(path):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if not looks_like_image(file.read(32)):
                kinds = "a folder, .zip, .tar, .csv, .jsonl, .parquet, or an image"
                raise UsageError(f"{name!r} is neither a source nor an image", hint=f"a source is {kinds}")
    return FolderSource(os.path.dirname(path), within=os.path.basename(path))


def reopen(kind: str, root: str) -> Source:
    """The source that an index recorded."""
    from simsearch.images.sources import archives, tables, torchvision

    classes: dict[str, type[Source]] = {
        "folder": FolderSource,
        "zip": archives.ZipSource,
        "tar": archives.TarSource,
        "manifest": tables.ManifestSource,
        "parquet": tables.ParquetSource,
        "dataset": torchvision.TorchvisionSource,
    }
    if kind not in classes:
        raise UsageError(f"the index has a source of unknown kind {kind!r}", hint="a newer simsearch may know it")
    return classes[kind](root)


def read_path(path: str) -> bytes:
    """The bytes of an image given as printed: a file, or `container!/member`. Raises ImageError."""
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
    """The bytes of a picture given as bytes, an open binary file or a path, and a name for it in messages.

    A file is read from where it stands to its end. Raises ImageError, UsageError.
    """
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture), getattr(picture, "name", "the image given as bytes")
    if hasattr(picture, "read"):
        return _read_file_object(picture), str(getattr(picture, "name", "the image given as a file"))
    try:
        name = os.fspath(picture)
    except TypeError:
        raise UsageError(f"an image cannot be given as {type(picture).__name__}") from None
    try:
        return read_path(name), name
    except ImageError as error:
        raise ImageError(f"{name}: {error}", hint=error.hint) from error


def _read_file_object(file: Any) -> bytes:
    try:
        data = file.read()
    except (OSError, ValueError) as error:  # ValueError: it has been closed, or is text in another encoding
        raise ImageError(f"the file given as an image cannot be read: {error}") from error
    if not isinstance(data, bytes):
        raise UsageError("the file given as an image is not open in binary mode", hint='open(path, "rb")')
    return data


def open_picture(picture: Any, shorter_side: int | None, name: str | None = None) -> decode.DecodedImage:
    """Decodes a picture given as a path, bytes, a binary file, a PIL image or an (H, W, 3) uint8 array.

    shorter_side: the pixels that are needed; None for the original size, as coordinates of a crop need. name: what to
    call it in errors. Raises ImageError, UsageError.
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
        raise ImageError(f"{name or found}: {error}", hint=error.hint) from error


class RecordedSource(Source):
    """A source known from the index; its container is opened when an image of it is first read."""

    def __init__(self, kind: str, root: str) -> None:
        super().__init__(root)
        self.kind = kind
        self._opened: Source | None = None
        self._lock = threading.Lock()

    def _source(self) -> Source:
        with self._lock:
            if self._opened is None:
                try:
                    self._opened = reopen(self.kind, self.root)
                except UsageError as error:
                    raise ImageError(str(error), hint=error.hint) from error
            return self._opened

    def listing(self, exclude: Sequence[str] = ()) -> Listing:
        return self._source().listing(exclude)

    def read(self, path: str) -> bytes:
        return self._source().read(path)

    def close(self) -> None:
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def display(self, path: str) -> str:
        return display_path(self.kind, self.root, path)


class Sources(dict[int, Source]):
    """The sources of an index by number."""

    def __missing__(self, number: int) -> Source:
        raise IndexDamagedError(f"items.sqlite: an item belongs to source {number}, which is not there")
