"""Reads the merged picture of Photoshop files (PSD and PSB).

Pillow's own reader makes mistakes: it reads 8 bits only, inverts bitmaps, mixes up the rows of compressed files with
additional channels, and shows saved selections as transparency.
"""

from __future__ import annotations

import struct
from typing import IO, NamedTuple

import numpy as np
from PIL import Image

from simsearch.errors import ImageError
from simsearch.images.decoding.colour import LARGEST_PROFILE
from simsearch.images.decoding.limits import check_size
from simsearch.images.decoding.modes import eight_bits

SIGNATURE = b"8BPS"
_ICC_PROFILE = 1039
_MOST_RESOURCES = 4096
_BITMAP, _INDEXED, _LAB, _CMYK = 0, 2, 9, 4
_MODES = {_BITMAP: "L", 1: "L", _INDEXED: "P", 3: "RGB", _CMYK: "CMYK", 7: "L", 8: "L", _LAB: "LAB"}
"""Maps Photoshop's numbers of colour modes to Pillow's modes.

Of pictures with mode 7 ("multichannel") or 8 ("duotone"), only the first channel is shown.
"""


class _Header(NamedTuple):
    large: bool
    channels: int
    height: int
    width: int
    depth: int
    mode: int


def opened(file: IO[bytes], largest: int) -> Image.Image:
    """Reads a Photoshop file of at most `largest` pixels.

    The colours of transparent parts are mixed with white already, so the alpha channel is not needed. Raises ImageError
    and OSError.
    """
    header = _header(file)
    check_size((header.width, header.height), largest)
    palette = _section(file, 4)
    profile = _profile(file)
    _skip(file, 8 if header.large else 4)  # layers
    image = _merged(file, header)
    if image.mode == "P":
        image.putpalette(np.frombuffer(palette[:768].ljust(768, b"\0"), np.uint8).reshape(3, 256).T.tobytes())
    image.format = "PSD"
    if profile is not None:
        image.info["icc_profile"] = profile
    return image


def memory(file: IO[bytes]) -> int:
    """Estimates the memory (bytes) that `opened` needs. Raises ImageError if the header cannot be read."""
    header = _header(file)
    return header.width * header.height * (Image.getmodebands(_MODES[header.mode]) + 2 * max(1, header.depth // 8))


def _header(file: IO[bytes]) -> _Header:
    file.seek(0)
    data = file.read(26)
    if len(data) < 26 or data[:4] != SIGNATURE:
        raise ImageError("the file is truncated: its header is incomplete")
    version, channels, height, width, depth, mode = struct.unpack(">H6xHIIHH", data[4:])
    needed = Image.getmodebands(_MODES[mode]) if mode in _MODES else 0
    if version not in {1, 2} or not 0 < needed <= channels or depth not in {1, 8, 16, 32}:
        raise ImageError("a variant of its format that cannot be read")
    return _Header(version == 2, channels, height, width, depth, mode)


def _merged(file: IO[bytes], header: _Header) -> Image.Image:
    mode = _MODES[header.mode]
    row = -(-header.width * header.depth // 8)
    packed = struct.unpack(">H", _read(file, 2))[0]
    if packed > 1:
        raise ImageError("a variant of its format that cannot be read")
    lengths = [row * header.height] * header.channels
    if packed:
        kind = np.dtype(">u4" if header.large else ">u2")
        table = np.frombuffer(_read(file, header.channels * header.height * kind.itemsize), kind)
        lengths = table.reshape(header.channels, -1).sum(1, dtype=np.int64).tolist()
    bands = []
    for length in lengths[: Image.getmodebands(mode)]:
        data = _read(file, length)
        if packed:
            data = Image.frombytes("L", (row, header.height), data, "packbits", "L").tobytes()
        bands.append(_band(data, header))
    return bands[0].convert("L") if mode == "L" else _merge(mode, bands)


def _merge(mode: str, bands: list[Image.Image]) -> Image.Image:
    if mode == "P":
        return Image.frombytes("P", bands[0].size, bands[0].tobytes())
    return Image.merge(mode, bands)


def _band(data: bytes, header: _Header) -> Image.Image:
    """Returns a channel as 8-bit values."""
    size = header.width, header.height
    if header.depth == 1:
        bits = np.unpackbits(np.frombuffer(data, np.uint8).reshape(header.height, -1), axis=1)[:, : header.width]
        return Image.fromarray((1 - bits) * np.uint8(255))  # 1 is black
    if header.depth == 8:
        levels = np.frombuffer(data, np.uint8)
    elif header.depth == 16:
        levels = (np.frombuffer(data, ">u2") / np.float32(257)).round().astype(np.uint8)
    else:
        levels = eight_bits(np.frombuffer(data, ">f4"), 1.0)
    if header.mode == _CMYK:
        levels = 255 - levels  # the file has 255 where there is no ink
    return Image.frombytes("L", size, levels.tobytes())


def _profile(file: IO[bytes]) -> bytes | None:
    """Returns the ICC profile in the image resources, or None. Leaves the file at the end of the resources."""
    end = struct.unpack(">I", _read(file, 4))[0] + file.tell()
    found = None
    for _ in range(_MOST_RESOURCES):
        head = file.read(7) if file.tell() + 12 <= end else b""
        if len(head) < 7 or head[:4] not in {b"8BIM", b"MeSa", b"PHUT", b"AgHg", b"DCSR"}:
            break
        file.seek(head[6] + (head[6] + 1) % 2, 1)  # a name; with the byte of its length, it has an even length
        length = struct.unpack(">I", _read(file, 4))[0]
        if struct.unpack(">H", head[4:6])[0] == _ICC_PROFILE and length <= LARGEST_PROFILE:
            found = _read(file, length)
            break
        file.seek(length + length % 2, 1)
    file.seek(end)
    return found


def _section(file: IO[bytes], size: int) -> bytes:
    length = int.from_bytes(_read(file, size), "big")
    data = file.read(min(length, 1 << 16))
    file.seek(length - len(data), 1)
    return data


def _skip(file: IO[bytes], size: int) -> None:
    file.seek(int.from_bytes(_read(file, size), "big"), 1)


def _read(file: IO[bytes], length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise OSError("image file is truncated")
    return data
