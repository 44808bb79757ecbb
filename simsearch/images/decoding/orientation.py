"""Turns pictures upright by the orientation in EXIF, and ignores an orientation in XMP, as browsers do."""

from __future__ import annotations

import contextlib
from typing import Literal

from PIL import Image, ImageFile

_ORIENTATION, _SHORT = 0x0112, 3  # EXIF's tag, and the type of its value
_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_XMP = ("xmp", "XML:com.adobe.xmp")


def ignore_xmp(image: Image.Image) -> None:
    """Removes the XMP of an opened image, so that Pillow takes no orientation from it; call it before loading."""
    for key in _XMP:
        image.info.pop(key, None)


def orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation of a loaded image: 1 (upright) to 8.

    Returns 1 if the decoder has already turned the picture, as it does for TIFF, HEIC, and JPEG XL that was not made
    from a JPEG. For an AVIF file, Pillow puts the rotation (irot, imir) into the EXIF.
    """
    if image.format == "TIFF" or (image.format == "JXL" and not getattr(image, "jpeg", False)):
        return 1
    found = 1
    with contextlib.suppress(Exception):  # damaged EXIF says nothing about the pixels
        block = image.info.get("exif")
        if block is None and "Raw profile type exif" in image.info:  # as ImageMagick writes it in PNG
            block = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
        if block is not None and (found := _orientation_in(block)) < 0:
            exif = Image.Exif()
            exif.load(block)
            found = exif.get(_ORIENTATION, 1)
        elif (
            block is None and not isinstance(image, ImageFile.ImageFile) and not any(key in image.info for key in _XMP)
        ):
            found = image.getexif().get(_ORIENTATION, 1)  # a caller's image, which may have EXIF of its own
    return found if found in _TURNS else 1


def _orientation_in(exif: bytes) -> int:
    """Returns the orientation in an EXIF block; 1 if the block has none, -1 if this function cannot read the block.

    Pillow can read blocks that this function cannot, but it always reads every entry. This takes a twentieth of the
    time that decoding a small JPEG takes. So Pillow is only used if this function returns -1.
    """
    data = exif.removeprefix(b"Exif\0\0")
    order = _ORDERS.get(data[:4])
    if order is None:
        return -1

    def number(start: int, length: int = 2) -> int:
        return int.from_bytes(data[start : start + length], order)

    first = number(4, 4)
    count = number(first)
    if len(data) < first + 2 + 12 * count:
        return -1
    for entry in range(first + 2, first + 2 + 12 * count, 12):
        if number(entry) == _ORIENTATION:
            return number(entry + 8) if (number(entry + 2), number(entry + 4, 4)) == (_SHORT, 1) else -1
    return 1


def turn(image: Image.Image, number: int) -> Image.Image:
    """Turns an image upright. number: its EXIF orientation."""
    return image.transpose(_TURNS[number]) if number in _TURNS else image


def swaps_sides(number: int) -> bool:
    """Returns True if turning an image of this EXIF orientation upright exchanges its width and height."""
    return number >= 5
