"""Conversion of images of any Pillow mode to 8-bit RGB."""

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
"""Formats whose alpha is ignored if it is 0 everywhere while the colours vary."""

_HIGHLIGHTS = 16
"""The values of a float image are taken to be on the scale 0 to 1 if the largest is at most this.

Lamps and sharpened edges can be brighter than white (1).
"""


def to_rgb(image: Image.Image, top: float | None = None) -> Image.Image:
    """Converts an image of any Pillow mode to 8-bit RGB, in sRGB. Transparent parts become white.

    Values of more than 8 bits are scaled down. Colours are converted by the ICC profile in `image.info`.
    top: for an image of 32-bit values, its largest value (see `largest_value`). If `image` is only a part of an image,
    this must be the largest value of the whole image. None to find the largest value in `image`.
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
    """Returns a loaded image, without its alpha channel if a program left the channel unused (0 everywhere)."""
    if image.mode != "RGBA" or image.format not in _UNUSED_ALPHA | _ALPHA_MAY_BE_UNUSED:
        return image
    if image.format == "TIFF" and _EXTRA_SAMPLES in getattr(image, "tag_v2", {}):  # the tag says: it is alpha
        return image
    if image.getchannel("A").getextrema() != (0, 0):
        return image
    colours = image.convert("RGB")
    varied = any(low != high for low, high in colours.getextrema())  # type: ignore[misc]
    return colours if varied or image.format in _UNUSED_ALPHA else image


def eight_bits(values: NDArray[np.generic], top: float | None = None) -> NDArray[np.uint8]:
    """Scales values of 32 bits to 0..255.

    top: the largest value; None to find it in `values`. The value that becomes 255 (white) depends on `top`:
    1 for floats if `top` is at most `_HIGHLIGHTS` (values above 1 become white too);
    else 255 if `top` is at most 255, so that the values are not scaled;
    else 65535 if `top` is at most 65535;
    else `top`.
    """
    top = largest_finite(values) if top is None else top
    array = np.maximum(np.nan_to_num(values.astype(np.float64), posinf=top), 0.0)
    if np.issubdtype(values.dtype, np.floating) and top <= _HIGHLIGHTS:
        array = array * 255
    elif top > 255:
        array = array * (255 / (65535 if top <= 65535 else top))
    return np.clip(array, 0, 255).astype(np.uint8)


def largest_finite(values: NDArray[np.generic]) -> float:
    """Returns the largest finite value; 0 if no value is positive."""
    array = values.astype(np.float64)
    return float(array.max(initial=0.0, where=np.isfinite(array)))


def known_top(image: Image.Image) -> float | None:
    """Returns the value that stands for white in an image of 32-bit values; None if the format does not define it."""
    return 65535 if image.format == "PPM" and image.mode == "I" else None  # Pillow scales to 65535


def largest_value(image: Image.Image) -> float | None:
    """Returns `top` for `to_rgb`, from a whole image of 32-bit values; None for images of other modes.

    The result is the value of white if the format defines it, else the largest value. Reads row by row, to save memory.
    """
    if image.mode not in {"I", "F"}:
        return None
    if (known := known_top(image)) is not None:
        return known
    rows = (np.asarray(image.crop((0, row, image.width, row + 1))) for row in range(image.height))
    return max(map(largest_finite, rows))


def _to_rgb(image: Image.Image, profile: Any) -> Image.Image:
    """Converts an image without transparency to RGB, by its ICC profile if the profile fits the mode."""
    if profile and image.mode not in {"LAB", "1"}:
        image = to_srgb(image if image.mode in {"L", "CMYK"} else image.convert("RGB"), profile)
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_layers(image: Image.Image, profile: Any) -> Image.Image | None:
    """Converts a grey image with alpha to RGBA by its ICC profile.

    Returns None for images of other modes, or if the profile changes no grey level.
    """
    if image.mode != "LA" or not changes_colours(profile, "L"):
        return None
    layers = to_srgb(image.getchannel("L"), profile)
    layers.putalpha(image.getchannel("A"))
    return layers


def _from_16_bits(image: Image.Image, profile: Any) -> Image.Image:
    """Converts a 16-bit grey image to RGB. The grey level that a PNG declares transparent becomes white."""
    values = np.asarray(image)
    rgb = _to_rgb(Image.fromarray((values >> 8).astype(np.uint8)), profile)
    level = image.info.get("transparency")
    if isinstance(level, int):
        rgb.paste("white", mask=Image.fromarray(np.where(values == level, 255, 0).astype(np.uint8)))
    return rgb
