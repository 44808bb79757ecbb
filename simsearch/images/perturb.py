"""Changes to images, to measure robustness and to make near-identical copies."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

Change = Callable[[Image.Image, float, Generator], Image.Image]
"""A function (image, strength, random generator) that changes an RGB image. `CHANGES` has the unit of the strength."""


def recompress(image: Image.Image) -> Image.Image:
    """Saves an image as JPEG of quality 50 and decodes it again."""
    return _as_jpeg(image, 50)


def _as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def crop_border(image: Image.Image) -> Image.Image:
    """Cuts 2.5 % off each side of an image."""
    x, y = round(image.width * 0.025), round(image.height * 0.025)
    return image.crop((x, y, image.width - x, image.height - y))


def shrink(image: Image.Image) -> Image.Image:
    """Scales an image to 75 %."""
    return image.resize((max(1, image.width * 3 // 4), max(1, image.height * 3 // 4)), Image.Resampling.LANCZOS)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG 50": recompress,
    "scaled to 75 %": shrink,
    "cropped by 5 %": crop_border,
    "brighter by 10 %": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "scaled to 75 %, JPEG 60": lambda image: _as_jpeg(shrink(image), 60),
    "rotated by 2 degrees": lambda image: image.rotate(2, Image.Resampling.BICUBIC),
    "mirrored": ImageOps.mirror,
}
"""Maps names of changes to their functions. Each change makes a near-identical copy of an image."""


def _shift(image: Image.Image, strength: float, random: Generator) -> Image.Image:
    x, y = (round(strength * side) * int(random.choice((-1, 1))) for side in image.size)
    return _moved(image, (1, 0, x, 0, 1, y))


def _rotate(image: Image.Image, strength: float, random: Generator) -> Image.Image:
    angle = np.radians(strength) * random.choice((-1, 1))
    cosine, sine = float(np.cos(angle)), float(np.sin(angle))
    x, y = image.width / 2, image.height / 2
    return _moved(image, (cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y))


def _moved(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """Applies an affine map to an image. Pixels from outside the image get its mean colour.

    matrix: the six coefficients that `Image.transform` takes; they map pixels of the result to pixels of the image.
    """
    pixels = np.asarray(image).reshape(-1, 3)
    mean = tuple(int(value) for value in pixels.mean(0))
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=mean)


def _scale(image: Image.Image, strength: float, random: Generator) -> Image.Image:
    size = tuple(max(1, round(side * strength)) for side in image.size)
    return image.resize(size, Image.Resampling.LANCZOS)  # type: ignore[arg-type]


def _crop(image: Image.Image, strength: float, random: Generator) -> Image.Image:
    width, height = (max(1, round(side * (1 - strength) ** 0.5)) for side in image.size)
    x, y = (int(random.integers(0, room + 1)) for room in (image.width - width, image.height - height))
    return image.crop((x, y, x + width, y + height))


def _flip(image: Image.Image, strength: float, random: Generator) -> Image.Image:
    return ImageOps.mirror(image)


def _noise(image: Image.Image, strength: float, random: Generator) -> Image.Image:
    pixels = np.asarray(image, np.float32)
    noisy = pixels + random.normal(0, strength, pixels.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _blur(image: Image.Image, strength: float, random: Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(strength * min(image.size)))


def _jpeg(image: Image.Image, strength: float, random: Generator) -> Image.Image:
    return _as_jpeg(image, int(strength))


def _colour(image: Image.Image, strength: float, random: Generator) -> Image.Image:
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = kind(image).enhance(1 + strength * float(random.choice((-1, 1))))
    return image


def _text(image: Image.Image, strength: float, random: Generator) -> Image.Image:
    """Draws a white band with text across the image. strength: the band's share of the image's height."""
    image = image.copy()
    height = max(8, round(image.height * strength))
    top = int(random.integers(0, max(1, image.height - height)))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, top, image.width, top + height), "white")
    draw.text((4, top), "breaking news of the day " * 3, "black", font=ImageFont.load_default(max(6, 0.7 * height)))
    return image


CHANGES: dict[str, tuple[Change, tuple[float, ...], str]] = {
    "shift": (_shift, (0.02, 0.05, 0.1, 0.2), "share of each side"),
    "rotation": (_rotate, (2, 5, 10, 20, 45, 90, 180), "degrees"),
    "scale": (_scale, (0.75, 0.5, 0.25, 0.125), "of the size"),
    "crop": (_crop, (0.1, 0.25, 0.5, 0.75), "share of the area cut off"),
    "flip": (_flip, (1,), "mirrored"),
    "noise": (_noise, (5, 10, 20, 40), "standard deviation, of 255"),
    "blur": (_blur, (0.005, 0.01, 0.02, 0.04), "radius, share of the shorter side"),
    "jpeg": (_jpeg, (75, 50, 25, 10, 5), "quality"),
    "colour": (_colour, (0.1, 0.2, 0.4, 0.6), "change of brightness, contrast and saturation"),
    "text": (_text, (0.05, 0.1, 0.2, 0.4), "share of the height"),
}
"""Maps the name of each change to its function, its strengths from weak to strong, and the unit of the strengths."""
