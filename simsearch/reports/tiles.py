"""The tiles of a report, each with a query or a match, and functions that fit images and names into tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from PIL import Image, ImageDraw

from simsearch.images.boxes import PixelBox

PAPER, INK, FAINT = "#ffffff", "#1c1f23", "#5d646c"
"""Colours of drawn reports: the background, text, and less important text."""

SHADE = 0.6
"""Outside a marked part, an image is mixed with this fraction of black; the web page uses the same fraction."""

MAX_ENLARGEMENT = 2.0  # tiny images that are enlarged further are only blurred


@dataclass(frozen=True)
class Tile:
    """A query or a match in a report. image: upright, of any size and mode; None if it could not be opened."""

    image: Image.Image | None
    path: str
    label: str | None = None
    id: int | None = None
    distance: float | None = None  # Euclidean
    similarity: float | None = None  # in [0, 1]
    details: str = ""  # a line of text to show below the picture, such as its size and date
    link: str | None = None  # the URL that a click opens; None to open the file


@dataclass(frozen=True)
class ResultRow:
    """A query and its matches, nearest first."""

    query: Tile
    matches: Sequence[Tile]


def fit_image(image: Image.Image | None, side: int) -> Image.Image | None:
    """Returns an RGB copy of an image, scaled to fit into a square of `side` pixels.

    An image is enlarged at most MAX_ENLARGEMENT times. Returns None if `image` is None or has no pixels.
    """
    if image is None or 0 in image.size:
        return None
    scale = min(side / max(image.size), MAX_ENLARGEMENT)
    width, height = (max(1, round(length * scale)) for length in image.size)
    pixels = image if image.mode == "RGB" else image.convert("RGB")  # convert always copies
    return pixels.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def mark_part(image: Image.Image, box: PixelBox, size: tuple[int, int]) -> Image.Image:
    """Returns an RGB copy of an image with a frame around a part, and the rest darkened.

    image: the original, or a scaled copy of it.
    box: the part, in pixels of the original. size: the width and height of the original.
    """
    across, down = image.width / size[0], image.height / size[1]
    x, y, width, height = box
    left, top = int(x * across), int(y * down)
    right, bottom = max(left + 1, round((x + width) * across)), max(top + 1, round((y + height) * down))
    pixels = image.convert("RGB")
    marked = Image.blend(pixels, Image.new("RGB", pixels.size), SHADE)
    marked.paste(pixels.crop((left, top, right, bottom)), (left, top))
    line = max(1, round(max(image.size) / 128))
    draw = ImageDraw.Draw(marked)
    draw.rectangle((left - 1, top - 1, right, bottom), outline="black", width=1)
    draw.rectangle((left, top, right - 1, bottom - 1), outline="white", width=line)
    return marked


def file_name(path: str) -> str:
    """Returns the last part of a path; for a path such as "/", which has no parts, the path itself."""
    return PurePath(path).name or path
