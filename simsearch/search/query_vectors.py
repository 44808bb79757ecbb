"""Turns queries (ids, paths, bytes, arrays or vectors, with crop, flip, plus and minus) into feature vectors.

There are two steps. Preparing reads and decodes pictures (`query_images`), in any number of threads. Resolving looks up
the features that the index has, and computes the other features in one batch. `Engine.search_many` does both. The HTTP
service prepares each query in the thread of its request, and resolves the queries of several requests in one batch.

Shape letters: n queries, v vectors of a query, D dimension, S side of the model's input in pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common.machine import MemoryBudget
from simsearch.errors import ItemNotFoundError, SimsearchError, UsageError
from simsearch.images import decode
from simsearch.images.boxes import Box
from simsearch.images.preprocessing import Preprocessing
from simsearch.search.feedback import blend, weighted
from simsearch.search.queries import (
    OutdatedQueryError,
    Picture,
    PreparedImage,
    PreparedQuery,
    as_list,
    as_vector,
)
from simsearch.search.query_images import LazySnapshot, QueryImages

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.storage.protocols import ItemReader


_Examples = tuple[tuple[PreparedImage, ...], tuple[PreparedImage, ...], tuple[float, ...], tuple[float, ...]]


class QueryResolver:
    """Turns queries into vectors, using one snapshot of an index. Safe for many threads.

    snapshot: the snapshot of the index, opened when it is first needed.
    dimension: D, the length of a feature vector.
    recipe: the preprocessing of the index's model.
    weights_sha256: SHA-256 of the weights of the index's model.
    compute: takes n arrays (S, S, 3) uint8 and returns (n, D) float32 features, rounded to float16 as in the index.
    max_pixels: the largest number of pixels of a picture that is decoded.
    names_in_errors: True to begin the message of an ImageError with the picture's name.
    budget: a memory limit for decoding, which several resolvers can share; None for a separate limit.
    """

    def __init__(
        self,
        snapshot: LazySnapshot,
        dimension: int,
        recipe: Preprocessing,
        weights_sha256: str,
        compute: Callable[[Sequence[NDArray[np.uint8]]], NDArray[np.float32]],
        *,
        max_pixels: int = decode.LARGEST_PIXELS,
        names_in_errors: bool = True,
        budget: MemoryBudget | None = None,
    ) -> None:
        self._snapshot, self.dimension, self.weights_sha256, self.compute = snapshot, dimension, weights_sha256, compute
        self.images = QueryImages(snapshot, recipe, weights_sha256, max_pixels, names_in_errors, budget)

    @property
    def reader(self) -> ItemReader:
        """The reader of the snapshot. Only one thread may use it at a time."""
        return self._snapshot.reader

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
        """Reads and decodes one query.

        The result can be resolved by this resolver or by a resolver with a later snapshot.
        picture: a picture, or the id of an item. The options are those of `options.PictureOptions`.
        Raises ImageError if a picture cannot be read or cropped, ItemNotFoundError if an item to crop or mirror does
        not exist, and UsageError for invalid arguments.
        """
        image = self.images.one(picture, crop, flip, hashed=no_self)
        return PreparedQuery(image, *self._examples(plus, minus), no_self)

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
        """Reads and decodes several pictures in threads.

        Unlike `prepare`, does not decode a file whose features are in the index, unless there is a crop or flip. So
        this resolver should also resolve the results, because a later snapshot may lack these features.
        The arguments are those of `prepare`.
        """
        examples = self._examples(plus, minus, decode_known=False)
        return [
            PreparedQuery(image, *examples, no_self)
            for image in self.images.prepare(pictures, crop, flip, hashed=no_self)
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
        """Prepares a query by a (D,) feature vector; ignores `no_self`.

        Raises UsageError for an invalid vector, and for a crop or a flip.
        """
        if crop is not None or flip:
            raise UsageError(f"a vector cannot be {'mirrored' if crop is None else 'cropped'}")
        return PreparedQuery(PreparedImage(vector=as_vector(vector, self.dimension)), *self._examples(plus, minus))

    def _examples(self, plus: Any, minus: Any, *, decode_known: bool = True) -> _Examples:
        """Prepares the images in `plus` and `minus`.

        decode_known: False to skip decoding files whose features are in the index.
        Returns the fields `plus`, `minus`, `plus_weights` and `minus_weights` of a `PreparedQuery`.
        """
        wanted, wanted_weights = weighted(as_list(plus))
        unwanted, unwanted_weights = weighted(as_list(minus))
        prepared = self.images.prepare([*wanted, *unwanted], decode_known=decode_known)
        return (
            tuple(prepared[: len(wanted)]),
            tuple(prepared[len(wanted) :]),
            tuple(wanted_weights),
            tuple(unwanted_weights),
        )

    # -- resolving

    def resolve(self, queries: Sequence[PreparedQuery]) -> list[NDArray[np.float32] | SimsearchError]:
        """Returns the (v, D) features of each query, or its error; computes all missing features in one batch.

        The error of a query is ItemNotFoundError, or OutdatedQueryError if the index has changed since the query was
        prepared. Raises the errors of `compute`, which concern all queries.
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
        """Returns the (n, v, D) features of n queries that have the same number of vectors, v.

        If queries have errors, raises the first error.
        """
        vectors = self.resolve(queries)
        for each in vectors:
            if isinstance(each, SimsearchError):
                raise each
        return np.array(vectors, np.float32).reshape(
            len(queries), queries[0].variants if queries else 1, self.dimension
        )

    def rows_left_out(self, queries: Sequence[PreparedQuery]) -> list[list[int]]:
        """Returns, for each query, the row numbers of the items that must not be matches; see `existing_rows`."""
        return [existing_rows(self.reader, self.left_out(query)) for query in queries]

    def left_out(self, query: PreparedQuery) -> list[int]:
        """Returns the ids of the items that must not be matches of a query.

        These are the query's own items and, with `no_self`, the items whose file has the same content as the query.
        They are looked up here and not when the query is prepared, because the index may be replaced in between.
        Raises ItemNotFoundError.
        """
        image, found = query.image, [*query.items]
        if query.no_self:
            digest = image.digest or (self.reader.item(image.item).digest if image.item is not None else b"")
            found += self.reader.ids_of(digest) if digest else []
        return found

    def _known(self, image: PreparedImage) -> NDArray[np.float32] | None:
        """Returns the (D,) features of an image that was given as a vector, or that is in the index; otherwise None.

        Raises ItemNotFoundError, and OutdatedQueryError if the image must be prepared again because the index has
        changed.
        """
        if image.vector is not None:
            if image.vector.shape != (self.dimension,):
                raise OutdatedQueryError("the index was replaced by one with another dimension")
            return image.vector
        item = None if image.item is None else self.reader.item(image.item)
        if item is not None and image.digest and item.digest != image.digest:
            raise OutdatedQueryError("the item has changed since the query was prepared")
        row = None
        if image.whole:
            row = item.row if item is not None else self.reader.row_of(image.digest) if image.digest else None
        if row is None and image.pixels is None:
            raise OutdatedQueryError("the index no longer has the features of the picture")
        if (row is None or image.mirrored is not None) and image.weights_sha256 != self.weights_sha256:
            raise OutdatedQueryError("the index was replaced by one with another model")
        return None if row is None else self.reader.shards.read(np.array([row]))[0].astype(np.float32)

    def _blended(
        self,
        query: PreparedQuery,
        found: Mapping[int, list[NDArray[np.float32]]],
        failed: Mapping[int, SimsearchError],
    ) -> NDArray[np.float32] | SimsearchError:
        """Returns a query's (v, D) vectors, each moved towards `plus` and away from `minus`.

        If one of the query's images has an error, returns the error.
        found: for each image without an error, its features and, if prepared, those of its mirror image.
        failed: for each other image, its error. The keys of `found` and `failed` are `id(image)`.
        """
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
    """Returns the row of each item in the feature files; skips ids of items that do not exist any more."""
    rows = []
    for number in ids:
        with contextlib.suppress(ItemNotFoundError):
            rows.append(reader.item(number).row)
    return rows
