"""Images, weights and boxes as they are written on the command line."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING

from simsearch.errors import ImageError, UsageError

if TYPE_CHECKING:
    from simsearch.search.queries import Picture

_LARGEST_DOWNLOAD = 64 << 20
_TIMEOUT = 20.0


class Named(bytes):
    """Bytes that know where they come from, for messages."""

    name: str

    @classmethod
    def of(cls, data: bytes, name: str) -> Named:
        named = cls(data)
        named.name = name
        return named


def picture(text: str) -> Picture | int:
    """`id:N`, `-` for standard input, an http(s) URL, or a path. Raises UsageError, ImageError."""
    if text == "-":
        return Named.of(sys.stdin.buffer.read(), "standard input")
    if text.startswith("id:"):
        if not text[3:].isdecimal():
            raise UsageError(f"{text!r} is not the id of an item", hint="id:N with a whole number N")
        return int(text[3:])
    if re.match(r"https?://", text, re.IGNORECASE):
        return _fetch(text)
    return text


def weight(text: str) -> tuple[str, float]:
    """`IMAGE=W` as the image and its weight; without a number at the end, or where a file is called so, weight 1."""
    name, equals, number = text.rpartition("=")
    if not equals or os.path.exists(text) or re.match(r"https?://", text, re.IGNORECASE):
        return text, 1.0
    try:
        return name, float(number)
    except ValueError:
        return text, 1.0


def box(text: str) -> tuple[int, int, int, int]:
    """`X,Y,W,H` as four numbers. Raises UsageError."""
    parts = text.split(",")
    try:
        x, y, width, height = (int(part) for part in parts)
    except ValueError:
        raise UsageError(f"--crop {text!r} is not X,Y,W,H", hint="four whole numbers, in pixels") from None
    return x, y, width, height


def _fetch(url: str) -> bytes:
    import urllib.request

    request = urllib.request.Request(url, headers={"User-Agent": "simsearch"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            data: bytes = response.read(_LARGEST_DOWNLOAD + 1)
    except (OSError, ValueError) as error:  # URLError is an OSError
        raise ImageError(f"{url}: {getattr(error, 'reason', error)}") from error
    if len(data) > _LARGEST_DOWNLOAD:
        raise ImageError(f"{url}: over {_LARGEST_DOWNLOAD >> 20} MiB")
    return Named.of(data, url)
