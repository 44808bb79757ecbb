"""Conversion to sRGB by ICC profiles, with littleCMS through Pillow. Broken and unsuitable profiles are ignored."""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from simsearch.common.lazy import LazyModule

if TYPE_CHECKING:
    from PIL import ImageCms
else:
    ImageCms = LazyModule("PIL.ImageCms")

LARGEST_PROFILE = 4 << 20
"""Larger profiles (bytes) are ignored."""

TOLERANCE = 3
"""A profile that changes no colour by more levels than this is taken for sRGB, and skipped."""

CACHE = 32
"""Number of profiles whose conversions are kept."""


def to_srgb(image: Image.Image, profile: object) -> Image.Image:
    """Converts an image to sRGB by its ICC profile: RGB, RGBA, L or CMYK to RGB, or RGBA.

    Returns the same image if it has no profile, one of sRGB, or one that does not fit it.
    """
    transform = _transform_for(image.mode, profile)
    if transform is None:
        return image
    if image.mode == "L" and transform.input_mode == "RGB":
        image = image.convert("RGB")
    return transform.apply(image)


def changes_colours(profile: object, mode: str = "RGB") -> bool:
    """Returns True if `to_srgb` would change an image of that mode."""
    return _transform_for(mode, profile) is not None


def _transform_for(mode: str, profile: object) -> ImageCms.ImageCmsTransform | None:
    if not isinstance(profile, bytes) or not 128 < len(profile) <= LARGEST_PROFILE:
        return None
    space = profile[16:20]
    if space == b"RGB " and mode in {"RGB", "RGBA", "L"}:
        return _transform(profile, "RGB" if mode == "L" else mode)
    if (space, mode) in {(b"GRAY", "L"), (b"CMYK", "CMYK")}:
        return _transform(profile, mode)
    return None


@functools.lru_cache(CACHE)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Returns the conversion of a profile to sRGB; None for a profile that is sRGB, or broken."""
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGBA" if mode == "RGBA" else "RGB",
            ImageCms.Intent.PERCEPTUAL,
        )
        if mode == "CMYK":
            return transform
        colours = _colours(mode)
        plain = np.asarray(colours.convert("RGB"), np.int16)
        found = np.asarray(transform.apply(colours).convert("RGB"), np.int16)
        return transform if np.abs(found - plain).max() > TOLERANCE else None
    except Exception:  # littleCMS refuses a broken profile in many ways
        return None


def _colours(mode: str) -> Image.Image:
    """Returns an image of colours that are spread over the whole space."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    return Image.fromarray(cube).convert(mode)
