"""The image files of an index's items: their paths, bytes and thumbnails."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from simsearch.common.machine import MemoryBudget
from simsearch.errors import ImageError
from simsearch.images import decode
from simsearch.images.sources import recorded, resolve

if TYPE_CHECKING:
    from PIL import Image

    from simsearch.storage.protocols import OpenIndex
    from simsearch.storage.reader import Item


def paths(index: OpenIndex, items: Iterable[Item]) -> list[str]:
    """Returns the full path of each item: the location of its source, followed by its path in the source."""
    with index.reading() as reader:
        sources = index.sources(reader)
        return [sources[item.source].display(item.path) for item in items]


def failures(index: OpenIndex) -> list[tuple[str, str]]:
    """Returns (path, reason) of each image that could not be indexed."""
    with index.reading() as reader:
        sources = index.sources(reader)
        return [(sources[source].display(path), reason) for source, path, reason in reader.failures()]


def open_image(index: OpenIndex, number: int, *, decodes: bool = True, budget: MemoryBudget | None = None) -> IO[bytes]:
    """Opens an item's image file for reading, after checking that it is the indexed image. The caller closes the file.

    number: the item's id. budget: the most memory for all images that are being decoded; None for no limit.
    decodes: True to check that the image can be decoded, because an index from a stranger may name files that are not
    images. A caller that decodes the image itself and hands out only its pixels needs no check and passes False.
    Raises ItemNotFoundError, and ImageError if the file is gone, was changed after indexing, or is outside its source.
    """
    with index.reading() as reader:
        item = reader.item(number)
        source = index.sources(reader)[item.source]
        return recorded.open_recorded(source, item.path, item.digest, decodes=decodes, budget=budget)


def read(index: OpenIndex, number: int) -> bytes:
    """Returns the bytes of the image file of the item with the id `number`. Raises the errors of `open_image`."""
    with open_image(index, number) as file:
        return file.read()


def thumbnail(index: OpenIndex, picture: Any, shorter_side: int) -> Image.Image | None:
    """Returns a picture as an RGB image to show; None if the picture cannot be read.

    picture: the id of an item, or a picture of any type that `resolve.open_picture` takes.
    shorter_side: the number of pixels that the caller needs along the shorter side. The result may be larger.
    """
    found = decoded(index, picture, shorter_side)
    return None if found is None else found.image


def decoded(index: OpenIndex, picture: Any, shorter_side: int) -> decode.DecodedImage | None:
    """Returns the image of `thumbnail` and the size of the original; None if the picture cannot be read."""
    try:
        if not isinstance(picture, int | np.integer):
            return resolve.open_picture(picture, shorter_side)
        with open_image(index, int(picture), decodes=False) as file:
            return decode.decode_image(file, shorter_side)
    except ImageError:
        return None
