"""From what a caller searches by to vectors: those of items and of files that the index has come from the index."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from simsearch import images, opening
from simsearch.errors import ImageError
from simsearch.search import Picture

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.storage.protocols import ItemReader, SearchSnapshot


class Vectors:
    """The means of making query vectors over one snapshot of an index.

    compute: upright RGB images -> (n, D) features. resize: the shorter side that these images need.
    """

    def __init__(
        self, reader: ItemReader, snapshot: SearchSnapshot, resize: int,
        compute: Callable[[Sequence[Image.Image]], NDArray[np.float32]],
    ) -> None:  # fmt: skip
        self.reader, self.snapshot, self.resize, self.compute = reader, snapshot, resize, compute

    def of(
        self, pictures: Sequence[Picture | int], crop: tuple[int, int, int, int] | None = None, flip: bool = False
    ) -> NDArray[np.float32]:
        """The features of pictures and items (by id), and with `flip` of their mirror images: (n, 1 or 2, D).

        Those of an item come from the index, unless a part of it or its mirror image is asked for.
        """
        vectors = np.zeros((len(pictures), 2 if flip else 1, self.reader.shards.dimension), np.float32)
        places: list[tuple[int, int]] = []
        decoded: list[Image.Image] = []
        for number, picture in enumerate(pictures):
            row, read = self._known(picture, crop)
            if row is not None:
                vectors[number, 0] = self.reader.shards.read(np.array([row]))[0]
            if row is None or flip:
                image = read()
                image = image if crop is None else images.crop(image, crop)
                for place, variant in enumerate([image, ImageOps.mirror(image)] if flip else [image]):
                    if place or row is None:
                        places.append((number, place))
                        decoded.append(variant)
        for where, vector in zip(places, self.compute(decoded), strict=True):
            vectors[where] = vector
        return vectors

    def _known(
        self, picture: Picture | int, crop: tuple[int, int, int, int] | None
    ) -> tuple[int | None, Callable[[], Image.Image]]:
        """The row of what the index has already, and what decodes the picture."""
        resize = None if crop else self.resize
        if isinstance(picture, int | np.integer):
            item = self.reader.item(int(picture))
            source = self.snapshot.sources[item.source]
            name = source.display(item.path)

            def decode() -> Image.Image:
                try:
                    data = source.read(item.path)
                except ImageError as error:
                    raise ImageError(f"{name}: {error}", hint=error.hint) from error
                return opening.open_picture(data, resize, name).image

            return item.row if crop is None else None, decode
        if crop is not None or isinstance(picture, Image.Image | np.ndarray):
            return None, lambda: opening.open_picture(picture, resize).image
        data, name = opening.read_picture(picture)
        return self.reader.row_of(hashlib.sha256(data).digest()), lambda: opening.open_picture(data, resize, name).image


def listed(pictures: Any) -> list[Any]:
    """One picture or several as a list: a string, bytes or array is one."""
    if isinstance(pictures, tuple) and len(pictures) == 2 and isinstance(pictures[1], float):  # (picture, weight)
        return [pictures]
    number = isinstance(pictures, int | np.integer)
    single = isinstance(pictures, str | bytes | bytearray | memoryview | os.PathLike | Image.Image | np.ndarray)
    return [pictures] if number or single else list(pictures)
