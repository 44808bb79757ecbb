"""A read-only file composed of bytes and of parts of another file, without a copy of that file."""

from __future__ import annotations

import bisect
import io
from collections.abc import Sequence
from typing import IO, Any

Part = bytes | tuple[int, int]
"""Bytes, or the range [start, end) of bytes in the other file."""


def spliced(file: IO[bytes], parts: Sequence[Part]) -> IO[bytes]:
    """Returns a read-only file that consists of `parts`, in this order.

    parts: each is a bytes object, or a pair (start, end) for the bytes of `file` from start to end - 1.
    Closing the result does not close `file`.
    """
    return io.BufferedReader(_Splice(file, parts))


class _Splice(io.RawIOBase):
    def __init__(self, file: IO[bytes], parts: Sequence[Part]) -> None:
        self._file, self._parts, self._position = file, list(parts), 0
        self._starts = [0]  # of each part, and the end
        for part in self._parts:
            size = len(part) if isinstance(part, bytes) else part[1] - part[0]
            self._starts.append(self._starts[-1] + size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._starts[-1]}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Reads bytes of one part only; a later call continues with the next part.

        If a part goes beyond the end of the file from which it is taken, reading ends there.
        """
        number = bisect.bisect_right(self._starts, self._position) - 1
        if number >= len(self._parts):
            return 0
        part, start = self._parts[number], self._position - self._starts[number]
        count = min(len(buffer), self._starts[number + 1] - self._position)
        if isinstance(part, bytes):
            found = part[start : start + count]
        else:
            self._file.seek(part[0] + start)
            found = self._file.read(count)
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)
