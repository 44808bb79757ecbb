"""Conversion of images of any mode to 8-bit RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from simsearch.images.decoding.colour import changes_colours, to_srgb

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EXTRA_SAMPLES = 338  # TIFF tag

_UNUSED_ALPHA = frozenset({"BMP", "DIB"})
"""Formats whose alpha is ignored if it is 0 everywhere."""

_ALPHA_MAY_BE_UNUSED = frozenset({"ICO", "CUR", "TGA", "DDS", "TIFF"})
"""Formats whose alpha is ignored if it is 0 everywhere and the colours under it vary."""

_HIGHLIGHTS = 16
"""The largest value in float images on the scale 0..1: lamps, and edges after sharpening, are brighter than white."""


def to_rgb(image: Image.Image, top: float | None = None) -> Image.Image:
    """Converts an image of any mode to 8-bit RGB: alpha over white, deeper values scaled down, palettes and CMYK too.

    Colours are converted to sRGB by the profile in `image.info`. top: the largest value of the whole image, if this is
    a part of an image of 32-bit values.
    """
    profile = image.info.get("icc_profile")
    transparency = "transparency" in image.info
    if image.mode == "RGB" and not transparency:
        return to_srgb(image, profile) if profile else image
    if image.mode.startswith("I;16"):
        return _from_16_bits(image, profile)
    if image.mode in {"I", "F"}:
        return _to_rgb(Image.fromarray(eight_bits(np.asarray(image), top)), profile)
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image
        layers = _grey_layers(image, profile) or to_srgb(image.convert("RGBA"), profile)
        return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    return _to_rgb(image, profile)


def without_unused_alpha(image: Image.Image) -> Image.Image:
    """Returns a loaded image without alpha, if the alpha is 0 everywhere because a program left it unused."""
    if image.mode != "RGBA" or image.format not in _UNUSED_ALPHA | _ALPHA_MAY_BE_UNUSED:
        return image
    if image.format == "TIFF" and _EXTRA_SAMPLES in getattr(image, "tag_v2", {}):  # it says that this is alpha
        return image
    if image.getchannel("A").getextrema() != (0, 0):
        return image
    colours = image.convert("RGB")
    varied = any(low != high for low, high in colours.getextrema())  # type: ignore[misc]
    return colours if varied or image.format in _UNUSED_ALPHA else image


def eight_bits(values: NDArray[np.generic], top: float | None = None) -> NDArray[np.uint8]:
    """Scales 32-bit values to 0..255: floats in 0..1 by 255, values up to 255 by 1, others by their range.

    Floats up to `_HIGHLIGHTS` count as 0..1 with highlights beyond it, which become white. top: the largest value.
    """
    top = largest_finite(values) if top is None else top
    array = np.maximum(np.nan_to_num(values.astype(np.float64), posinf=top), 0.0)
    if np.issubdtype(values.dtype, np.floating) and top <= _HIGHLIGHTS:
        array = array * 255
    elif top > 255:
        array = array * (255 / (65535 if top <= 65535 else top))
    return np.clip(array, 0, 255).astype(np.uint8)


def largest_finite(values: NDArray[np.generic]) -> float:
    """Returns the largest finite value, but at least 0."""
    array = values.astype(np.float64)
    return float(array.max(initial=0.0, where=np.isfinite(array)))


def known_top(image: Image.Image) -> float | None:
    """Returns the value of white in an image of 32-bit values; None if the format does not fix it."""
    return 65535 if image.format == "PPM" and image.mode == "I" else None  # Pillow scales the file's maximum to it


def largest_value(image: Image.Image) -> float | None:
    """Returns the largest value of an image of 32-bit values, row by row to save memory; None for other modes."""
    if image.mode not in {"I", "F"}:
        return None
    if (known := known_top(image)) is not None:
        return known
    rows = (np.asarray(image.crop((0, row, image.width, row + 1))) for row in range(image.height))
    return max(map(largest_finite, rows))


def _to_rgb(image: Image.Image, profile: Any) -> Image.Image:
    """Converts an image without transparency, by its profile if that fits."""
    if profile and image.mode not in {"LAB", "1"}:
        image = to_srgb(image if image.mode in {"L", "CMYK"} else image.convert("RGB"), profile)
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_layers(image: Image.Image, profile: Any) -> Image.Image | None:
    """Returns a grey image with alpha as RGBA, if its ICC profile changes the greys; None otherwise."""
    if image.mode != "LA" or not changes_colours(profile, "L"):
        return None
    layers = to_srgb(image.getchannel("L"), profile)
    layers.putalpha(image.getchannel("A"))
    return layers


def _from_16_bits(image: Image.Image, profile: Any) -> Image.Image:
    """Converts grey of 16 bits; the transparent level of a PNG becomes white."""
    values = np.asarray(image)
    rgb = _to_rgb(Image.fromarray((values >> 8).astype(np.uint8)), profile)
    level = image.info.get("transparency")
    if isinstance(level, int):
        rgb.paste("white", mask=Image.fromarray(np.where(values == level, 255, 0).astype(np.uint8)))
    return rgb
