"""Recognises incomplete WebP, AVIF and HEIC files: only the beginning was written, and the rest is zeros.

Their decoders show such a file as a picture. The checks for PNG and JPEG are in `png_data` and `jpeg`.
"""

from __future__ import annotations

import io
from typing import IO

from simsearch.images.decoding.iso_boxes import boxes

FORMATS = frozenset({"WEBP", "AVIF", "HEIF"})
"""The formats, as Pillow calls them, that `is_padded` knows."""

_LEAST, _SHARE, _WEBP_SHARE = 64, 0.02, 0.25
"""A file is padded if its image data ends with zeros: at least `_LEAST` bytes, and at least this share of the data.

The share is `_SHARE`, but `_WEBP_SHARE` for WebP: in a complete WebP, a seventh of the data can be zeros, where the
picture has one colour. Complete AVIF and HEIC files never end with zeros.
"""

_MOST_PARTS = 1000


def is_padded(file: IO[bytes]) -> bool:
    """Returns True if the image data of a WebP, AVIF or HEIC file ends with too many zeros (see `_LEAST`)."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    is_webp = file.read(4) == b"RIFF"
    start, end = _webp_data(file, size) if is_webp else _last_data(file)
    zeros = max(_LEAST, int((end - start) * (_WEBP_SHARE if is_webp else _SHARE)))
    if end - start < zeros:
        return False
    file.seek(end - zeros)
    return not file.read(zeros).strip(b"\0")


def _webp_data(file: IO[bytes], size: int) -> tuple[int, int]:
    """Returns the start and end of the image, or of the first frame, in a WebP file of `size` bytes."""
    start = 12
    for _ in range(_MOST_PARTS):
        file.seek(start)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] in {b"VP8 ", b"VP8L", b"ANMF"}:
            return start + 8, min(start + 8 + length, size)
        start += 8 + length + length % 2
        if len(head) < 8:
            break
    return 0, 0


def _last_data(file: IO[bytes]) -> tuple[int, int]:
    """Returns the start and end of the last image data in an AVIF or HEIC file; 0, 0 if there are none."""
    found = [(start, end) for name, start, end in boxes(file) if name == b"mdat"]
    return found[-1] if found else (0, 0)
