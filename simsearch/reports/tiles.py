"""The content of a report, query by query, and how an image or a name is fitted into it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from PIL import Image

MAX_ENLARGEMENT = 2.0  # a 32-pixel image enlarged to a whole tile would show the resampling filter and nothing else

# control characters, bidirectional overrides, os.fsdecode's surrogates: they break lines, disguise names, do not encode
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Tile:
    """A query or a match. image: upright and of any size, None if it could not be opened."""

    image: Image.Image | None
    path: str
    label: str | None = None
    id: int | None = None
    distance: float | None = None  # Euclidean
    similarity: float | None = None  # in [0, 1]


@dataclass(frozen=True)
class ResultRow:
    """A query and its matches, nearest first."""

    query: Tile
    matches: Sequence[Tile]


def fit_image(image: Image.Image | None, side: int) -> Image.Image | None:
    """An RGB copy, its aspect ratio kept, that fits into `side` by `side` pixels; None if there is nothing to show."""
    if image is None or 0 in image.size:
        return None
    scale = min(side / max(image.size), MAX_ENLARGEMENT)
    width, height = (max(1, round(length * scale)) for length in image.size)
    pixels = image if image.mode == "RGB" else image.convert("RGB")  # convert copies, also where nothing changes
    return pixels.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def file_name(path: str) -> str:
    """The last part of a path, or all of it if it has none."""
    return PurePath(path).name or path


def escape_unprintable(text: str) -> str:
    """The text with characters that would disturb the page as escapes, so that it encodes to UTF-8."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
