"""Reads TIFF files that Pillow decodes wrongly, or not at all."""

from __future__ import annotations

import contextlib
import io
import struct
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, TiffImagePlugin

from simsearch.errors import ImageError
from simsearch.images.decoding.messages import missing_extra
from simsearch.images.decoding.modes import eight_bits, largest_finite
from simsearch.images.decoding.orientation import turn

if TYPE_CHECKING:
    from numpy.typing import NDArray

_COMPRESSION, _PHOTOMETRIC, _BITS, _SAMPLES, _PLANAR = 259, 262, 258, 277, 284
_COLOURS, _SUBSAMPLING, _EXTRA, _FORMAT, _PAGES = 320, 530, 338, 339, 254
_DNG, _SUBFILES, _MAKE, _WIDTH, _HEIGHT, _ORIENTATION = 50706, 330, 271, 256, 257, 274
_PROFILE = 34675
_WHITE_IS_ZERO, _RGB = 0, 2
_JPEG = 7
_NATIVE = {"F;32BF": "F;32NF", "I;32BS": "I;32NS", "I;16BS": "I;16NS"}
"""Maps raw modes to the right ones: libtiff's values have the machine's byte order, but Pillow expects big-endian."""

LARGEST_MEMORY = 1 << 29
"""Limit of the memory (bytes) for reading a file with tifffile; files that need more are not read."""

LARGEST_VALUES = 3 << 16
"""The most values that a tag may have, because Pillow keeps an object for each value.

The palette of a 16-bit picture has exactly this number of values.
"""

_BYTES = frozenset({1, 2, 7})
"""Types of tags whose values Pillow keeps as bytes, without an object for each value."""

_SAMPLE_NAMES = {1: "integers", 2: "signed integers", 3: "floats"}


class _ThroughLibtiff(TiffImagePlugin.TiffImageFile):
    """An uncompressed TIFF that Pillow decodes with libtiff, not with its own decoder of raw data."""

    @property
    def _compression(self) -> str:
        return "libtiff"

    @_compression.setter
    def _compression(self, value: str) -> None:
        pass


