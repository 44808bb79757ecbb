"""Parts of a picture: x, y, width and height, each in pixels or in percent of the picture's width or height.

x and y are counted from the upper left corner of the upright picture. This module imports nothing heavy, since the
command line uses it to parse arguments.
"""

from __future__ import annotations

import operator
import re
from typing import Any

Length = int | str
"""Pixels as a whole number, or percent as a text such as "50%"."""

Box = tuple[Length, Length, Length, Length]
"""x, y, width, height."""

PixelBox = tuple[int, int, int, int]
"""x, y, width, height in pixels."""

FORM = 'x, y, width, height: whole numbers of pixels, or percent such as "50%"'
"""Describes a box in error messages."""

PERCENT = r"(?:100(?:\.0+)?|[0-9]{1,2}(?:\.[0-9]+)?)%"
"""Regular expression for a percentage from 0% to 100%."""


def read_box(text: str) -> Box:
    """Reads a box from a text: "40,30,120,120", or "0,50%,50%,50%" for the lower left quarter. Raises ValueError."""
    x, y, width, height = (_length(part.strip()) for part in text.split(","))
    return x, y, width, height


def _length(text: str) -> Length:
    if re.fullmatch(PERCENT, text):
        return text
    if not text.isascii() or "_" in text:
        raise ValueError(text)
    return int(text)


def in_pixels(box: Any, size: tuple[int, int]) -> PixelBox:
    """Returns a box in pixels of an image of `size` (width, height). Raises TypeError or ValueError for an invalid box.

    Edges are rounded instead of widths and heights, so that adjacent boxes in percent are adjacent in pixels too.
    """
    x, y, width, height = box
    (left, across), (top, down) = _span(x, width, size[0]), _span(y, height, size[1])
    return left, top, across, down


def _span(start: Any, length: Any, whole: int) -> tuple[int, int]:
    first = _pixels(start, whole)
    return round(first), round(first + _pixels(length, whole)) - round(first)


def _pixels(length: Any, whole: int) -> float:
    if not isinstance(length, str):
        return operator.index(length)
    if not re.fullmatch(PERCENT, length):
        raise ValueError(length)
    return whole * float(length[:-1]) / 100


def least_side(box: Any, size: tuple[int, int]) -> int:
    """Returns a lower bound, in pixels, for a box's shorter side; 0 for a value that is not a box.

    size: the width and height of the image; turning it upright may swap them.
    """
    try:
        _, _, width, height = box
        return int(min(_pixels(length, min(size)) for length in (width, height)))
    except (TypeError, ValueError):
        return 0
