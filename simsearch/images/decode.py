"""Decodes image files into upright RGB images in sRGB. A file's format is found by its content, never by its name.

Other packages import this module; its parts are in `simsearch.images.decoding`. A large image is scaled down if the
caller needs fewer pixels. This is done in bands of rows, so that memory never holds a second full-size copy.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from simsearch.common.lazy import LazyModule
from simsearch.errors import ImageError, UsageError
from simsearch.images.boxes import FORM, Box, PixelBox, in_pixels
from simsearch.images.decoding import camera_raw, formats, jxl, opening, psd
from simsearch.images.decoding.formats import EXTENSIONS, left_out, looks_like_image
from simsearch.images.decoding.limits import counted, file_in_memory
from simsearch.images.decoding.messages import names_extra, readable
from simsearch.images.decoding.modes import to_rgb
from simsearch.images.decoding.orientation import orientation, swaps_sides, turn
from simsearch.images.decoding.scaled import draft, scaled_rgb

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.images.decoding import tiff
else:
    tiff = LazyModule("simsearch.images.decoding.tiff")

__all__ = [
    "EXTENSIONS",
    "LARGEST_BYTES",
    "LARGEST_PIXELS",
    "LARGE_BYTES",
    "DecodedImage",
    "crop",
    "decode_image",
    "decode_memory",
    "from_array",
    "from_pil",
    "left_out",
    "looks_like_image",
    "names_extra",
]

LARGEST_PIXELS = 178_956_970
"""Images with more pixels are refused as decompression bombs. Pillow warns from half this number on."""

LARGEST_BYTES = 1 << 30
"""Files of more bytes are not read."""

LARGE_BYTES = 32 << 20
"""Files of more bytes are decoded from disk, not from memory."""

_CANVASES = {"WEBP": 4, "AVIF": 3, "HEIF": 3, "JPEG2000": 3}
"""Number of full-size copies that the decoder of a format holds in memory. All other decoders hold one copy."""


class DecodedImage(NamedTuple):
    """An upright RGB image, and the width and height of the upright original, which may be larger than the image."""

    image: Image.Image
    width: int
    height: int


def decode_image(
    data: bytes | IO[bytes], shorter_side: int | None = None, largest: int = LARGEST_PIXELS
) -> DecodedImage:
    """Decodes the first frame of an image file, given as bytes or as an open file, into upright RGB.

    shorter_side: the pixels that the caller needs along the image's shorter side; None for the full size. A JPEG is
    decoded at 1/2, 1/4 or 1/8 of its size if at least `scaled.SPARE` times the needed pixels are left along this side.
    An image of more than `scaled.LARGE_PIXELS` pixels is scaled to 1/2, 1/3, 1/4, … if at least twice the needed
    pixels are left. A panorama of that size whose shorter side is too short for this is cut to its middle.
    largest: the most pixels that the original may have.
    Raises ImageError, with a reason that can be shown in a list of failures.
    """
    file, head = opened_file(data)
    with readable(head, largest), opening.open_image(file, head, largest) as image:
        width, height = image.size
        return _upright(opening.load(image, file, shorter_side), width, height, shorter_side)


def decode_memory(data: bytes | IO[bytes], shorter_side: int | None = None) -> int:
    """Estimates the memory (bytes) that `decode_image` needs, without decoding the image.

    shorter_side: as for `decode_image`. Returns 0 if the header cannot be read.
    """
    try:
        file, head = opened_file(data)
    except ImageError:
        return 0
    try:
        if not head.startswith(formats.JPEG):
            if formats.camera_raw(head) is not None or (formats.is_tiff(head) and tiff.is_camera_raw(file)):
                return camera_raw.memory(file)
            if formats.is_jxl(head):
                width, height = jxl.size(file)
                return 3 * 4 * width * height
            if head.startswith(psd.SIGNATURE):
                return psd.memory(file)
            file.seek(0)
        try:
            image = Image.open(file)
        except Exception:
            return tiff.memory(file) if formats.is_tiff(head) else 0
        with image:
            width, height = image.size
            draft(image, shorter_side)
            bands = 1 if image.mode in {"1", "L", "P"} else 2 if image.mode.startswith("I;16") else 4
            needed = image.width * image.height * bands * _CANVASES.get(image.format or "", 1)
            if image.info.get("progressive"):  # JPEG: the coefficients of the whole picture, 16 bits each
                needed += 2 * _samples(image, width * height)
            return needed
    except Exception:
        return 0
    finally:
        file.seek(0)


def from_array(array: NDArray[np.uint8]) -> Image.Image:
    """Converts an (H, W), (H, W, 3) or (H, W, 4) uint8 array to RGB. Raises ImageError for another shape or dtype."""
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in {3, 4})):
        raise ImageError(f"an image array is (H, W), (H, W, 3) or (H, W, 4) uint8, not {array.shape} {array.dtype}")
    if 0 in array.shape:
        raise ImageError(f"an image array of shape {array.shape} holds no pixels")
    return to_rgb(Image.fromarray(array))


def crop(image: Image.Image, box: Box) -> Image.Image:
    """Cuts the box (x, y, width, height) out of an upright image. Raises the errors of `check_box`."""
    x, y, width, height = check_box(box, image.size)
    return image.crop((x, y, x + width, y + height))


def check_box(box: Box, size: tuple[int, int]) -> PixelBox:
    """Checks a box (x, y, width, height), and returns it in pixels.

    size: width and height of the image.
    Raises UsageError if the value is not a box, ImageError if the box is empty or does not lie within the image.
    """
    try:
        x, y, width, height = in_pixels(box, size)
    except (TypeError, ValueError):
        raise UsageError(f"a crop is {FORM}; {box!r} is not valid") from None
    given = ",".join(map(str, box))
    if width <= 0 or height <= 0:
        raise ImageError(f"crop {given} has no area", hint="give a width and a height of at least one pixel")
    if x < 0 or y < 0 or x + width > size[0] or y + height > size[1]:
        shown = f"{size[0]}x{size[1]}"
        raise ImageError(f"crop {given} does not lie within the {shown} image")
    return x, y, width, height


def from_pil(image: Image.Image) -> Image.Image:
    """Returns a caller's PIL image as upright RGB. Raises ImageError."""
    try:
        image.load()
        if 0 in image.size:
            raise ImageError("the PIL image holds no pixels")
        return _upright(image, *image.size, None).image
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"the PIL image cannot be used: {error}") from error