def corrected(image: Image.Image, file: IO[bytes]) -> Image.Image:
    """Returns the image to decode: usually `image`, or `file` opened in another way if Pillow would decode it wrongly.

    image: a file that Pillow has opened but not yet loaded. Images of other formats than TIFF are returned unchanged.
    file: the same file. After loading the result, call `finished`.
    Raises ImageError for a file that cannot be decoded correctly.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or not image.tile:
        return image
    tags: Any = image.tag_v2
    tile: Any = image.tile[0]
    planes = tags.get(_PLANAR, 1) == 2 and tags.get(_SAMPLES, 1) > 1
    if planes and (image.mode not in {"RGB", "RGBA", "CMYK"} or tuple(tags.get(_EXTRA, ()))[:1] == (1,)):
        return opened_otherwise(file)
    subsampled = image.mode == "YCbCr" and tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1)
    if tile.codec_name == "raw" and (subsampled or (planes and max(tags.get(_BITS, (1,))) > 8)):
        file.seek(0)
        image = _ThroughLibtiff(file)
    image.tile = [_native(tile) for tile in image.tile]
    return image


def finished(image: Image.Image, tile: Any) -> Image.Image:
    """Returns a loaded TIFF with its grey levels and colours corrected by its tags.

    tile: the first item of `image.tile`, the list by which Pillow decodes an image. It must be taken before the image
    is loaded. None if the list was empty.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return image
    tags: Any = image.tag_v2
    raw_mode = "" if tile is None else tile.args[0] if isinstance(tile.args, tuple) else str(tile.args)
    bits, signed = max(tags.get(_BITS, (1,))), tags.get(_FORMAT, (1,))[0] == 2
    if image.mode == "P" and max(tags.get(_COLOURS, (256,))) < 256:  # 8-bit colours in place of 16-bit colours
        image.putpalette(np.array(tags[_COLOURS], np.uint8).reshape(3, -1).T.tobytes())
    if raw_mode == "I;12":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) << 4)
    elif image.mode == "I" and signed and bits == 16:
        image = Image.fromarray(np.asarray(image).clip(0, 32767).astype(np.uint16) << 1)
    elif image.mode == "L" and signed:
        values = np.asarray(image).view(np.int8).clip(0)
        image = Image.fromarray((values.astype(np.uint16) * 255 // 127).astype(np.uint8))
    elif image.mode == "I" and bits == 32:
        whole = np.asarray(image).clip(0) if signed else np.asarray(image).view(np.uint32)
        if whole.max(initial=0) >= 1 << 24:  # all 32 bits are used; `modes` scales smaller values
            image = Image.fromarray((whole >> (15 if signed else 16)).astype(np.uint16))
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO and (bits > 8 or tags.get(_COMPRESSION) == _JPEG):
        values = np.asarray(image)  # Pillow itself inverts up to 8 bits, except in a JPEG
        image = Image.fromarray(~values if values.dtype.kind == "u" else 255 - eight_bits(values))
    return image


def check_parts(file: IO[bytes]) -> None:
    """Raises ImageError if a tag has more than `LARGEST_VALUES` values; tags of bytes may have more.

    This protects against files of very many strips, whose offsets are the values of a tag: Pillow would need minutes
    and gigabytes to open such a file.
    """
    file.seek(0)
    head = file.read(16)
    order, big = "<" if head[:2] == b"II" else ">", head[2:4] in {b"+\0", b"\0+"}
    most = 0
    with contextlib.suppress(struct.error, OSError, ValueError, OverflowError):  # a damaged file: Pillow will report it
        (start,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
        file.seek(start)
        (count,) = struct.unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))
        size = 20 if big else 12
        entries = file.read(min(count, 1 << 16) * size)
        for place in range(0, len(entries) - size + 1, size):
            _, kind, values = struct.unpack_from(order + ("HHQ" if big else "HHI"), entries, place)
            most = max(most, 0 if kind in _BYTES else values)
    if most > LARGEST_VALUES:
        raise ImageError("the file consists of too many parts")
    file.seek(0)


def is_camera_raw(file: IO[bytes]) -> bool:
    """Returns True for a camera's raw file: a TIFF that begins with a small preview of the picture, or a DNG."""
    with contextlib.suppress(Exception):
        tags = _tags(file)
        return _DNG in tags or bool(tags.get(_PAGES, 0) & 1 and _SUBFILES in tags and _MAKE in tags)
    return False


def opened_otherwise(file: IO[bytes]) -> Image.Image:
    """Decodes, with tifffile (extra `[tiff]`), a TIFF of a kind that Pillow cannot decode.

    Raises ImageError if tifffile cannot decode it either; the message tells how the file stores its pixels (see
    `_described`).
    """
    try:
        tags = _tags(file)
        what = _described(tags)
    except Exception as error:
        raise ImageError("the file is damaged: it begins like TIFF, but its header cannot be read") from error
    if memory(file) > LARGEST_MEMORY:
        raise ImageError(f"{what}, which needs over {LARGEST_MEMORY >> 20} MiB of memory to decode")
    try:
        import tifffile
    except ImportError:
        raise missing_extra(what, "tiff") from None
    file.seek(0)
    try:
        with tifffile.TiffFile(io.BytesIO(file.read())) as opened:
            page: Any = opened.pages[0]
            values, photometric, axes = page.asarray(), int(page.photometric), page.axes
        image = _image_of(values, photometric, axes, tags.get(_EXTRA, (0,))[0])
    except Exception as error:
        raise ImageError(f"{what}, which cannot be decoded") from error
    image.format = "TIFF"
    image.info["icc_profile"] = tags.get(_PROFILE)
    return turn(image, tags.get(_ORIENTATION, 1))


def _image_of(values: NDArray[Any], photometric: int, axes: str, extra: int) -> Image.Image:
    """Converts the array of a TIFF to an image.

    photometric: the tag PhotometricInterpretation.
    axes: "YX", "YXS" or "SYX" (Y: rows, X: columns, S: samples of a pixel).
    extra: the tag ExtraSamples, which tells what the channel after grey or RGB is: 1 is alpha by which the colours are
    already multiplied, 2 is other alpha.
    Raises ValueError for other axes, and for other colour spaces than grey and RGB.
    """
    if photometric not in {_WHITE_IS_ZERO, 1, _RGB} or axes not in {"YX", "YXS", "SYX"}:
        raise ValueError(f"a TIFF of photometric {photometric} and axes {axes} is not supported")
    levels = _levels(values.transpose(1, 2, 0) if axes == "SYX" else values)
    levels = levels[..., None] if levels.ndim == 2 else levels
    count = 3 if photometric == _RGB else 1
    colours, alpha = levels[..., :count], levels[..., count : count + 1]
    if photometric == _WHITE_IS_ZERO:
        colours = 255 - colours
    if alpha.size and extra == 1:  # the colours are already multiplied by alpha
        colours = colours + np.minimum(255 - alpha, 255 - colours)
    elif alpha.size and extra == 2:
        colours = np.concatenate([colours, alpha], 2)
    return Image.fromarray(np.ascontiguousarray(colours[..., 0] if colours.shape[2] == 1 else colours))


def memory(file: IO[bytes]) -> int:
    """Estimates the memory (bytes) that `opened_otherwise` needs; 0 if the header cannot be read."""
    with contextlib.suppress(Exception):
        tags = _tags(file)
        width, height, samples = (int(tags.get(tag, 1)) for tag in (_WIDTH, _HEIGHT, _SAMPLES))
        return width * height * samples * (int(max(tags.get(_BITS, (1,)))) // 8 + 2)
    return 0


def _levels(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scales values of any type to 0..255: integers by the range of their type, floats as `eight_bits` does."""
    if values.dtype.kind not in "uifb" or not values.size:
        raise ValueError(f"not a picture: the values have the type {values.dtype} and the shape {values.shape}")
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    levels = np.empty(values.shape, np.uint8)
    top = max(map(largest_finite, values), default=0.0)
    for level, row in zip(levels, values, strict=True):  # row by row, to save memory
        if values.dtype.kind == "f":
            level[...] = eight_bits(row, top)
        else:
            level[...] = np.clip(row.astype(np.float64) * (255 / np.iinfo(values.dtype).max), 0, 255)
    return levels


def _native(tile: Any) -> Any:
    """Returns a tile that Pillow decodes correctly: if libtiff decodes the tile, `_NATIVE` corrects its raw mode.

    tile: an item of `image.tile`, the list by which Pillow decodes an image.
    """
    if tile.codec_name == "libtiff" and tile.args[0] in _NATIVE:
        return tile._replace(args=(_NATIVE[tile.args[0]], *tile.args[1:]))
    return tile


def _tags(file: IO[bytes]) -> Any:
    """Reads the tags of the first image in a TIFF."""
    file.seek(0)
    head = file.read(16)
    directory: Any = TiffImagePlugin.ImageFileDirectory_v2(head[:16] if head[2:4] == b"+\0" else head[:8])
    if head[:4] == b"MM\0+":  # Pillow recognises only little-endian BigTIFF
        directory._bigtiff = True
        directory.next = int.from_bytes(head[8:], "big")
    file.seek(directory.next)
    directory.load(file)
    return directory


def _described(tags: Any) -> str:
    """Describes how a TIFF stores its pixels: "a TIFF of 3 x 32-bit floats"."""
    bits, kind = tags.get(_BITS, (1,)), tags.get(_FORMAT, (1,))[0]
    samples = tags.get(_SAMPLES, len(bits))
    count = f"{samples} x " if samples > 1 else ""
    return f"a TIFF of {count}{max(bits)}-bit {_SAMPLE_NAMES.get(kind, 'values of another kind')}"
