"""The image files of an index's items: their paths, bytes and thumbnails."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.errors import ImageError
from simsearch.images.sources import resolve

if TYPE_CHECKING:
    from PIL import Image

    from simsearch.storage.protocols import OpenIndex
    from simsearch.storage.reader import Item


def paths(index: OpenIndex, items: Iterable[Item]) -> list[str]:
    """Returns the path of each item: its source's location and its path there."""
    with index.reading() as reader:
        sources = index.sources(reader)
        return [sources[item.source].display(item.path) for item in items]


def failures(index: OpenIndex) -> list[tuple[str, str]]:
    """Returns the path of each image that could not be indexed, and the reason."""
    with index.reading() as reader:
        sources = index.sources(reader)
        return [(sources[source].display(path), reason) for source, path, reason in reader.failures()]


def read(index: OpenIndex, number: int) -> bytes:
    """Returns the bytes of an item's image file. Raises ItemNotFoundError, ImageError."""
    with index.reading() as reader:
        item = reader.item(number)
        return index.sources(reader)[item.source].read(item.path)


def thumbnail(index: OpenIndex, picture: Any, shorter_side: int) -> Image.Image | None:
    """Returns an item, by its id, or a picture as an RGB image to show; None if it cannot be read.

    picture: an id, or of any type that `resolve.open_picture` takes.
    """
    try:
        data = read(index, int(picture)) if isinstance(picture, int | np.integer) else picture
        return resolve.open_picture(data, shorter_side).image
    except ImageError:
        return None
