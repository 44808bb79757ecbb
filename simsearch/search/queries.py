"""What a search can be made by, as a caller gives it and as it is when read and decoded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from simsearch.errors import SimsearchError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Picture = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | np.ndarray[Any, Any]
"""An image to search by: a path, encoded bytes, a binary file, a PIL image, or an (H, W, 3) uint8 array."""

Box = tuple[int, int, int, int]
"""x, y, width, height in pixels of the upright image."""


class OutdatedQueryError(SimsearchError):
    """Another index has taken the place of the one that a query was prepared for: prepare it again."""


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """One picture, item or vector, whose features can be looked up or computed without reading a file.

    item: the id, if it was given by one. digest: SHA-256 of the file, of an item's as indexed; empty if not known.
    pixels, mirrored: (S, S, 3) uint8 from `preprocessing.pixels`, of the picture and, if wanted, of its mirror image.
    whole: False for a part of a picture. weights_sha256: of the model that the pixels are for.
    vector: (D,) float32, in place of a picture.
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
    """An image to search by, and those to be like (`plus`) and unlike (`minus`), each with its weight."""

    image: PreparedImage
    plus: tuple[PreparedImage, ...] = ()
    minus: tuple[PreparedImage, ...] = ()
    plus_weights: tuple[float, ...] = ()
    minus_weights: tuple[float, ...] = ()

    @property
    def variants(self) -> int:
        """The number v of its vectors: one more for the mirror image."""
        return 1 if self.image.mirrored is None else 2

    @property
    def left_out(self) -> tuple[int, ...]:
        """The ids of the items that are no answers: those it was made from, but for `minus`."""
        return tuple(image.item for image in (self.image, *self.plus) if image.item is not None)


def is_id(value: Any) -> bool:
    """True for a whole number, which stands for an item."""
    return isinstance(value, int | np.integer)


def as_list(pictures: Any) -> list[Any]:
    """One picture or several as a list; a string, bytes, a file or an array is one, as is (picture, weight)."""
    if isinstance(pictures, tuple) and len(pictures) == 2 and isinstance(pictures[1], float):
        return [pictures]
    kinds = str, bytes, bytearray, memoryview, os.PathLike, Image.Image, np.ndarray
    single = is_id(pictures) or isinstance(pictures, kinds) or hasattr(pictures, "read")
    return [pictures] if single else list(pictures)


def as_numbers(values: Any, what: str) -> NDArray[np.float32]:
    """Anything made of numbers as float32; what float32 cannot hold is infinite. Raises UsageError."""
    try:
        with np.errstate(over="ignore"):
            return np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what} not made of numbers: {error}") from error


def as_vector(values: Any, dimension: int) -> NDArray[np.float32]:
    """Finite (dimension,) float32 features. Raises UsageError."""
    vector = as_numbers(values, "the vector is").reshape(-1)
    if vector.shape != (dimension,):
        raise UsageError(f"the vector has {vector.size} dimensions, the index {dimension}")
    if not np.isfinite(vector).all():
        raise UsageError("the vector has values that are not finite")
    return vector
