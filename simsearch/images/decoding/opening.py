"""Opens and loads image files of all formats, and repairs those that Pillow refuses or shows wrongly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageFile, UnidentifiedImageError

from simsearch.common.lazy import LazyModule
from simsearch.errors import ImageError
from simsearch.images.decoding import (
    camera_raw,
    formats,
    ico,
    jpeg,
    jxl,
    modes,
    padding,
    png,
    png_data,
    profiles,
    psd,
    webp,
)
from simsearch.images.decoding.limits import check_size
from simsearch.images.decoding.messages import missing_extra
from simsearch.images.decoding.orientation import ignore_xmp
from simsearch.images.decoding.scaled import draft

if TYPE_CHECKING:
    from simsearch.images.decoding import tiff
else:  # it imports Pillow's TIFF plugin, which takes milliseconds
    tiff = LazyModule("simsearch.images.decoding.tiff")

HEAD = 256
"""Number of a file's first bytes that are needed to find its format."""


def open_image(file: IO[bytes], head: bytes, largest: int) -> Image.Image:
    """Opens an image and reads its header. Most formats are decoded later, by `load`.

    head: the file's first `HEAD` bytes. largest: the most pixels that the image may have.
    Raises ImageError, or an exception of Pillow.
    """
    if not head:
        raise ImageError("empty file")
    if not head.startswith(formats.JPEG):
        if (name := formats.camera_raw(head)) is not None:
            return _checked(camera_raw.opened(file, name, largest), largest)
        if formats.is_heif(head):
            _register_heif()
        elif formats.is_jxl(head):
            return jxl.opened(file, largest)
        elif head.startswith(psd.SIGNATURE):
            return psd.opened(file, largest)
    image = _opened(file, head, largest)
    if image.format == "EPS":  # a program, and Pillow would let Ghostscript run it
        raise UnidentifiedImageError
    _checked(image, largest)
    if image.format == "TIFF" and head[8:10] != b"CR":  # Canon CR2 begins with a large preview
        if tiff.is_camera_raw(file):
            return _checked(camera_raw.opened(file, "DNG or the like", largest), largest)
        image = tiff.corrected(image, file)
    ignore_xmp(image)
    return image


def load(image: Image.Image, file: IO[bytes], shorter_side: int | None) -> Image.Image:
    """Decodes an opened image. Returns it, or a new image with the same format, EXIF and ICC profile.

    shorter_side: the pixels that the caller needs along the shorter side; a JPEG may be decoded at a smaller scale.
    Raises ImageError, or an exception of Pillow.
    """
    loaded = _load_png(image, file) if image.format == "PNG" else _load(image, file, shorter_side)
    if image.format in profiles.FORMATS and (profile := profiles.found_profile(loaded, file)) is not None:
        loaded.info["icc_profile"] = profile
    return loaded


def _load(image: Image.Image, file: IO[bytes], shorter_side: int | None) -> Image.Image:
    draft(image, shorter_side)
    tiles = getattr(image, "tile", None)
    first: Any = tiles[0] if tiles else None
    if image.format == "TIFF":
        image.load()
        loaded = tiff.finished(image, first)
    elif image.format in {"JPEG", "MPO"}:
        loaded = _load_jpeg(image, file, shorter_side)
    else:
        if image.format in padding.FORMATS and padding.is_padded(file):
            raise OSError("image file is truncated")
        image.load()
        loaded = ico.with_mask(image, file) if image.format == "ICO" else image
        if image.format == "GIF" and first is not None and "transparency" not in image.info:
            loaded = _on_white_canvas(image, first.extents)
        elif image.format == "WEBP" and image.mode == "RGB" and getattr(image, "is_animated", False):
            loaded = _on_white_canvas(image, webp.first_frame(file) or (0, 0, *image.size))
    return _like(image, modes.without_unused_alpha(loaded))


def _checked(image: Image.Image, largest: int) -> Image.Image:
    check_size(image.size, largest)
    return image


