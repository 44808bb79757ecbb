"""Reads and decodes the pictures and items of queries into pixels for the model, and computes the files' digests."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from simsearch.common.machine import MemoryBudget, available_cores
from simsearch.errors import ImageError
from simsearch.images import decode, memory
from simsearch.images.boxes import Box, PixelBox
from simsearch.images.preprocessing import Preprocessing
from simsearch.images.sources import recorded, resolve
from simsearch.images.sources.base import Source
from simsearch.search.queries import Picture, PreparedImage, is_id

if TYPE_CHECKING:
    from simsearch.storage.protocols import ItemReader

DECODING_BYTES = 768 << 20
"""Memory for the images that are decoded at the same time, in bytes; an image that needs more is decoded alone."""


@dataclass(frozen=True)
class _File:
    """The file of an image, as bytes or as an open file.

    name: for error messages.
    digest, item: as in `PreparedImage`.
    """

    data: bytes | IO[bytes]
    name: str
    digest: bytes = b""
    item: int | None = None


class LazySnapshot:
    """One snapshot of an index, opened when it is first needed. Safe for many threads.

    Some queries need no snapshot: for example, an uploaded picture is prepared without it.
    read: a function that opens the snapshot. It returns the snapshot's reader, and the sources; see `sources`.
    """

    def __init__(self, read: Callable[[], tuple[ItemReader, Mapping[int, Source]]]) -> None:
        self._read, self._lock = read, threading.Lock()
        self._opened: tuple[ItemReader, Mapping[int, Source]] | None = None

    @property
    def reader(self) -> ItemReader:
        """The reader of the snapshot, which only one thread may use at a time."""
        return self._open()[0]

    @property
    def sources(self) -> Mapping[int, Source]:
        """The sources (folders, archives, tables) of the index. The keys are the numbers in `Item.source`."""
        return self._open()[1]

    def _open(self) -> tuple[ItemReader, Mapping[int, Source]]:
        with self._lock:
            self._opened = self._opened or self._read()
            return self._opened


class QueryImages:
    """Prepares images for queries to one snapshot of an index. Safe for many threads.

    The arguments are those of `query_vectors.QueryResolver`.
    """

    def __init__(
        self,
        snapshot: LazySnapshot,
        recipe: Preprocessing,
        weights_sha256: str,
        max_pixels: int = decode.LARGEST_PIXELS,
        names_in_errors: bool = True,
        budget: MemoryBudget | None = None,
    ) -> None:
        self.snapshot, self.recipe, self.weights_sha256 = snapshot, recipe, weights_sha256
        self.max_pixels, self.names_in_errors = max_pixels, names_in_errors
        self.budget = budget or MemoryBudget(DECODING_BYTES)
        self._lock = threading.Lock()  # held by the thread that uses the reader

    def prepare(
        self,
        pictures: Sequence[Picture | int],
        crop: Box | None = None,
        flip: bool = False,
        *,
        decode_known: bool = False,
        hashed: bool = False,
    ) -> list[PreparedImage]:
        """Prepares pictures in several threads, and returns them in the same order. For the options, see `one`."""

        def one(picture: Picture | int) -> PreparedImage:
            return self.one(picture, crop, flip, decode_known=decode_known, hashed=hashed)

        if len(pictures) < 2:
            return [one(picture) for picture in pictures]
        pool = ThreadPoolExecutor(min(available_cores(), len(pictures)), "query")
        try:
            started = [pool.submit(one, picture) if _thread_safe(picture) else None for picture in pictures]
            return [
                one(picture) if future is None else future.result()
                for picture, future in zip(pictures, started, strict=True)
            ]
        finally:
            pool.shutdown(cancel_futures=True)

    def one(
        self,
        picture: Picture | int,
        crop: Box | None,
        flip: bool,
        *,
        decode_known: bool = True,
        hashed: bool = False,
    ) -> PreparedImage:
        """Reads one picture or item, and decodes it if its features may have to be computed.

        An item is read and decoded only if there is a crop or a flip.

        crop: the part of the picture to use; None for all of it.
        flip: True to prepare the mirror image too.
        decode_known: True to decode a picture's file even if the index has its features. With False, such a file is
        only decoded for a crop or a flip.
        hashed: True to compute the digest of a picture's file in any case, False to compute it only without a crop.
        """
        unchanged = crop is None and not flip
        if is_id(picture) and unchanged:
            return PreparedImage(item=int(picture))  # type: ignore[arg-type]
        if isinstance(picture, Image.Image):
            return self._cut(decode.from_pil(picture), crop, flip)
        if isinstance(picture, np.ndarray):
            return self._cut(decode.from_array(picture), crop, flip)
        file = self._item_file(int(picture)) if is_id(picture) else _picture_file(picture, hashed or crop is None)  # type: ignore[arg-type]
        if unchanged and not decode_known and self._has(file.digest):
            return PreparedImage(digest=file.digest)
        with contextlib.nullcontext() if isinstance(file.data, bytes) else file.data:
            return self._decoded(file, crop, flip)

    def _decoded(self, file: _File, crop: Box | None, flip: bool) -> PreparedImage:
        """Decodes an image file. crop: a part of the upright image at full size."""
        size = memory.image_size(file.data) if crop is not None else (0, 0)
        shorter_side = self.recipe.resize if crop is None else memory.scaled_side(size, crop, self.recipe.resize)
        with self.budget.hold(memory.peak_memory(file.data, shorter_side, crop is not None)):
            with self._named(file.name):
                image, width, height = decode.decode_image(file.data, shorter_side, self.max_pixels)
            if crop is not None and image.size != (width, height):
                crop = _scaled_box(crop, (width, height), image.size)
            return self._cut(image, crop, flip, file.item, file.digest)

    def _cut(
        self, image: Image.Image, crop: Box | None, flip: bool, number: int | None = None, digest: bytes = b""
    ) -> PreparedImage:
        if crop is not None:
            image = decode.crop(image, crop)
        return PreparedImage(
            item=number,
            digest=digest,
            pixels=self.recipe.pixels(image),
            mirrored=self.recipe.pixels(ImageOps.mirror(image)) if flip else None,
            whole=crop is None,
            weights_sha256=self.weights_sha256,
        )

    def _item_file(self, number: int) -> _File:
        with self._lock:
            item = self.snapshot.reader.item(number)
        source = self.snapshot.sources[item.source]
        name = source.display(item.path)
        with self._named(name):
            file = recorded.open_recorded(source, item.path, item.digest, decodes=False)
        return _File(file, name, item.digest, number)

    def _has(self, digest: bytes) -> bool:
        with self._lock:
            return self.snapshot.reader.row_of(digest) is not None

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        try:
            yield
        except ImageError as error:
            if not self.names_in_errors:
                raise
            raise ImageError(f"{name}: {error}", **error.hints) from error


def _picture_file(picture: Any, hashed: bool) -> _File:
    """Reads a picture given as a path, bytes or an open file; computes its digest if `hashed`."""
    data, name = resolve.read_picture(picture)
    return _File(data, name, hashlib.sha256(data).digest() if hashed else b"")


def _scaled_box(given: Box, size: tuple[int, int], scaled: tuple[int, int]) -> PixelBox:
    """Converts a box of an image at full size to pixels of the same image scaled down.

    size, scaled: (width, height) of the image at full size and scaled down.
    Raises ImageError if the box is not inside the image, and UsageError if it is not a box; see `boxes`.
    """
    box = decode.check_box(given, size)
    across, down = scaled[0] / size[0], scaled[1] / size[1]
    x, y = round(box[0] * across), round(box[1] * down)
    return x, y, max(1, round((box[0] + box[2]) * across) - x), max(1, round((box[1] + box[3]) * down) - y)


def _thread_safe(picture: Any) -> bool:
    """Returns False for PIL images, arrays and open files.

    The same object can be given twice, but only one thread at a time can use it.
    """
    return not isinstance(picture, Image.Image | np.ndarray) and not hasattr(picture, "read")
