"""Combines thumbnails of items into sheets, so that a page with thousands of items needs only a few images."""

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
"""Side of a thumbnail's square in pixels, and number of squares in each row and column of a sheet."""

QUALITY = 72
"""WebP quality of the sheets; about 2 kB per thumbnail."""


@dataclass(frozen=True)
class Sheets:
    """Pictures of m items. Picture j is on sheet j // columns², row by row, in the top left corner of its square.

    images: the sheets, WebP. places: (m,) of the items. sizes: (m, 2) width and height in pixels.
    """

    images: Sequence[bytes] = ()
    places: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    sizes: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    side: int = SIDE
    columns: int = COLUMNS


def make_sheets(
    places: Sequence[int], opened: Callable[[int], Image.Image | None], progress: Progress = no_progress
) -> Sheets:
    """Draws the sheets. opened: returns the image of an item by place, in any size; None if it cannot be read."""
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
    """Encodes the rows of a sheet that are used."""
    buffer = io.BytesIO()
    rows = -(-used // COLUMNS)
    sheet.crop((0, 0, sheet.width, rows * SIDE)).save(buffer, "WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()
