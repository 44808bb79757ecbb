"""Bytes into upright RGB pictures. Content decides what a file is, never its name.

This is the one place where Pillow's many exceptions become ImageError. A picture of the largest size permitted takes
four bytes a pixel while it is decoded, and is scaled down from there band by band: no second copy is ever made.
"""

from __future__ import annotations

import contextlib
import io
import math
import operator
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from simsearch.errors import ImageError, ImageTooLargeError, MissingExtraError

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXTENSIONS = frozenset(
    "." + name
    for names in (
        "apng avif avifs bmp cr2 dib gif heic heif icns ico j2k jfif jp2 jpe jpeg jpf jpg jpx mpo",
        "pbm pcx pgm png pnm ppm psd qoi tga tif tiff webp xbm xpm",
    )
    for name in names.split()
)
"""A file with one of these names is taken for an image, and reported if it is none."""

LARGEST_PIXELS = 178_956_970
"""Pictures of more pixels are refused as decompression bombs: twice Pillow's own warning level."""

LARGEST_SIDE = 1 << 23
"""Pictures wider or higher than so many pixels are refused too: decoders keep whole rows, and a pointer for each."""

LARGEST_BYTES = 1 << 30
"""Files of more bytes are not read."""

LARGE_PIXELS = 1 << 24
"""Pictures of more pixels are scaled down while they are converted to RGB, where fewer are needed."""

MIDDLE = 8
"""Of a panorama of more than `LARGE_PIXELS`, so many times its height are kept where few pixels are needed."""

LARGE_BYTES = 32 << 20
"""Files of more bytes are better decoded from where they are than from memory."""

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
_CANVASES = {"WEBP": 4, "AVIF": 3, "HEIF": 3, "JPEG2000": 3}
"""How many copies of the picture the decoders of some formats keep besides."""

_SIGNATURES = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"BM",
    b"II*\x00",  # TIFF, little-endian
    b"MM\x00*",  # TIFF, big-endian
    b"II+\x00",  # BigTIFF
    b"MM\x00+",
    b"\x00\x00\x00\x0cjP  ",  # JPEG 2000
    b"\xff\x4f\xff\x51",
    b"8BPS",  # Photoshop
    b"qoif",
)
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heif", b"hevc", b"mif1", b"msf1")


class DecodedImage(NamedTuple):
    """An upright RGB image, and the width and height of the original (the image may be decoded at a smaller scale)."""

    image: Image.Image
    width: int
    height: int


def looks_like_image(head: bytes) -> bool:
    """Whether a file that begins with `head` (32 bytes suffice) is an image of a known format."""
    if head.startswith(b"BM"):
        return (
            len(head) >= 18
            and head[6:10] == b"\0\0\0\0"
            and head[14:18] in {b"\x28\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0"}
        )
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return True
    if head[4:8] == b"ftyp":
        return head[8:12] in _BRANDS
    return head.startswith(_SIGNATURES)


def decode_image(
    data: bytes | IO[bytes], shorter_side: int | None = None, largest: int = LARGEST_PIXELS
) -> DecodedImage:
    """Decodes the first frame of an image file, given as bytes or opened, into upright RGB.

    shorter_side: the pixels that are needed. A JPEG much larger is decoded at a half, a quarter or an eighth of its
    size, and anything over `LARGE_PIXELS` is scaled down by a whole number, never below twice of what is needed; of a
    panorama of that size, too low to be scaled down, only the middle is kept.
    largest: pixels of the original, beyond which it is refused. Raises ImageError with a reason fit for a list of
    failures.
    """
    with _readable():
        image = _opened(data)
        with image:
            if image.format == "EPS":  # a program, which Pillow would have Ghostscript run
                raise ImageError("not an image, or of an unknown format")
            _check_size(image, largest)
            return _upright(image, shorter_side)


