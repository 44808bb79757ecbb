"""Checks the compressed pixels of PNG files by their checksums, which Pillow does not compare."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import IO

from simsearch.images.decoding.png import SIGNATURE, chunks
from simsearch.images.decoding.spliced import Part, spliced

_BLOCK = 1 << 20


def is_intact(file: IO[bytes], size: tuple[int, int]) -> bool:
    """Returns True if the compressed pixels of a PNG match at least one of their two kinds of checksums.

    Each chunk has a CRC-32, and the stream of all chunks ends with an Adler-32. If a part of the file was overwritten,
    by zeros for example, both are wrong, but Pillow may decode the file nevertheless. This function does not look for
    missing bytes, because Pillow reports them.
    size: the width and height of the picture, which limit how much is decompressed.
    """
    if _checksums_match(file):
        return True
    width, height = size
    left = (8 * width + 1) * 2 * height + _BLOCK  # at most 8 bytes a pixel; interlaced pictures have more rows
    unpacking = zlib.decompressobj()
    try:
        for block in _blocks(file):
            while block and left >= 0 and not unpacking.eof:
                left -= len(unpacking.decompress(block, _BLOCK))
                block = unpacking.unconsumed_tail
    except zlib.error:
        return False
    return unpacking.eof


def without_checksum(file: IO[bytes]) -> IO[bytes] | None:
    """Returns a PNG without the Adler-32 of its pixels, which may be wrong, so that Pillow decodes it.

    Returns None if the chunks' checksums show that the pixels themselves are damaged.
    """
    if not _checksums_match(file):
        return None
    unpacking, end = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        for block in _blocks(file):
            end += len(block)
            block = block[2:] if end == len(block) else block  # the header of the stream
            while block and not unpacking.eof:
                unpacking.decompress(block, _BLOCK)
                block = unpacking.unconsumed_tail
    except zlib.error:
        return None
    end -= len(unpacking.unused_data)
    parts: list[Part] = [SIGNATURE]
    for chunk in chunks(file):
        if chunk.name != b"IDAT":
            parts.append((chunk.start - 8, chunk.start + chunk.length + 4))
        elif (count := min(chunk.length, end)) > 0:
            end -= count
            parts += [struct.pack(">I4s", count, b"IDAT"), (chunk.start, chunk.start + count), bytes(4)]
    return spliced(file, parts) if unpacking.eof else None


def _checksums_match(file: IO[bytes]) -> bool:
    """Returns True if no chunk of pixels has a wrong CRC-32. Chunks that are cut off do not count."""
    for chunk in chunks(file):
        if chunk.name == b"IDAT":
            checksum, left = zlib.crc32(chunk.name), chunk.length
            file.seek(chunk.start)
            while left and (block := file.read(min(left, _BLOCK))):
                checksum, left = zlib.crc32(block, checksum), left - len(block)
            if not left and file.read(4) not in {struct.pack(">I", checksum), b""}:
                return False
    return True


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Yields the compressed pixels in blocks of up to `_BLOCK` bytes."""
    for chunk in chunks(file):
        if chunk.name == b"IDAT":
            for start in range(chunk.start, chunk.start + chunk.length, _BLOCK):
                file.seek(start)
                block = file.read(min(_BLOCK, chunk.start + chunk.length - start))
                if not block:
                    return
                yield block
