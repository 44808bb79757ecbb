"""The preprocessing that belongs to a network's weights.

Krizhevsky et al. 2012, section 2: scale the shorter side to 256 pixels, cut out the centre, subtract the training
mean. Queries and indexed images need the same preprocessing, so the weights' header and the index both record it, under
the key `recipe`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from simsearch.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
MAX_SIDE = 4096
"""The largest permitted `Preprocessing.resize`, in pixels."""

_JSON_KEYS = {"std": "deviation"}
"""Maps fields of `Preprocessing` to their JSON keys; the key of every other field is its name."""


@dataclass(frozen=True)
class Preprocessing:
    """The steps that turn an image into a network's input.

    resize: pixels of the scaled image's shorter side.
    crop: side of the square cut from the scaled image's centre. If it is larger than `resize`, the image gets a black
    border (LeNet-5 sees digits of 28 x 28 pixels in a square of 32 x 32).
    mean, std: three numbers each, for R, G and B, on the scale 0 to 255. The input is (pixel - mean) / std. In JSON,
    std is called `deviation`.
    interpolation: the method of scaling, a key of `FILTERS`.
    Raises WeightsError for values that are not permitted.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if type(self.resize) is not int or type(self.crop) is not int or self.resize > MAX_SIDE:
            raise WeightsError(f"recipe: resize or crop is not a whole number, or resize is over {MAX_SIDE:,} pixels")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not isinstance(values, tuple) or len(values) != 3 or not all(_is_level(value) for value in values):
                raise WeightsError(f"recipe: {name} is not three numbers")
        if not all(self.std):
            raise WeightsError("recipe: the deviation of a channel is 0")
        if not (0 < self.crop <= 2 * self.resize):
            raise WeightsError(f"recipe: crop {self.crop} is not from 1 to {2 * self.resize}, which is twice resize")
        if type(self.interpolation) is not str or self.interpolation not in FILTERS:
            raise WeightsError(f"recipe: interpolation {self.interpolation!r} is not one of {', '.join(FILTERS)}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """Makes a `Preprocessing` from a JSON object. Raises WeightsError for values that are not permitted.

        Unknown keys are not permitted either, because they may stand for a step that changes the features.
        """
        names = {_JSON_KEYS.get(field.name, field.name): field.name for field in fields(cls)}
        unknown = set(values) - set(names)
        if unknown:
            raise WeightsError(
                f"recipe: unknown key {sorted(unknown)[0]!r}", hint="a newer simsearch may know this key"
            )
        converted: dict[str, Any] = {
            names[key]: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**converted)

    def to_dict(self) -> dict[str, Any]:
        """Returns the preprocessing as a dict that can be written as JSON."""
        return {_JSON_KEYS.get(name, name): value for name, value in asdict(self).items()}

    def pixels(self, image: Image.Image) -> Pixels:
        """Returns an RGB image as the (crop, crop, 3) uint8 array that the network sees, before mean and std."""
        return scaled_centre(image, self.resize, self.crop, FILTERS[self.interpolation])


def _is_level(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6


def shorter_side(image: Image.Image, pixels: int, resample: Image.Resampling) -> Image.Image:
    """Scales an image so that its shorter side has `pixels` pixels, keeping its proportions.

    If the longer side is more than 64 times the shorter side, the image is first cut to its middle.
    """
    width, height = image.size
    scale = pixels / min(width, height)
    size = (max(pixels, round(width * scale)), max(pixels, round(height * scale)))
    # A panorama of 20,000 x 10 pixels would become one of 512,000 x 256, so its middle is cut out first.
    longest = 64 * min(width, height)
    if max(size) > 64 * pixels:
        left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
        image = image.crop((left, top, left + min(width, longest), top + min(height, longest)))
        return shorter_side(image, pixels, resample)
    return image if size == image.size else image.resize(size, resample)


def centre_crop(image: Image.Image, side: int) -> Pixels:
    """Returns the square at the image's centre: (side, side, 3) uint8.

    If the image is smaller than the square, the rest of the square is black.
    """
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)), dtype=np.uint8)


def scaled_centre(image: Image.Image, pixels: int, side: int, resample: Image.Resampling) -> Pixels:
    """Scales an image as `shorter_side` does, and returns only the square at its centre: (side, side, 3) uint8.

    This saves time, because the pixels outside the square are usually not computed. A few values differ by one level
    from the result of `shorter_side` and `centre_crop`, because Pillow rounds the square's coordinates to single
    precision.
    """
    width, height = image.size
    scale = pixels / min(width, height)
    columns, rows = max(pixels, round(width * scale)), max(pixels, round(height * scale))
    if side > pixels or max(columns, rows) > 64 * pixels or (columns, rows) == image.size:
        return centre_crop(shorter_side(image, pixels, resample), side)
    left, top = (columns - side) // 2, (rows - side) // 2
    right, bottom = min(width, (left + side) * width / columns), min(height, (top + side) * height / rows)
    box = (left * width / columns, top * height / rows, right, bottom)
    return np.asarray(image.resize((side, side), resample, box=box), dtype=np.uint8)