def decode_memory(data: bytes | IO[bytes], shorter_side: int | None = None) -> int:
    """About how many bytes `decode` will take for an image, judged by its header; 0 if that cannot be read."""
    try:
        image = _opened(data)
        with image:
            width, height = image.size
            _draft(image, shorter_side)
            bands = 1 if image.mode in {"1", "L", "P"} else 2 if image.mode.startswith("I;16") else 4
            needed = image.width * image.height * bands * _CANVASES.get(image.format or "", 1)
            if image.info.get("progressive"):  # JPEG: the coefficients of the whole picture, 16 bits each
                needed += 2 * _samples(image, width * height)
            return needed
    except Exception:
        return 0
    finally:
        if not isinstance(data, bytes):
            data.seek(0)


def from_array(array: NDArray[np.uint8]) -> Image.Image:
    """An (H, W, 3) or (H, W) uint8 array as an RGB image. Raises ImageError for another shape or dtype."""
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in {3, 4})):
        raise ImageError(f"an image array is (H, W, 3) uint8, not {array.shape} {array.dtype}")
    if 0 in array.shape:
        raise ImageError(f"an image array of shape {array.shape} holds no pixels")
    return to_rgb(Image.fromarray(array))


def crop(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Cuts out (x, y, width, height) in pixels of the upright image. Raises ImageError if that leaves the image."""
    try:
        x, y, width, height = (operator.index(number) for number in box)
    except (TypeError, ValueError):
        raise ImageError(f"a crop is four whole numbers (x, y, width, height), not {box!r}") from None
    if width <= 0 or height <= 0 or x < 0 or y < 0 or x + width > image.width or y + height > image.height:
        size = f"{image.width}x{image.height}"
        raise ImageError(f"crop {x},{y},{width},{height} does not lie within the {size} image")
    return image.crop((x, y, x + width, y + height))


def to_rgb(image: Image.Image, top: float | None = None) -> Image.Image:
    """Any mode to 8-bit RGB: alpha over white, more than 8 bits scaled down, palettes and CMYK converted.

    top: the largest value of a picture of 32-bit values of which this is a part.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in {"I", "F"}:
        return Image.fromarray(_eight_bits(np.asarray(image), top)).convert("RGB")
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), layers).convert("RGB")
    return image.convert("RGB")


def from_pil(image: Image.Image) -> Image.Image:
    """A caller's PIL image as upright RGB. Raises ImageError."""
    try:
        return _upright(image, None).image
    except Exception as error:
        raise ImageError(f"the PIL image cannot be used: {error}") from error


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Maps what Pillow raises to ImageError."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not an image, or of an unknown format") from error
    except Image.DecompressionBombError as error:
        message = f"too large: over {LARGEST_PIXELS:,} pixels, the limit against decompression bombs"
        raise ImageTooLargeError(message) from error
    except MemoryError as error:
        raise ImageError("too large for the memory at hand") from error
    except Exception as error:  # hostile bytes make Pillow's decoders raise nearly anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ImageError(f"cannot be decoded: {reason}") from error


def _opened(data: bytes | IO[bytes]) -> Image.Image:
    """The image with its header read and nothing decoded."""
    if isinstance(data, bytes):
        head = data[:256]
    else:
        head = data.read(256)
        data.seek(0)
    if not head:
        raise ImageError("empty file")
    if head[4:8] == b"ftyp" and head[8:12] in _BRANDS and not {b"avif", b"avis"} & _brands(head):
        _register_heif()
    return Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)


def _draft(image: Image.Image, shorter_side: int | None) -> None:
    """Has a JPEG that is not yet decoded come out at the least scale that leaves twice the pixels needed."""
    if shorter_side is not None and image.format in {"JPEG", "MPO"}:
        width, height = image.size
        scale = 2 * shorter_side / min(width, height)
        if scale < 1:
            image.draft(None, (math.ceil(width * scale - 1e-6), math.ceil(height * scale - 1e-6)))


