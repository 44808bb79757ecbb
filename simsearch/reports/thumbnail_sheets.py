"""Combines thumbnails of items into large images (sheets), so that a page of many items has only a few images."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from simsearch.common.progress import Progress, no_progress
from simsearch.reports.tiles import fit_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE, COLUMNS = 96, 20
"""Width and height of a thumbnail's square in pixels, and number of squares in each row and column of a sheet."""

QUALITY = 72
"""WebP quality of the sheets; a thumbnail takes about 2 kB at this quality."""


@dataclass(frozen=True)
class Sheets:
    """Thumbnails of m items on sheets. A sheet is divided into squares, which are filled row by row.

    images: the sheets, as WebP files.
    places: (m,), the position of each thumbnail's item in the list of all items.
    sizes: (m, 2), the width and height of each thumbnail in pixels. A thumbnail is in its square's top left corner.
    side: width and height of a square in pixels.
    columns: number of squares in a row. A full sheet has the same number of rows; the last sheet may have fewer.
    """

    images: Sequence[bytes] = ()
    places: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    sizes: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    side: int = SIDE
    columns: int = COLUMNS


def make_sheets(
    places: Sequence[int], opened: Callable[[int], Image.Image | None], progress: Progress = no_progress
) -> Sheets:
    """Returns the thumbnails of items on sheets. Items whose image cannot be read are left out.

    places: the positions of the items in the list of all items.
    opened: returns the image of the item at a position, in any size; None if it cannot be read.
    """
    shown: list[int] = []
    sizes: list[tuple[int, int]] = []

    def pictures() -> Iterator[Image.Image]:
        for done, place in enumerate(places, 1):
            fitted = fit_image(opened(place), SIDE)
            if fitted is not None:
                shown.append(place)
                sizes.append(fitted.size)
                yield fitted
            progress(done, len(places))

    images = list(_sheets(pictures()))
    return Sheets(images, np.array(shown, np.int64), np.array(sizes, np.int64).reshape(-1, 2))


def _sheets(pictures: Iterator[Image.Image]) -> Iterator[bytes]:
    sheet, used = _new_sheet(), 0
    for picture in pictures:
        sheet.paste(picture, (used % COLUMNS * SIDE, used // COLUMNS * SIDE))
        used += 1
        if used == COLUMNS**2:
            yield _encode(sheet, used)
            sheet, used = _new_sheet(), 0
    if used:
        yield _encode(sheet, used)


def _new_sheet() -> Image.Image:
    return Image.new("RGB", (COLUMNS * SIDE, COLUMNS * SIDE), "#808080")


def _encode(sheet: Image.Image, used: int) -> bytes:
    """Returns a sheet as a WebP file, without its empty rows. used: the number of squares that have a thumbnail."""
    buffer = io.BytesIO()
    rows = -(-used // COLUMNS)
    sheet.crop((0, 0, sheet.width, rows * SIDE)).save(buffer, "WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()
