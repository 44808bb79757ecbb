"""From queries to vectors: the one way from ids, paths, bytes, arrays, crops, flips, plus and minus to (v, D) features.

Preparing reads and decodes, in as many threads as one likes; resolving looks up the features that the index has and
computes all others in one batch. `Engine.search_many` does both at once; the HTTP service prepares in the threads of
its requests and resolves in its batches.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from simsearch.common.machine import MemoryBudget, available_cores
from simsearch.errors import ImageError, SimsearchError, UsageError
from simsearch.images import decode
from simsearch.images.preprocessing import Preprocessing
from simsearch.images.sources import resolve
from simsearch.images.sources.base import Source
from simsearch.search.feedback import blend, weighted
from simsearch.search.queries import (
    Box,
    OutdatedQueryError,
    Picture,
    PreparedImage,
    PreparedQuery,
    as_list,
    as_vector,
    is_id,
)
from simsearch.storage.reader import Reader

if TYPE_CHECKING:
    from numpy.typing import NDArray

DECODING_BYTES = 768 << 20
"""Memory for images that are being decoded at the same time; a larger one is decoded alone."""


@dataclass(frozen=True)
class _File:
    """An image file in memory. name: for messages. digest, item: as in `PreparedImage`."""

    data: bytes
    name: str
    digest: bytes = b""
    item: int | None = None


class QueryResolver:
    """Makes query vectors over one snapshot of an index.

    compute: a sequence of (S, S, 3) uint8 -> (n, D) float32 features, rounded as the index keeps them.
    max_pixels: the largest picture to decode. names_in_errors: whether an ImageError begins with the picture's name.
    """

    def __init__(
        self,
        reader: Reader,
        sources: Mapping[int, Source],
        recipe: Preprocessing,
        weights_sha256: str,
        compute: Callable[[Sequence[NDArray[np.uint8]]], NDArray[np.float32]],
        *,
        max_pixels: int = decode.LARGEST_PIXELS,
        names_in_errors: bool = True,
    ) -> None:
        self.reader, self.sources, self.recipe, self.weights_sha256 = reader, sources, recipe, weights_sha256
        self.compute, self.max_pixels, self.names_in_errors = compute, max_pixels, names_in_errors
        self._lock = threading.Lock()  # the reader is asked by the threads that prepare

    @property
    def dimension(self) -> int:
        """D, the length of a feature vector."""
        return self.reader.shards.dimension

    # -- preparing

    def prepare(
        self, picture: Picture | int, *, crop: Box | None = None, flip: bool = False, plus: Any = (), minus: Any = ()
    ) -> PreparedQuery:
        """Reads and decodes one query, for this resolver or that of a later snapshot.

        The options are those of `options.PictureOptions`. Raises ImageError, ItemNotFoundError, UsageError.
        """
        return PreparedQuery(self._image(picture, crop, flip), *self._examples(plus, minus))

    def prepare_many(
        self,
        pictures: Sequence[Picture | int],
        *,
        crop: Box | None = None,
        flip: bool = False,
        plus: Any = (),
        minus: Any = (),
    ) -> list[PreparedQuery]:
        """`prepare` for several pictures, in threads, and for this resolver only.

        A file whose features the index has is not decoded, unless a part of it or its mirror image is wanted.
        """
        examples = self._examples(plus, minus, decode_known=False)
        return [PreparedQuery(image, *examples) for image in self._images(pictures, crop, flip)]

    def prepare_vector(
        self, vector: Any, *, crop: Box | None = None, flip: bool = False, plus: Any = (), minus: Any = ()
    ) -> PreparedQuery:
        """A query by (D,) features. Raises UsageError, also for a crop or a flip."""
        if crop is not None or flip:
            raise UsageError(f"a vector cannot be {'mirrored' if crop is None else 'cropped'}")
        return PreparedQuery(PreparedImage(vector=as_vector(vector, self.dimension)), *self._examples(plus, minus))

    def _examples(self, plus: Any, minus: Any, *, decode_known: bool = True) -> tuple[Any, ...]:
        """The last four fields of a `PreparedQuery`."""
        wanted, wanted_weights = weighted(as_list(plus))
        unwanted, unwanted_weights = weighted(as_list(minus))
        prepared = self._images([*wanted, *unwanted], decode_known=decode_known)
        return (
            tuple(prepared[: len(wanted)]),
            tuple(prepared[len(wanted) :]),
            tuple(wanted_weights),
            tuple(unwanted_weights),
        )

    def _images(
        self,
        pictures: Sequence[Picture | int],
        crop: Box | None = None,
        flip: bool = False,
        *,
        decode_known: bool = False,
    ) -> list[PreparedImage]:
        """Each picture prepared, in order; in threads where there are several."""
        budget = MemoryBudget(DECODING_BYTES)

        def prepare(picture: Picture | int) -> PreparedImage:
            return self._image(picture, crop, flip, decode_known=decode_known, budget=budget)

        if len(pictures) < 2:
            return [prepare(picture) for picture in pictures]
        pool = ThreadPoolExecutor(min(available_cores(), len(pictures)), "query")
        try:
            started = [pool.submit(prepare, picture) if _thread_safe(picture) else None for picture in pictures]
            return [
                prepare(picture) if future is None else future.result()
                for picture, future in zip(pictures, started, strict=True)
            ]
        finally:
            pool.shutdown(cancel_futures=True)

    def _image(
        self,
        picture: Picture | int,
        crop: Box | None,
        flip: bool,
        *,
        decode_known: bool = True,
        budget: MemoryBudget | None = None,
    ) -> PreparedImage:
        """Reads one picture or item, and decodes it if its features may have to be computed."""
        unchanged = crop is None and not flip
        if is_id(picture) and unchanged:
            return PreparedImage(item=int(picture))  # type: ignore[arg-type]
        if isinstance(picture, Image.Image):
            return self._cut(decode.from_pil(picture), crop, flip)
        if isinstance(picture, np.ndarray):
            return self._cut(decode.from_array(picture), crop, flip)
        file = self._item_file(int(picture)) if is_id(picture) else _picture_file(picture, crop is None)  # type: ignore[arg-type]
        if unchanged and not decode_known and self._has(file.digest):
            return PreparedImage(digest=file.digest)
        shorter_side = self.recipe.resize if crop is None else None  # a crop is in pixels of the original
        needed = decode.decode_memory(file.data, shorter_side) if budget is not None else 0
        with budget.hold(needed) if budget is not None else contextlib.nullcontext():
            with self._named(file.name):
                image = decode.decode_image(file.data, shorter_side, self.max_pixels).image
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
            item = self.reader.item(number)
        source = self.sources[item.source]
        name = source.display(item.path)
        with self._named(name):
            return _File(source.read(item.path), name, item.digest, number)

    def _has(self, digest: bytes) -> bool:
        with self._lock:
            return self.reader.row_of(digest) is not None

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        try:
            yield
        except ImageError as error:
            if not self.names_in_errors:
                raise
            raise ImageError(f"{name}: {error}", hint=error.hint) from error

    # -- resolving

    def resolve(self, queries: Sequence[PreparedQuery]) -> list[NDArray[np.float32] | SimsearchError]:
        """The (v, D) features of each query, or why it has none; the missing ones are computed in one batch.

        An error of a single query is OutdatedQueryError, if what it was prepared for has changed, or
        ItemNotFoundError. Raises what `compute` raises, which concerns all queries.
        """
        found: dict[int, list[NDArray[np.float32]]] = {}
        failed: dict[int, SimsearchError] = {}
        missing: list[tuple[int, NDArray[np.uint8]]] = []
        unique = {id(image): image for query in queries for image in (query.image, *query.plus, *query.minus)}
        for key, image in unique.items():
            try:
                known = self._known(image)
            except SimsearchError as error:
                failed[key] = error
                continue
            found[key] = [] if known is None else [known]
            if known is None and image.pixels is not None:
                missing.append((key, image.pixels))
            if image.mirrored is not None:
                missing.append((key, image.mirrored))
        if missing:
            rows = self.compute([pixels for _, pixels in missing])
            for (key, _), row in zip(missing, rows, strict=True):
                found[key].append(row)
        return [self._blended(query, found, failed) for query in queries]

    def _known(self, image: PreparedImage) -> NDArray[np.float32] | None:
        """The features that need not be computed: a vector's, or those that the index has of an item or a file.

        Raises OutdatedQueryError if others must be, and the image was prepared for another index.
        """
        if image.vector is not None:
            if image.vector.shape != (self.dimension,):
                raise OutdatedQueryError("the index was replaced by one of another dimension")
            return image.vector
        item = None if image.item is None else self.reader.item(image.item)
        if item is not None and image.digest and item.digest != image.digest:
            raise OutdatedQueryError("the item is another one by now")
        row = None
        if image.whole:
            row = item.row if item is not None else self.reader.row_of(image.digest) if image.digest else None
        if row is None and image.pixels is None:
            raise OutdatedQueryError("the index has no such features any more")
        if (row is None or image.mirrored is not None) and image.weights_sha256 != self.weights_sha256:
            raise OutdatedQueryError("the index was replaced by one of another model")
        return None if row is None else self.reader.shards.read(np.array([row]))[0].astype(np.float32)

    def _blended(
        self,
        query: PreparedQuery,
        found: Mapping[int, list[NDArray[np.float32]]],
        failed: Mapping[int, SimsearchError],
    ) -> NDArray[np.float32] | SimsearchError:
        """A query's own vectors, each moved towards `plus` and away from `minus`."""
        for image in (query.image, *query.plus, *query.minus):
            if id(image) in failed:
                return failed[id(image)]
        own = np.stack(found[id(query.image)])
        if not (query.plus or query.minus):
            return own
        wanted, unwanted = (
            np.array([found[id(image)][0] for image in examples], np.float32).reshape(-1, self.dimension)
            for examples in (query.plus, query.minus)
        )
        weights = query.plus_weights, query.minus_weights
        return np.stack([blend(vector, wanted, unwanted, *weights) for vector in own])


def _picture_file(picture: Any, whole: bool) -> _File:
    """The file of a picture given by path, bytes or an open file; with its digest if all of it is wanted."""
    data, name = resolve.read_picture(picture)
    return _File(data, name, hashlib.sha256(data).digest() if whole else b"")


def _thread_safe(picture: Any) -> bool:
    """False for what a caller may have given twice and cannot be read by two threads at a time."""
    return not isinstance(picture, Image.Image | np.ndarray) and not hasattr(picture, "read")
