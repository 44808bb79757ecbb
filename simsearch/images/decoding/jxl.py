"""Reads JPEG XL with a plugin (extra `[jxl]`).

The plugin decodes a file as soon as it opens the file, so the size of the picture is checked before that.
"""

from __future__ import annotations

import os
from typing import IO, Any

from PIL import Image

from simsearch.errors import ImageError
from simsearch.images.decoding.limits import check_size
from simsearch.images.decoding.messages import missing_extra

_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
_BITS = (9, 13, 18, 30)


def opened(file: IO[bytes], largest: int) -> Image.Image:
    """Opens and decodes a JPEG XL of at most `largest` pixels. Raises ImageError, also if the plugin is missing."""
    plugin = _plugin()
    check_size(size(file), largest)
    file.seek(0)
    image: Image.Image = plugin.JXLImageFile(file)
    return image


def _plugin() -> Any:
    known = "JXL" in Image.ID
    try:
        from pillow_jxl import JpegXLImagePlugin
    except ImportError:
        raise missing_extra("JPEG XL", "jxl") from None
    if not known and "JXL" in Image.ID:  # otherwise `Image.open` would decode a picture
        Image.ID.remove("JXL")
    JpegXLImagePlugin.DECODE_THREADS = 0  # a build decodes one picture in each thread
    return JpegXLImagePlugin


def size(file: IO[bytes]) -> tuple[int, int]:
    """Reads the width and height of a JPEG XL from its header. Raises ImageError if the header cannot be read."""
    file.seek(_codestream(file))
    head = file.read(16)
    if head[:2] != b"\xff\x0a" or len(head) < 12:
        raise ImageError("a damaged JPEG XL file: its header cannot be read")
    bits = _BitReader(int.from_bytes(head[2:], "little"))
    small = bits.take(1)
    height = _side(bits, small)
    ratio = bits.take(3)
    if ratio:
        over, under = _RATIOS[ratio]
        return height * over // under, height
    return _side(bits, small), height


class _BitReader:
    """Reads the bits of an integer, the lowest first."""

    def __init__(self, bits: int) -> None:
        self._bits = bits

    def take(self, count: int) -> int:
        value = self._bits & ((1 << count) - 1)
        self._bits >>= count
        return value


def _side(bits: _BitReader, small: int) -> int:
    return 8 * (bits.take(5) + 1) if small else bits.take(_BITS[bits.take(2)]) + 1


def _codestream(file: IO[bytes]) -> int:
    """Returns the offset of the codestream, which may be in a box of a container.

    Raises ImageError if the file has no codestream.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(2) == b"\xff\x0a":
        return 0
    start = 0
    while start < end:  # lengths have 64 bits, but `seek` takes only 63
        file.seek(start)
        head = file.read(16)
        length, name, body = int.from_bytes(head[:4], "big"), head[4:8], start + 8
        if length == 1:
            length, body = int.from_bytes(head[8:16], "big"), start + 16
        if name == b"jxlc":
            return body
        if name == b"jxlp":
            return body + 4
        if length < 8:
            break
        start += length
    raise ImageError("a damaged JPEG XL file: it has no picture")
