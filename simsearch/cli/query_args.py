"""Query images as they are named on the command line: a path, id:N, a URL, or - for standard input."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from simsearch.common.item_ids import ID_PREFIX, parse_id
from simsearch.common.lazy import LazyModule
from simsearch.errors import ImageError, UsageError

if TYPE_CHECKING:
    from simsearch.images import urls
    from simsearch.images.sources import resolve
    from simsearch.search.queries import Picture
else:  # their libraries take as long to import as all of click
    urls = LazyModule("simsearch.images.urls")
    resolve = LazyModule("simsearch.images.sources.resolve")

_LARGEST_DOWNLOAD = 64 << 20  # bytes
_TIMEOUT = 20.0  # seconds


class Named(bytes):
    """Bytes with the name of their origin, for messages."""

    name: str

    @classmethod
    def of(cls, data: bytes, name: str) -> Named:
        """Names some bytes."""
        named = cls(data)
        named.name = name
        return named


def expand_folders(texts: Sequence[str]) -> list[str]:
    """Replaces each folder by the pictures in it and its subfolders, in the order of their paths.

    Raises UsageError for a folder without pictures.
    """
    found: list[str] = []
    for text in texts:
        if not os.path.isdir(text):
            found.append(text)
            continue
        source = resolve.resolve(text)
        paths = [entry.path for entry in source.listing().entries if not entry.problem]
        if not paths:
            raise UsageError(f"the folder {text} has no pictures")
        found += [os.path.join(text, path) for path in paths]
    return found


def _looks_like_words(text: str) -> bool:
    """Returns True for what can hardly be meant as a file name: there is none, and it has no suffix and no folder."""
    return not os.path.lexists(text) and os.sep not in text and not os.path.splitext(text)[1]


def read_image(text: str) -> Picture | int:
    """Reads a query image: `-` from standard input, an http(s) URL from the network; a path stays, id:N becomes an int.

    Raises UsageError, ImageError.
    """
    if text == "-":
        return Named.of(sys.stdin.buffer.read(), "standard input")
    if text.startswith(ID_PREFIX):
        return item_id(text)
    if is_url(text):
        return _fetch(text)
    if _looks_like_words(text):
        raise UsageError(
            f"there is no picture {text!r}, and words are not searched for",
            hint="give a picture to search by: a path, a folder, id:N, an http(s) URL, or - for standard input",
        )
    return text


def item_id(text: str) -> int:
    """Returns N of `id:N`. Raises UsageError."""
    number = parse_id(text)
    if number is None:
        raise UsageError(f"{text!r} is not the id of an item", hint="id:N with a whole number N")
    return number


def is_url(text: str) -> bool:
    """Returns True for an http or https URL."""
    return re.match(r"https?://", text, re.IGNORECASE) is not None


def _fetch(url: str) -> bytes:
    """Downloads an image. Raises ImageError."""
    try:
        return Named.of(urls.fetch(url, _LARGEST_DOWNLOAD, _TIMEOUT, public_only=False), url)
    except ImageError as error:
        raise ImageError(f"{url}: {error}") from error
