"""Query images as they are named on the command line: a path, id:N, a URL, or - for standard input."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from simsearch.errors import ImageError, UsageError

if TYPE_CHECKING:
    from simsearch.search.queries import Picture

_LARGEST_DOWNLOAD = 64 << 20
_TIMEOUT = 20.0


class Named(bytes):
    """Bytes with the name of their origin, for messages."""

    name: str

    @classmethod
    def of(cls, data: bytes, name: str) -> Named:
        named = cls(data)
        named.name = name
        return named


def read_image(text: str) -> Picture | int:
    """Reads a query image: `-` from standard input, an http(s) URL from the network; a path stays, id:N becomes an int.

    Raises UsageError, ImageError.
    """
    if text == "-":
        return Named.of(sys.stdin.buffer.read(), "standard input")
    if text.startswith("id:"):
        return item_id(text)
    if is_url(text):
        return _fetch(text)
    return text


def item_id(text: str) -> int:
    """`id:N` as N. Raises UsageError."""
    if not text[3:].isdecimal():
        raise UsageError(f"{text!r} is not the id of an item", hint="id:N with a whole number N")
    return int(text[3:])


def is_url(text: str) -> bool:
    """True for an http or https URL."""
    return re.match(r"https?://", text, re.IGNORECASE) is not None


def _fetch(url: str) -> bytes:
    """Downloads an image. Raises ImageError."""
    import urllib.request  # takes as long to import as all of click

    request = urllib.request.Request(url, headers={"User-Agent": "simsearch"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            data: bytes = response.read(_LARGEST_DOWNLOAD + 1)
    except (OSError, ValueError) as error:  # URLError is an OSError
        raise ImageError(f"{url}: {getattr(error, 'reason', error)}") from error
    if len(data) > _LARGEST_DOWNLOAD:
        raise ImageError(f"{url}: over {_LARGEST_DOWNLOAD >> 20} MiB")
    return Named.of(data, url)
