"""Turns pictures upright by the orientation in their EXIF. One in XMP is ignored. Browsers do the same."""

from __future__ import annotations

import contextlib

from PIL import Image, ImageFile

_ORIENTATION = 0x0112  # EXIF tag
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
    """Removes the XMP of an opened file, whose orientation Pillow takes where EXIF has none; call it before loading."""
    for key in _XMP:
        image.info.pop(key, None)


def orientation(image: Image.Image) -> int:
    """Returns the orientation of a loaded image, 1 to 8.

    It is 1 where the decoder has turned the picture already: TIFF, HEIC, and JPEG XL that was not made from a JPEG.
    Pillow writes the rotation of an AVIF file (irot, imir) into the EXIF that it returns.
    """
    if image.format == "TIFF" or (image.format == "JXL" and not getattr(image, "jpeg", False)):
        return 1
    found = 1
    with contextlib.suppress(Exception):  # damaged EXIF says nothing about the pixels
        block = image.info.get("exif")
        if block is None and "Raw profile type exif" in image.info:  # by ImageMagick, in PNG
            block = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
        if block is not None:
            exif = Image.Exif()
            exif.load(block)
            found = exif.get(_ORIENTATION, 1)
        elif not isinstance(image, ImageFile.ImageFile) and not any(key in image.info for key in _XMP):
            found = image.getexif().get(_ORIENTATION, 1)  # a caller's image, which may have EXIF of its own
    return found if found in _TURNS else 1


def turn(image: Image.Image, number: int) -> Image.Image:
    """Turns an image of the given orientation upright."""
    return image.transpose(_TURNS[number]) if number in _TURNS else image


def swaps_sides(number: int) -> bool:
    """Returns True if width and height of an upright image are the height and width of the stored one."""
    return number >= 5
