"""The boxes that AVIF, HEIC and JPEG 2000 files consist of (ISO/IEC 14496-12, section 4.2)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import IO

_MOST_BOXES = 1000


def boxes(file: IO[bytes], start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Yields each box in a part of a file: its name, and the start and end of its content.

    start, end: the offsets (bytes) at which the part starts and ends; end is None for the end of the file. If a box
    reaches beyond the part, its content ends with the part.
    """
    end = file.seek(0, io.SEEK_END) if end is None else end
    for _ in range(_MOST_BOXES):
        if start >= end:
            return
        file.seek(start)
        head = file.read(16)
        length, body = int.from_bytes(head[:4], "big"), start + 8
        if length == 1:
            length, body = int.from_bytes(head[8:16], "big"), start + 16
        length = length or end - start
        if len(head) < 8 or length < body - start:
            return
        yield head[4:8], body, min(start + length, end)
        start += length
