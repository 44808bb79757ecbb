"""Colours and light of the sample pictures. Colours are RGB in [0, 255]."""

from __future__ import annotations

import colorsys
from typing import Any, TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

T = TypeVar("T")
Colour = tuple[float, float, float]
Field = NDArray[np.floating[Any]]  # (H, W), one value a pixel

BLACK: Colour = (18, 17, 20)
WHITE: Colour = (252, 250, 246)


def pick(rng: Generator, *options: T) -> T:
    """Returns one of the options at random."""
    return options[int(rng.integers(len(options)))]


def rgb(colour: Colour) -> tuple[int, int, int]:
    """Returns a colour as whole numbers."""
    return round(colour[0]), round(colour[1]), round(colour[2])


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Returns a colour from hue (modulo 1), saturation and value (both cut to [0, 1])."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(1, max(0, saturation)), min(1, max(0, value)))
    return red * 255, green * 255, blue * 255


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """Mixes two colours. share: the weight of `other`, from 0 to 1."""
    red, green, blue = (a + (b - a) * share for a, b in zip(one, other, strict=True))
    return red, green, blue


def rounded(patch: Image.Image, u: Field, v: Field, towards: float, amount: float) -> Image.Image:
    """Shades an image patch like a ball that is lit from above: brightest at the point (towards, -0.45).

    u, v: the coordinates of the columns and of the rows, from -1 to 1. towards: the u of the brightest point, which is
    negative for light from the left. amount: how strong the shading is.
    """
    far = np.sqrt(((u - towards) ** 2)[None] + ((v + 0.45) ** 2)[:, None])
    gain = (amount * (0.62 - far)).clip(-0.85, 0.6)[..., None].astype(np.float32)
    pixels = np.asarray(patch, dtype=np.float32)
    pixels = pixels * (1 + np.minimum(gain, 0)) + (255 - pixels) * np.maximum(gain, 0)
    return Image.fromarray(pixels.astype(np.uint8))


def lit(paint: Colour | Image.Image, gain: Field) -> Image.Image:
    """Multiplies each pixel of a colour or an image by `gain` (H, W)."""
    pixels = np.asarray(paint, dtype=np.float32) * gain.astype(np.float32)[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def relief(height: Field, depth: float, step: int = 4) -> Field:
    """Returns factors (H, W) around 1: the brightness of a surface with these heights that is lit from one side.

    Slopes that fall towards the lower right are bright. depth: how much the brightness varies. step: the distance in
    pixels at which heights are compared.
    """
    beyond = np.pad(height, ((0, step), (0, step)), mode="reflect")[step:, step:]
    return 1 + np.float32(depth) * (height - beyond)


def ramp(values: Field, *stops: Colour) -> Image.Image:
    """Returns an image that shows values (H, W) from 0 to 1 in colours, by a gradient through `stops`."""
    places = np.linspace(0, 255, len(stops))
    table = np.stack([np.interp(np.arange(256), places, channel) for channel in np.array(stops).T], axis=-1)
    return Image.fromarray(table.astype(np.uint8)[(values * 255).clip(0, 255).astype(np.uint8)])
