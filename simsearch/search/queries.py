"""The types of a query, before and after its picture is decoded, and functions that check and convert queries.

Shape letters: n queries, v vectors of a query, D dimension, S side of the model's input in pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from simsearch.errors import SimsearchError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Picture = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | np.ndarray[Any, Any]
"""An image to search by: a path, encoded bytes, a binary file, a PIL image, or an (H, W, 3) uint8 array."""


class OutdatedQueryError(SimsearchError):
    """The index has changed since a query was prepared for it; the query must be prepared again."""


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """One picture, item or vector of a query. Its features can be looked up or computed without reading a file.

    item: the id, if the query is an item.
    digest: SHA-256 of the picture's file or, for an item, of the file that was indexed. Empty if there is no file, or
    if the digest is not needed.
    pixels: (S, S, 3) uint8 from `preprocessing.pixels`; None if the features are looked up in the index.
    mirrored: the pixels of the mirror image, (S, S, 3) uint8, if it is searched for too.
    whole: False if the pixels are only a part of the picture.
    weights_sha256: SHA-256 of the weights of the model for which the pixels were prepared.
    vector: (D,) float32, given instead of a picture.
    """

    item: int | None = None
    digest: bytes = b""
    pixels: NDArray[np.uint8] | None = None
    mirrored: NDArray[np.uint8] | None = None
    whole: bool = True
    weights_sha256: str = ""
    vector: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class PreparedQuery:
    """An image to search by, with images that matches should resemble (`plus`) or not resemble (`minus`).

    plus_weights, minus_weights: a weight for each image in `plus` and in `minus`.
    no_self: True to leave out items whose file has the same content as the image.
    """

    image: PreparedImage
    plus: tuple[PreparedImage, ...] = ()
    minus: tuple[PreparedImage, ...] = ()
    plus_weights: tuple[float, ...] = ()
    minus_weights: tuple[float, ...] = ()
    no_self: bool = False

    @property
    def variants(self) -> int:
        """The number of vectors of the query, v: 2 with a mirror image, else 1."""
        return 1 if self.image.mirrored is None else 2

    @property
    def items(self) -> tuple[int, ...]:
        """The ids of the items that are the query itself or in `plus`; they must not be matches."""
        return tuple(image.item for image in (self.image, *self.plus) if image.item is not None)


def is_id(value: Any) -> bool:
    """Returns True for an integer, which stands for the id of an item. A bool does not count as an integer."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def as_list(pictures: Any) -> list[Any]:
    """Returns one picture or several pictures as a list.

    A path, bytes, a file, an image, an array, an id or a tuple (picture, weight) is one picture. The weight must be a
    float, because a tuple of a picture and an integer is two pictures, the second given by its id.
    Raises UsageError for a value that is neither one picture nor iterable.
    """
    if isinstance(pictures, tuple) and len(pictures) == 2 and isinstance(pictures[1], float):
        return [pictures]
    kinds = str, bytes, bytearray, memoryview, os.PathLike, Image.Image, np.ndarray
    single = is_id(pictures) or isinstance(pictures, kinds) or hasattr(pictures, "read")
    if not single and not isinstance(pictures, Iterable):
        raise UsageError(f"an image cannot be given as {type(pictures).__name__}")
    return [pictures] if single else list(pictures)


def _as_numbers(values: Any, subject: str) -> NDArray[np.float32]:
    """Converts numbers to float32; numbers that are too large become infinite.

    Raises UsageError for values that are not real numbers. subject: the beginning of the error's message.
    """
    try:
        if np.iscomplexobj(values):
            raise ValueError("the values are complex")
        with np.errstate(over="ignore"):
            return np.asarray(values, np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{subject} not made of real numbers: {error}") from error


def as_vector(values: Any, dimension: int) -> NDArray[np.float32]:
    """Returns one vector as (dimension,) float32.

    Raises UsageError for another length or a value that is not finite.
    """
    vector = _as_numbers(values, "the vector is").reshape(-1)
    if vector.shape != (dimension,):
        raise UsageError(f"the vector has {vector.size} dimensions, but the index has {dimension}")
    if not np.isfinite(vector).all():
        raise UsageError("the vector has values that are not finite")
    return vector


def as_vectors(values: Any, dimension: int) -> NDArray[np.float32]:
    """Returns vectors as contiguous (n, dimension) float32.

    Raises UsageError for another shape or a value that is not finite.
    """
    vectors = _as_numbers(values, "the vectors are")
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise UsageError(f"the vectors have shape {vectors.shape}, but the index has {dimension} dimensions")
    if not np.isfinite(vectors).all():
        raise UsageError("the vectors have values that are not finite")
    return np.ascontiguousarray(vectors)


def as_variants(values: Any, dimension: int) -> NDArray[np.float32]:
    """Returns the vectors of n queries as (n, v, D) float32. dimension: D.

    values: (n, D), one vector for each query, or (n, v, D), v vectors for each query.
    Raises UsageError for another shape or a value that is not finite.
    """
    vectors = _as_numbers(values, "the vectors are")
    flat = as_vectors(vectors.reshape(-1, vectors.shape[-1]) if vectors.ndim == 3 else vectors, dimension)
    return flat.reshape(len(vectors), vectors.shape[1] if vectors.ndim == 3 else 1, dimension)
