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
"""Profiles of more bytes are ignored."""

TOLERANCE = 3
"""A profile counts as sRGB, and is ignored, if it changes no colour by more than this (on the scale 0 to 255)."""

CACHE = 32
"""Number of profiles whose transformations are cached."""


def to_srgb(image: Image.Image, profile: object) -> Image.Image:
    """Converts an image of mode RGB, RGBA, L or CMYK to sRGB by its ICC profile.

    Returns RGBA for RGBA, and RGB for the other modes. Returns the image unchanged if there is no profile, or if the
    profile is sRGB, broken, or made for another mode.
    """
    transform = _transform_for(image.mode, profile)
    if transform is None:
        return image
    if image.mode == "L" and transform.input_mode == "RGB":
        image = image.convert("RGB")
    return transform.apply(image)


def changes_colours(profile: object, mode: str = "RGB") -> bool:
    """Returns True if `to_srgb` would change an image of this mode with this profile."""
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
    """Returns the transformation from a profile's colours to sRGB; None if the profile is sRGB or broken."""
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
    except Exception:  # littleCMS raises many kinds of exceptions for broken profiles
        return None


def _colours(mode: str) -> Image.Image:
    """Returns an image with colours from all parts of the mode's colour space, to test how a profile changes them."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    return Image.fromarray(cube).convert(mode)
