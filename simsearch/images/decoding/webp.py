"""Finds where the first frame of an animated WebP lies on the canvas; Pillow does not tell this."""

from __future__ import annotations

from typing import IO


def first_frame(file: IO[bytes]) -> tuple[int, int, int, int] | None:
    """Returns the left, upper, right and lower edge of the first frame, in pixels; None if the file has no frame."""
    start = 12
    while True:
        file.seek(start)
        head = file.read(20)
        if len(head) < 20:
            return None
        if head[:4] == b"ANMF":
            left, top, width, height = (int.from_bytes(head[8 + 3 * n : 11 + 3 * n], "little") for n in range(4))
            return 2 * left, 2 * top, 2 * left + width + 1, 2 * top + height + 1
        size = int.from_bytes(head[4:8], "little")
        start += 8 + size + size % 2
