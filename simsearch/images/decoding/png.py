"""Repairs PNG files that Pillow refuses, or shows differently from browsers."""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from simsearch.images.decoding.spliced import Part, spliced

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_COLOURS = frozenset({b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP"})

_NEEDED = frozenset({b"PLTE", b"tRNS", b"eXIf"}) | _COLOURS
"""The chunks, apart from the pixels, that affect how a picture looks."""

_ANIMATION = frozenset({b"acTL", b"fcTL", b"fdAT"})

_SMALL = 4 << 20
"""Chunks of `_NEEDED` with more bytes are left out."""


class Chunk(NamedTuple):
    """A chunk of a PNG file: its name, and the offset and length of its data in bytes."""

    name: bytes
    start: int
    length: int


def chunks(file: IO[bytes]) -> Iterator[Chunk]:
    """Yields the chunks of a PNG file up to the end, or to the place where the file is truncated or damaged."""
    start = len(SIGNATURE)
    while True:
        file.seek(start)
        head = file.read(8)
        if len(head) < 8 or not head[4:].isalpha():
            return
        length, name = struct.unpack(">I4s", head)
        yield Chunk(name, start + 8, length)
        if name == b"IEND":
            return
        start += 12 + length


def repairs(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Yields versions of a PNG file that lack some optional chunks. Use the first version that can be decoded.

    All versions lack texts, which may be longer than Pillow accepts, and optional chunks with a wrong checksum. Some
    also lack the colour profile and EXIF, which may be empty or cut off. Some lack the chunks of an animation, which
    may be damaged.
    """
    fewer = _NEEDED - _COLOURS - {b"eXIf"}
    for wanted in (_NEEDED | _ANIMATION, fewer | _ANIMATION, _NEEDED, fewer):
        yield _with_chunks(file, wanted)


def _with_chunks(file: IO[bytes], wanted: frozenset[bytes]) -> IO[bytes]:
    """Returns the file with the chunks that every PNG needs, and with those optional chunks that are wanted.

    wanted: the names of the optional chunks to keep. Of these, chunks that are larger than `_SMALL` or have a wrong
    checksum are left out too. But an animation's chunks are kept unchecked, and a palette's checksum is ignored.
    """
    parts: list[Part] = [SIGNATURE]
    for chunk in chunks(file):
        end = chunk.start + chunk.length + 4
        if (chunk.name[:1].isupper() and chunk.name != b"PLTE") or chunk.name in wanted & _ANIMATION:
            parts.append((chunk.start - 8, end))
        elif chunk.name in wanted and chunk.length <= _SMALL:
            file.seek(chunk.start)
            data, checksum = file.read(chunk.length), file.read(4)
            if chunk.name == b"iCCP" and _unpacks_too_large(data):
                continue
            if chunk.name == b"PLTE" or checksum == struct.pack(">I", zlib.crc32(chunk.name + data)):
                parts.append((chunk.start - 8, end))
    return spliced(file, parts)


def first_frame(file: IO[bytes]) -> tuple[IO[bytes], tuple[int, int], tuple[int, int]] | None:
    """Returns the first frame of an animated PNG whose default image is not a frame; None for all other files.

    The default image is the picture that Pillow decodes, and that programs without animations show. If it is not a
    frame, browsers show the first frame in its place. Returns None for a damaged animation too, because browsers then
    show the default image.
    Returns three values: the frame as a PNG file, its place (left, top) on the animation's canvas, and the canvas's
    size (width, height).
    """
    parts: list[Part] = [SIGNATURE]
    control: tuple[int, ...] | None = None
    size, header, animated, default = (0, 0), b"", False, False
    for chunk in chunks(file):
        if chunk.name in {b"IHDR", b"acTL", b"fcTL"}:
            file.seek(chunk.start)
            data = file.read(min(chunk.length, 26))
            if chunk.name == b"IHDR" and chunk.length == 13:
                header, size = data, (int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big"))
            elif chunk.name == b"acTL" and not default:
                animated = len(data) >= 8 and data[:4] != bytes(4)
            elif chunk.name == b"fcTL":
                if not default or control is not None or len(data) < 26:
                    break
                control = struct.unpack(">4I", data[4:20])
                parts[1:1] = [_chunk(b"IHDR", data[4:12] + header[8:])]
        elif chunk.name in _NEEDED and not default:
            parts.append((chunk.start - 8, chunk.start + chunk.length + 4))
        elif chunk.name == b"IDAT":
            if not animated:
                return None
            default = True
        elif chunk.name == b"fdAT" and control is not None and chunk.length > 4:
            parts += [struct.pack(">I4s", chunk.length - 4, b"IDAT"), (chunk.start + 4, chunk.start + chunk.length + 4)]
    if control is None or not header or isinstance(parts[-1], bytes):
        return None
    width, height, left, top = control
    if not width or not height or left + width > size[0] or top + height > size[1]:
        return None
    return spliced(file, [*parts, _chunk(b"IEND", b"")]), (left, top), size


def on_canvas(image: Image.Image, place: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """Returns a decoded frame on the transparent canvas of its animation.

    place: the frame's left and top edge. size: the canvas's width and height.
    """
    if image.size == size:
        return image
    canvas = Image.new("RGBA", size)
    canvas.paste(image.convert("RGBA"), place)
    canvas.info = {key: value for key, value in image.info.items() if key in {"exif", "icc_profile"}}
    return canvas


def fix_transparency(image: Image.Image) -> None:
    """Corrects the transparent grey level of a 2-bit or 4-bit PNG: scales it to 8 bits, as Pillow scales the pixels.

    Call it before the picture is loaded.
    """
    value, raw = image.info.get("transparency"), _raw_mode(image)
    if isinstance(value, int) and raw in {"L;2", "L;4"}:
        factor = 85 if raw == "L;2" else 17
        if value * factor > 255:
            del image.info["transparency"]
        else:
            image.info["transparency"] = value * factor


def deep_transparency(image: Image.Image) -> bool:
    """Returns True if a PNG with 16 bits per channel declares an RGB colour transparent.

    Pillow decodes only the upper byte of each value, which is not enough to recognise the colour.
    """
    return isinstance(image.info.get("transparency"), tuple) and _raw_mode(image) == "RGB;16B"


def with_deep_transparency(image: Image.Image, low: Image.Image) -> Image.Image:
    """Adds an alpha channel to `image`, a 16-bit picture: 0 for the transparent colour. Returns `image`.

    image, low: the picture, decoded to the upper and to the lower bytes of its values.
    """
    colour = np.array(image.info.pop("transparency"), np.uint16)
    same = (np.asarray(image) == colour >> 8) & (np.asarray(low) == colour & 255)  # (H, W, 3)
    image.putalpha(Image.fromarray(np.where(same.all(2), 0, 255).astype(np.uint8)))
    return image


def swap_halves(image: Image.Image) -> None:
    """Makes Pillow decode a 16-bit picture to the lower bytes of its values. Call it before the picture is loaded."""
    image.info.pop("transparency", None)
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]  # type: ignore[attr-defined]


def _raw_mode(image: Image.Image) -> object:
    tiles = getattr(image, "tile", ())
    return tiles[0].args if tiles else None


def _unpacks_too_large(profile: bytes) -> bool:
    """Returns True if a compressed colour profile is larger, once decompressed, than Pillow accepts."""
    with contextlib.suppress(zlib.error):
        unpacking = zlib.decompressobj()
        unpacking.decompress(profile[profile.find(b"\0") + 2 :], PngImagePlugin.MAX_TEXT_CHUNK)
        return bool(unpacking.unconsumed_tail)
    return False


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