def opened_file(data: bytes | IO[bytes]) -> tuple[IO[bytes], bytes]:
    """Returns image data as an open file at its start, and the first `opening.HEAD` bytes.

    Raises ImageError for a TIFF with too many values in one tag (see `tiff.check_parts`).
    """
    file = file_in_memory(data) if isinstance(data, bytes) else counted(data)
    head = file.read(opening.HEAD)
    if formats.is_tiff(head):
        tiff.check_parts(file)
    file.seek(0)
    return file, head


def _samples(image: Image.Image, pixels: int) -> int:
    """Returns the number of luma and chroma values that a JPEG stores for `pixels` pixels.

    image: the opened JPEG, which tells the chroma subsampling.
    """
    sampling: list[tuple[int, int]] = [(across, down) for _, across, down, *_ in getattr(image, "layer", [])]
    if not sampling:
        return 3 * pixels
    most = max(across for across, _ in sampling) * max(down for _, down in sampling)
    return pixels * sum(across * down for across, down in sampling) // most


def _upright(image: Image.Image, width: int, height: int, shorter_side: int | None) -> DecodedImage:
    """Converts a loaded image to upright RGB. width, height: the original's size before it is turned upright."""
    rgb = scaled_rgb(image, shorter_side)
    number = orientation(image)
    if number > 1:
        if swaps_sides(number):
            width, height = height, width
        return DecodedImage(turn(rgb, number), width, height)
    # A decoded JPEG no longer needs its file; images of other formats may.
    return DecodedImage(rgb.copy() if rgb is image and image.format != "JPEG" else rgb, width, height)