def _samples(image: Image.Image, pixels: int) -> int:
    """The samples of all components of a JPEG, the coarser ones counting less."""
    sampling: list[tuple[int, int]] = [(across, down) for _, across, down, *_ in getattr(image, "layer", [])]
    if not sampling:
        return 3 * pixels
    most = max(across for across, _ in sampling) * max(down for _, down in sampling)
    return pixels * sum(across * down for across, down in sampling) // most


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    """A decoded image in RGB at 1/factor of its size (the means of squares), without another copy of the whole."""
    width, height = image.size
    rows = factor * max(1, LARGE_PIXELS // 4 // width // factor)
    result = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    top = _top(image) if image.mode in {"I", "F"} else None
    for start in range(0, height, rows):
        band = to_rgb(image.crop((0, start, width, min(start + rows, height))), top)
        result.paste(band.reduce(factor), (0, start // factor))
    return result


def _middle(image: Image.Image) -> Image.Image:
    """The middle of a decoded panorama in RGB, `MIDDLE` times as long as it is high: no recipe looks beyond.

    As much is cut off at either end, so that it is the middle whichever way the picture is turned.
    """
    width, height = image.size
    across, down = (max(0, side - MIDDLE * min(width, height)) // 2 for side in (width, height))
    if not across and not down:
        return to_rgb(image)
    top = _top(image) if image.mode in {"I", "F"} else None
    return to_rgb(image.crop((across, down, width - across, height - down)), top)


def _upright(image: Image.Image, shorter_side: int | None) -> DecodedImage:
    width, height = image.size
    _draft(image, shorter_side)
    image.load()
    orientation = 1
    with contextlib.suppress(Exception):  # damaged EXIF says nothing about the pixels
        orientation = image.getexif().get(_ORIENTATION, 1)
    large = shorter_side is not None and image.width * image.height > LARGE_PIXELS
    factor = min(image.size) // (2 * shorter_side) if shorter_side is not None else 1
    if large and factor > 1:
        rgb = _reduced(image, factor)
    elif large:
        rgb = _middle(image)
    else:
        rgb = to_rgb(image)
    # Not by ImageOps.exif_transpose: it also writes the EXIF anew, which fails where that is damaged.
    if orientation in _TURNS:
        if orientation >= 5:
            width, height = height, width
        return DecodedImage(rgb.transpose(_TURNS[orientation]), width, height)
    # A decoded JPEG needs its file no more; of others it is not so sure.
    return DecodedImage(rgb.copy() if rgb is image and image.format != "JPEG" else rgb, width, height)


def _eight_bits(values: NDArray[np.generic], top: float | None = None) -> NDArray[np.uint8]:
    """32-bit integers or floats to 0..255: by 255 if they lie in 0..1, by 1 up to 255, else by the range they fill."""
    array = np.nan_to_num(values.astype(np.float64))
    top = float(array.max(initial=0.0)) if top is None else top
    if np.issubdtype(values.dtype, np.floating) and top <= 1:
        array = array * 255
    elif top > 255:
        array = array * (255 / (65535 if top <= 65535 else top))
    return np.clip(array, 0, 255).astype(np.uint8)


def _top(image: Image.Image) -> float:
    """The largest value of a picture of 32-bit values, found row by row."""
    rows = (np.asarray(image.crop((0, row, image.width, row + 1))) for row in range(image.height))
    return max(float(np.nan_to_num(row.astype(np.float64)).max(initial=0.0)) for row in rows)


def _brands(data: bytes) -> set[bytes]:
    """The brands of an ISO media file: AVIF is at times called by the general name mif1, and says more after it."""
    end = min(int.from_bytes(data[:4], "big"), 256)
    return {data[start : start + 4] for start in (8, *range(16, end, 4))}


def _check_size(image: Image.Image, largest: int) -> None:
    """Refuses an image that is not yet decoded, and would take too much memory. Raises ImageTooLargeError."""
    width, height = image.size
    bomb = "the limit against decompression bombs"
    if width * height > largest:
        raise ImageTooLargeError(f"too large: {width}x{height} is over {largest:,} pixels, {bomb}")
    if max(width, height) > LARGEST_SIDE:
        raise ImageTooLargeError(f"too large: {width}x{height} has a side of over {LARGEST_SIDE:,} pixels, {bomb}")


def _register_heif() -> None:
    try:
        import pillow_heif
    except ImportError:
        error = MissingExtraError("HEIC", "heif")
        raise ImageError(f"{error}: {error.hint}", hint=error.hint) from None
    pillow_heif.register_heif_opener()