def _opened(file: IO[bytes], head: bytes, largest: int) -> Image.Image:
    file.seek(0)
    try:
        return Image.open(file)
    except Image.DecompressionBombError:
        raise
    except Exception as error:
        if head.startswith(png.SIGNATURE):
            for repaired in png.repairs(file):
                with contextlib.suppress(Exception):
                    return Image.open(repaired)
        if isinstance(error, UnidentifiedImageError) and formats.is_tiff(head):
            if tiff.is_camera_raw(file):
                return camera_raw.opened(file, "DNG or the like", largest)
            return tiff.opened_otherwise(file)
        raise


def _load_png(image: Image.Image, file: IO[bytes]) -> Image.Image:
    """Loads a PNG, or the first frame of an animated PNG. Damaged optional chunks are ignored."""
    if getattr(image, "default_image", False):
        with contextlib.suppress(Exception):  # if the animation is damaged, the default image is shown
            if (frame := png.first_frame(file)) is not None:
                part, place, size = frame
                return _like(image, png.on_canvas(_repaired_png(_opened(part, png.SIGNATURE, 0), part), place, size))
    return _repaired_png(image, file)


def _repaired_png(image: Image.Image, file: IO[bytes]) -> Image.Image:
    """Loads a PNG. If this fails, loads it without optional chunks and checksums, which may be damaged."""
    try:
        loaded = _loaded_png(image, file)
    except MemoryError:
        raise
    except Exception:
        for repaired in _png_repairs(file):
            with contextlib.suppress(Exception):
                return _loaded_png(Image.open(repaired), repaired)
        raise
    if not png_data.is_intact(file, image.size):
        raise OSError("image file is truncated or damaged")
    return loaded


def _png_repairs(file: IO[bytes]) -> Iterator[IO[bytes]]:
    yield from png.repairs(file)
    if (pixels := png_data.without_checksum(file)) is not None:
        yield from png.repairs(pixels)


def _loaded_png(image: Image.Image, file: IO[bytes]) -> Image.Image:
    png.fix_transparency(image)
    deep = png.deep_transparency(image)
    transparency = image.info.get("transparency")
    image.load()
    if transparency is None:  # a tRNS chunk after the pixels has no effect
        image.info.pop("transparency", None)
    if not deep:
        return image
    file.seek(0)
    with Image.open(file) as low:
        png.swap_halves(low)
        low.load()
        return png.with_deep_transparency(image, low)


def _load_jpeg(image: Image.Image, file: IO[bytes], shorter_side: int | None) -> Image.Image:
    """Loads a JPEG, also a truncated one in which only a few pixels are missing."""
    try:
        if jpeg.is_padded(file):  # libjpeg would take the zeros for a part of the picture
            raise OSError("image file is truncated")
        file.seek(0)
        image.load()
        return image
    except OSError:
        whole = jpeg.completed(file)
        if whole is None:
            raise
        mended = Image.open(whole, formats=["JPEG"])
        draft(mended, shorter_side)
        mended.load()
        return mended


def _on_white_canvas(image: Image.Image, extents: tuple[int, int, int, int]) -> Image.Image:
    """Returns an animation's first frame, with white where the frame does not cover the canvas.

    Pillow uses the background colour there.
    extents: the frame's left, upper, right and lower edge.
    """
    if extents == (0, 0, *image.size):
        return image
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image.crop(extents).convert("RGB"), extents)
    return canvas


def _like(image: Image.Image, loaded: Image.Image) -> Image.Image:
    """Copies the format, EXIF and ICC profile of `image` to `loaded`, which was made from it. Returns `loaded`."""
    if loaded is not image and not isinstance(loaded, ImageFile.ImageFile):
        loaded.info = {key: value for key, value in image.info.items() if key in {"exif", "icc_profile"}}
        loaded.format = image.format
    return loaded


def _register_heif() -> None:
    try:
        import pillow_heif
    except ImportError:
        raise missing_extra("HEIC", "heif") from None
    pillow_heif.register_heif_opener()
