"""Query vectors: from ids, paths, bytes, arrays, crops, flips, plus and minus to (v, D) features.

Preparing reads and decodes, in any number of threads. Resolving looks up the features that the index has and computes
the others in one batch. `Engine.search_many` does both; the HTTP service prepares in the threads of its requests and
resolves in its batches.
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
from simsearch.errors import ImageError, ItemNotFoundError, SimsearchError, UsageError
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

    from simsearch.storage.protocols import ItemReader

DECODING_BYTES = 768 << 20
"""Memory for the images that are decoded at the same time; a larger image is decoded alone."""


@dataclass(frozen=True)
class _File:
    """An image file in memory. name: for error messages. digest, item: as in `PreparedImage`."""

    data: bytes
    name: str
    digest: bytes = b""
    item: int | None = None


class QueryResolver:
    """Makes query vectors over one snapshot of an index. Safe for many threads.

    reader: the snapshot.
    sources: the index's sources by number.
    recipe: the preprocessing of the index's model.
    weights_sha256: of the index's model.
    compute: takes n arrays (S, S, 3) uint8 and returns (n, D) float32 features, rounded to float16 as in the index.
    max_pixels: the number of pixels of the largest picture to decode.
    names_in_errors: True to begin an ImageError with the picture's name.
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
        self._lock = threading.Lock()  # the threads that prepare share the reader

    @property
    def dimension(self) -> int:
        """D, the length of a feature vector."""
        return self.reader.shards.dimension

    # -- preparing

    def prepare(
        self,
        picture: Picture | int,
        *,
        crop: Box | None = None,
        flip: bool = False,
        plus: Any = (),
        minus: Any = (),
        no_self: bool = False,
    ) -> PreparedQuery:
        """Reads and decodes one query, for this resolver or one of a later snapshot.

        The options are those of `options.PictureOptions`. Raises ImageError, ItemNotFoundError, UsageError.
        """
        image = self._image(picture, crop, flip, hashed=no_self)
        return PreparedQuery(image, *self._examples(plus, minus), copies=self._copies(image) if no_self else ())

    def prepare_many(
        self,
        pictures: Sequence[Picture | int],
        *,
        crop: Box | None = None,
        flip: bool = False,
        plus: Any = (),
        minus: Any = (),
        no_self: bool = False,
    ) -> list[PreparedQuery]:
        """Prepares several pictures in threads, for this resolver only.

        Unlike `prepare`, does not decode a file whose features the index has, unless a crop or flip needs its pixels.
        """
        examples = self._examples(plus, minus, decode_known=False)
        return [
            PreparedQuery(image, *examples, copies=self._copies(image) if no_self else ())
            for image in self._images(pictures, crop, flip, hashed=no_self)
        ]

    def prepare_vector(
        self,
        vector: Any,
        *,
        crop: Box | None = None,
        flip: bool = False,
        plus: Any = (),
        minus: Any = (),
        no_self: bool = False,
    ) -> PreparedQuery:
        """Prepares a query by (D,) features. Raises UsageError, also for a crop or a flip; no file is its own."""
        if crop is not None or flip:
            raise UsageError(f"a vector cannot be {'mirrored' if crop is None else 'cropped'}")
        return PreparedQuery(PreparedImage(vector=as_vector(vector, self.dimension)), *self._examples(plus, minus))

    def _copies(self, image: PreparedImage) -> tuple[int, ...]:
        """Returns the ids of the items whose file has the content of the image's."""
        with self._lock:
            digest = image.digest or (self.reader.item(image.item).digest if image.item is not None else b"")
            return tuple(self.reader.ids_of(digest)) if digest else ()

    def _examples(self, plus: Any, minus: Any, *, decode_known: bool = True) -> tuple[Any, ...]:
        """Prepares `plus` and `minus`, and returns the last four fields of a `PreparedQuery`."""
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
        hashed: bool = False,
    ) -> list[PreparedImage]:
        """Prepares pictures, several of them in threads, and returns them in order."""
        budget = MemoryBudget(DECODING_BYTES)

        def prepare(picture: Picture | int) -> PreparedImage:
            return self._image(picture, crop, flip, decode_known=decode_known, budget=budget, hashed=hashed)

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
        hashed: bool = False,
    ) -> PreparedImage:
        """Reads one picture or item, and decodes it if its features may need computing. hashed: also for a part."""
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
        """Returns the (v, D) features of each query, or its error; computes missing features in one batch.

        A query's error is ItemNotFoundError, or OutdatedQueryError if the index has changed since it was prepared.
        Errors of `compute` are raised, since they concern all queries.
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

    def resolve_all(self, queries: Sequence[PreparedQuery]) -> NDArray[np.float32]:
        """Returns the (n, v, D) features of n queries with the same v. Raises the first error of a query."""
        vectors = self.resolve(queries)
        for each in vectors:
            if isinstance(each, SimsearchError):
                raise each
        return np.array(vectors, np.float32).reshape(
            len(queries), queries[0].variants if queries else 1, self.dimension
        )

    def rows_left_out(self, queries: Sequence[PreparedQuery]) -> list[list[int]]:
        """Returns for each query the feature rows of the items that cannot be its matches."""
        return [existing_rows(self.reader, query.left_out) for query in queries]

    def _known(self, image: PreparedImage) -> NDArray[np.float32] | None:
        """Returns the features of a vector query, or those that the index has of an item or file; else None.

        Raises OutdatedQueryError if features must be computed and the image was prepared for another index.
        """
        if image.vector is not None:
            if image.vector.shape != (self.dimension,):
                raise OutdatedQueryError("the index was replaced by one with another dimension")
            return image.vector
        item = None if image.item is None else self.reader.item(image.item)
        if item is not None and image.digest and item.digest != image.digest:
            raise OutdatedQueryError("the item has changed since")
        row = None
        if image.whole:
            row = item.row if item is not None else self.reader.row_of(image.digest) if image.digest else None
        if row is None and image.pixels is None:
            raise OutdatedQueryError("the index no longer has the features")
        if (row is None or image.mirrored is not None) and image.weights_sha256 != self.weights_sha256:
            raise OutdatedQueryError("the index was replaced by one with another model")
        return None if row is None else self.reader.shards.read(np.array([row]))[0].astype(np.float32)

    def _blended(
        self,
        query: PreparedQuery,
        found: Mapping[int, list[NDArray[np.float32]]],
        failed: Mapping[int, SimsearchError],
    ) -> NDArray[np.float32] | SimsearchError:
        """Returns a query's own vectors, each moved towards `plus` and away from `minus`; or its error."""
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


def existing_rows(reader: ItemReader, ids: Sequence[int]) -> list[int]:
    """Returns the feature rows of those items that still exist; others cannot be matches anyway."""
    rows = []
    for number in ids:
        with contextlib.suppress(ItemNotFoundError):
            rows.append(reader.item(number).row)
    return rows


def _picture_file(picture: Any, hashed: bool) -> _File:
    """Reads a picture given as a path, bytes or an open file; computes its digest if `hashed`."""
    data, name = resolve.read_picture(picture)
    return _File(data, name, hashlib.sha256(data).digest() if hashed else b"")


def _thread_safe(picture: Any) -> bool:
    """Returns False for objects that two threads cannot read at once, since a caller may give one twice."""
    return not isinstance(picture, Image.Image | np.ndarray) and not hasattr(picture, "read")
