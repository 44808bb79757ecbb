"""Completes JPEG files whose end is missing, if nearly all pixels are there, as browsers and libjpeg's tools do."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np
from PIL import Image

from simsearch.images.decoding.spliced import Part, spliced

MISSING = 0.02
"""A truncated JPEG is completed only if at most this share of its pixels depends on missing bytes.

Otherwise, it is rejected as truncated.
"""

LARGEST_BYTES = 256 << 20
"""Files of more bytes are not completed."""

_END = b"\xff\xd9"
_FILLINGS = (b"\x00", b"\x55")
_PADDING = 64
_PADDINGS = (b"\0" * _PADDING, b"\xff" * _PADDING)
_UNIT_BYTES = 512  # enough for the blocks of a 16 x 16 square with these fillings
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})


class _Structure(NamedTuple):
    """The structure of a JPEG, from its markers.

    complete: True if the scans in the file, by their headers, together cover all bits of all coefficients. The data of
    the last scan may still be cut off.
    units: number of minimum coded units (MCU), the blocks of the picture that are coded together.
    interval: units between two restart markers; 0 if there are no restart markers.
    restart: the number, 0 to 7, of the restart marker that would follow the last one in the file.
    """

    complete: bool
    units: int
    interval: int
    restart: int


def completed(file: IO[bytes]) -> IO[bytes] | None:
    """Returns a truncated JPEG with an end marker added; None if the file is not truncated or cannot be completed.

    A file cannot be completed if more than the share `MISSING` of its pixels depends on missing bytes. To find these
    pixels, the picture is decoded twice, with different bytes in place of the missing ones. Padding at the end of the
    file counts as missing. Raises Pillow's errors.
    """
    file.seek(0)
    data = file.read(LARGEST_BYTES + 1)
    if len(data) > LARGEST_BYTES:
        return None
    data = _without_padding(data)
    structure = _structure(data)
    if data.endswith(_END) or structure is None or not structure.complete:
        return None
    whole: list[Part] = [(0, len(data))]
    first, second = (_half_size(file, [*whole, *_filling(structure, filling), _END]) for filling in _FILLINGS)
    differs = np.asarray(first) != np.asarray(second)
    if differs.ndim == 3:
        differs = differs.any(2)
    return spliced(file, [*whole, _END]) if differs.mean() <= MISSING else None


def is_padded(file: IO[bytes]) -> bool:
    """Returns True if a JPEG is padded with 0x00 or 0xFF bytes and has no end marker before the padding."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _PADDING))
    tail = file.read(_PADDING)
    if tail not in _PADDINGS or size > LARGEST_BYTES:
        return False
    file.seek(0)
    return not file.read().rstrip(tail[:1]).endswith(_END)


def _without_padding(data: bytes) -> bytes:
    """Removes padding from a file's end: all 0xFF bytes, or all zeros except the first, which may be image data."""
    return data.rstrip(b"\xff") if data.endswith(b"\xff") else data[: len(data.rstrip(b"\0")) + 1]


def _half_size(file: IO[bytes], parts: list[Part]) -> Image.Image:
    with Image.open(spliced(file, parts), formats=["JPEG"]) as image:
        image.draft(None, (max(1, image.width // 2), max(1, image.height // 2)))
        image.load()
        return image


def _filling(structure: _Structure, filling: bytes) -> Iterator[bytes]:
    """Yields copies of `filling`, with restart markers between them, to take the place of the missing bytes.

    The copies fill a little more than twice the share `MISSING` of the picture. If more than that is missing, libjpeg
    makes the rest grey, whatever the filling. More copies are not needed for this case: the pixels that differ between
    two fillings already exceed the share `MISSING`.
    """
    units = int(structure.units * MISSING * 2) + 2
    if not structure.interval:
        yield filling * (_UNIT_BYTES * units)
        return
    interval = filling * (_UNIT_BYTES * min(structure.interval, units))
    yield interval
    numbers = itertools.cycle(range(0xD0, 0xD8))
    for number in itertools.islice(numbers, structure.restart, structure.restart + units // structure.interval + 1):
        yield bytes((0xFF, number)) + interval


def _structure(data: bytes) -> _Structure | None:
    """Returns the structure of a JPEG, read from its markers; None if the markers make no sense."""
    missing: dict[int, list[int]] = {}  # by component: for each coefficient, the number of bits still missing
    progressive, interval, units, start, scan = False, 0, 0, 2, 0
    while (marker := _MARKER.search(data, start)) is not None:
        code, start = marker[1][0], marker.end()
        body = data[start + 2 : start + int.from_bytes(data[start : start + 2], "big")]
        if code in _FRAMES and len(body) >= 6 + 3 * body[5]:
            progressive = code in _PROGRESSIVE
            parts = [body[6 + 3 * number : 9 + 3 * number] for number in range(body[5])]
            missing = {part[0]: [16] * 64 for part in parts}
            across, down = (8 * max((part[1] >> shift & 15 for part in parts), default=1) for shift in (4, 0))
            height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            units = -(-width // max(1, across)) * -(-height // max(1, down))
        elif code == 0xDD and len(body) >= 2:
            interval = int.from_bytes(body[:2], "big")
        elif code == 0xDA:
            scan = start
            if not body or len(body) < 4 + 2 * body[0]:
                return None
            low, high, bits = (*body[-3:-1], body[-1] & 15) if progressive else (0, 63, 0)
            for component in body[1 : 1 + 2 * body[0] : 2]:
                if component not in missing or high > 63:
                    return None
                missing[component][low : high + 1] = [bits] * (high + 1 - low)
        start += 2 + len(body)
    if not missing or not scan:
        return None
    complete = not any(any(bits) for bits in missing.values())
    place, code = max((data.rfind(bytes((0xFF, code)), scan), code) for code in range(0xD0, 0xD8))
    restart = (code - 0xD0 + 1) % 8 if place >= 0 else 0
    return _Structure(complete, units, interval, restart)
