"""Reads images, weights and boxes as they are written on the command line."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING

from simsearch.errors import ImageError, UsageError
from simsearch.images.urls import fetch
from simsearch.storage.lookup import ID_PREFIX, parse_id

if TYPE_CHECKING:
    from simsearch.search.queries import Picture

_LARGEST_DOWNLOAD = 64 << 20  # bytes
_TIMEOUT = 20.0  # seconds


class Named(bytes):
    """Bytes with a name for messages, such as the URL that they come from."""

    name: str

    @classmethod
    def of(cls, data: bytes, name: str) -> Named:
        """Names some bytes."""
        named = cls(data)
        named.name = name
        return named


def picture(text: str) -> Picture | int:
    """Reads an image argument: `id:N` as N, `-` and an http(s) URL as bytes, anything else as a path.

    Raises UsageError, ImageError.
    """
    if text == "-":
        return Named.of(sys.stdin.buffer.read(), "standard input")
    if text.startswith(ID_PREFIX):
        number = parse_id(text)
        if number is None:
            raise UsageError(f"{text!r} is not the id of an item", hint="id:N with a whole number N")
        return number
    if re.match(r"https?://", text, re.IGNORECASE):
        return _fetch(text)
    return text


def weight(text: str) -> tuple[str, float]:
    """Splits `IMAGE=W` into image and weight: 1 without a number, for a URL, and if the whole text names a file."""
    name, equals, number = text.rpartition("=")
    if not equals or os.path.exists(text) or re.match(r"https?://", text, re.IGNORECASE):
        return text, 1.0
    try:
        return name, float(number)
    except ValueError:
        return text, 1.0


def box(text: str) -> tuple[int, int, int, int]:
    """Reads the box `X,Y,W,H` in pixels. Raises UsageError."""
    parts = text.split(",")
    try:
        x, y, width, height = (int(part) for part in parts)
    except ValueError:
        raise UsageError(f"--crop {text!r} is not X,Y,W,H", hint="four whole numbers, in pixels") from None
    return x, y, width, height


def _fetch(url: str) -> bytes:
    try:
        return Named.of(fetch(url, _LARGEST_DOWNLOAD, _TIMEOUT, public_only=False), url)
    except ImageError as error:
        raise ImageError(f"{url}: {error}") from error
