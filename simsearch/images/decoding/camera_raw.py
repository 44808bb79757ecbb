"""Reads cameras' raw files with rawpy (extra `[raw]`): a large JPEG preview or, without one, the developed image."""

from __future__ import annotations

import io
from typing import IO, Any

from PIL import Image

from simsearch.errors import ImageError
from simsearch.images.decoding.messages import missing_extra

LARGE_PIXELS = 1 << 23
"""Images with more pixels are developed at half their width and height: four cells of the sensor make one pixel."""

BYTES_PER_PIXEL = 16
"""Memory (bytes) that developing takes for each pixel of the sensor."""

_ORIENTATION = 0x0112  # EXIF tag
_ORIENTATIONS = {3: 3, 5: 8, 6: 6}
"""Maps LibRaw's numbers for turned pictures (`sizes.flip`) to the EXIF orientations that mean the same."""


def opened(file: IO[bytes], name: str, largest: int) -> Image.Image:
    """Returns the JPEG preview of a raw file or, if there is none or it is small, the developed image.

    A preview is small if its longer side has less than half the pixels of the raw image's longer side.
    name: the format, for messages. largest: raw images with more pixels are not developed. Raises ImageError.
    """
    raw_py = _library(name)
    file.seek(0)
    try:
        with raw_py.imread(io.BytesIO(file.read())) as raw:
            width, height = raw.sizes.width, raw.sizes.height
            preview = _preview(raw, raw_py)
            if preview is not None and 2 * max(preview.size) >= max(width, height):
                return preview
            if width * height > largest:
                raise ImageError(f"too large: {width}x{height} is over {largest:,} pixels")
            half = width * height > LARGE_PIXELS
            return Image.fromarray(raw.postprocess(use_camera_wb=True, half_size=half, output_bps=8))
    except raw_py.LibRawError as error:
        raise ImageError(f"a camera's raw file ({name}) that is damaged or of an unknown kind") from error


def memory(file: IO[bytes]) -> int:
    """Estimates the memory (bytes) that `opened` needs; 0 if rawpy is missing or cannot read the file."""
    try:
        file.seek(0)
        data = file.read()
        with _library("").imread(io.BytesIO(data)) as raw:
            return 2 * len(data) + BYTES_PER_PIXEL * int(raw.sizes.raw_width * raw.sizes.raw_height)
    except Exception:
        return 0


def _preview(raw: Any, raw_py: Any) -> Image.Image | None:
    """Returns the JPEG preview of a raw file; None if there is no JPEG preview.

    The preview is not turned upright. If it has no EXIF, it gets an EXIF with the orientation from the raw file.
    """
    try:
        thumbnail = raw.extract_thumb()
        if thumbnail.format != raw_py.ThumbFormat.JPEG:
            return None
        image = Image.open(io.BytesIO(thumbnail.data), formats=["JPEG"])
    except Exception:  # no preview, or a damaged one
        return None
    if "exif" not in image.info and raw.sizes.flip in _ORIENTATIONS:
        block = Image.Exif()
        block[_ORIENTATION] = _ORIENTATIONS[raw.sizes.flip]
        image.info["exif"] = block.tobytes()
    return image


def _library(name: str) -> Any:
    try:
        import rawpy
    except ImportError:
        raise missing_extra(f"a camera's raw file ({name})", "raw") from None
    return rawpy
