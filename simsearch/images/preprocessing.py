"""The recipe: the preprocessing that belongs to a network's weights.

Krizhevsky et al. 2012, section 2: scale the shorter side to 256 pixels, cut out the centre, subtract the training
mean. Query and index must go through the same recipe, so it travels in the weights' header and in the index.
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


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network's input.

    resize: pixels of the scaled image's shorter side. crop: side of the square cut from its centre; where it is the
    larger of the two, black surrounds the image (LeNet-5 sees digits of 28 pixels on 32).
    mean, deviation: per channel (R, G, B), on the 0 to 255 scale; the input is (pixel - mean) / deviation.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    deviation: tuple[float, float, float] = (58.395, 57.12, 57.375)
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if not (0 < self.crop <= 2 * self.resize):
            raise WeightsError(f"recipe: crop {self.crop} does not fit into resize {self.resize}")
        if self.interpolation not in FILTERS:
            raise WeightsError(f"recipe: interpolation {self.interpolation!r} is none of {', '.join(FILTERS)}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """Reads what `to_dict` wrote; an unknown key is refused, since ignoring it would change the features."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise WeightsError(f"recipe: unknown key {sorted(unknown)[0]!r}", hint="a newer simsearch may know it")
        converted: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**converted)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        return asdict(self)

    def pixels(self, image: Image.Image) -> Pixels:
        """An RGB image as the (crop, crop, 3) uint8 array that the network sees, before mean and deviation."""
        return scaled_centre(image, self.resize, self.crop, FILTERS[self.interpolation])


def shorter_side(image: Image.Image, pixels: int, resample: Image.Resampling) -> Image.Image:
    """Scales the image so that its shorter side has `pixels` pixels, keeping its proportions."""
    width, height = image.size
    scale = pixels / min(width, height)
    size = (max(pixels, round(width * scale)), max(pixels, round(height * scale)))
    # A panorama of 20,000 x 10 pixels would become one of 512,000 x 256: cut its middle out first.
    longest = 64 * min(width, height)
    if max(size) > 64 * pixels:
        left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
        image = image.crop((left, top, left + min(width, longest), top + min(height, longest)))
        return shorter_side(image, pixels, resample)
    return image if size == image.size else image.resize(size, resample)


def centre_crop(image: Image.Image, side: int) -> Pixels:
    """The (side, side, 3) uint8 square at the image's centre."""
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)), dtype=np.uint8)


def scaled_centre(image: Image.Image, pixels: int, side: int, resample: Image.Resampling) -> Pixels:
    """`centre_crop` of `shorter_side`, computing only the pixels that the crop keeps: (side, side, 3) uint8.

    Pillow keeps the box in single precision, so that now and then a value is one level off.
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
