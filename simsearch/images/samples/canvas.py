"""The canvas on which the sample pictures are drawn, and functions that choose places on it.

Lengths are in units of the image's shorter side, so that the same code draws landscape and portrait format. The canvas
spans x in [0, width] and y in [0, height], with y pointing down, and min(width, height) is 1. Colours are RGB in [0,
255].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from simsearch.images.samples.colours import Colour, Field, rgb, rounded
from simsearch.images.samples.outlines import Points, rotation


@dataclass(frozen=True)
class Canvas:
    """An RGB image to draw on. Every outline is mirrored, turned, scaled and moved before it is drawn."""

    image: Image.Image
    light: int  # the light comes from the upper left (-1) or the upper right (1)
    origin: tuple[float, float] = (0.0, 0.0)  # the image's point that is (0, 0)
    scale: float = 1.0
    turn: float = 0.0  # radians, clockwise
    mirror: int = 1  # -1 swaps left and right

    @property
    def unit(self) -> int:
        """The length of a unit: the image's shorter side in pixels."""
        return min(self.image.size)

    @property
    def width(self) -> float:
        """The image's width in units."""
        return self.image.width / self.unit

    @property
    def height(self) -> float:
        """The image's height in units."""
        return self.image.height / self.unit

    def at(self, x: float, y: float, scale: float, turn: float = 0.0, mirror: int = 1) -> Canvas:
        """Returns a canvas with the same image and other coordinates, whose (0, 0) is at (x, y) of the image.

        scale: the length of the new unit, in units of the image. turn: radians, clockwise. mirror: -1 swaps left and
        right.
        """
        return replace(self, origin=(x, y), scale=scale, turn=turn, mirror=mirror)

    def turned(self, angle: float) -> Canvas:
        """Returns the canvas, turned clockwise by a further angle in radians."""
        return replace(self, turn=self.turn + angle)

    def mirrored(self, mirror: int) -> Canvas:
        """Returns the canvas with another `mirror`: -1 swaps left and right of all outlines, 1 does not."""
        return replace(self, mirror=mirror)

    def shape(
        self, outline: Points, paint: Colour | Image.Image, light: float = 0.0, opacity: float = 1.0, blur: float = 0.0
    ) -> None:
        """Fills an outline with `paint`: a colour, or an image as large as the canvas.

        light: from 0 to 1, how strongly the shape is shaded as if it were round.
        opacity: from 0 to 1.
        blur: the softness of the edge, in the canvas's units.
        """
        points = (outline * (self.mirror, 1) @ rotation(self.turn) * self.scale + self.origin) * self.unit
        low, high = points.min(axis=0), points.max(axis=0)
        soft = float(blur * self.scale * self.unit)
        margin = 1 + 2.5 * soft
        left, top = (max(0, math.floor(v - margin)) for v in low)
        right, bottom = (min(n, math.ceil(v + margin)) for n, v in zip(self.image.size, high, strict=True))
        if right <= left or bottom <= top:
            return
        mask = Image.new("L", (2 * (right - left), 2 * (bottom - top)))  # twice the resolution, for smooth edges
        ImageDraw.Draw(mask).polygon(((points - (left, top)) * 2).ravel().tolist(), fill=round(255 * opacity))
        mask = mask.reduce(2)
        if soft:
            mask = mask.filter(ImageFilter.GaussianBlur(soft))
        if isinstance(paint, Image.Image):
            patch = paint.crop((left, top, right, bottom))
        else:
            patch = Image.new("RGB", mask.size, rgb(paint))
        if light:
            u = (np.arange(left, right, dtype=np.float32) - low[0]) / max(1.0, high[0] - low[0]) * 2 - 1
            v = (np.arange(top, bottom, dtype=np.float32) - low[1]) / max(1.0, high[1] - low[1]) * 2 - 1
            patch = rounded(patch, u, v, 0.4 * self.light, light)
        self.image.paste(patch, (left, top), mask)

    def cover(self, amount: Field, paint: Colour | Image.Image) -> None:
        """Blends `paint`, a colour or an image, over the whole canvas.

        amount: the opacity of each pixel, (H, W); values are cut to the range 0 to 1.
        """
        mask = Image.fromarray((amount * 255).clip(0, 255).astype(np.uint8))
        self.image.paste(paint if isinstance(paint, Image.Image) else rgb(paint), (0, 0), mask)

    def gradient(self, stops: Sequence[Colour], top: float = 0.0, bottom: float | None = None) -> Image.Image:
        """Returns an image as large as the canvas, with a vertical gradient through the colours `stops`.

        top, bottom: the y of the first and of the last colour. If bottom is None, it is the canvas's lower edge.
        """
        ends = np.linspace(top, self.height if bottom is None else bottom, len(stops))
        rows = np.arange(self.image.height) / self.unit
        column = np.stack([np.interp(rows, ends, channel) for channel in np.array(stops).T], axis=-1)
        return Image.fromarray(column.astype(np.uint8)[:, None]).resize(self.image.size, Image.Resampling.NEAREST)

    def grid(self, turn: float = 0.0) -> tuple[Field, Field]:
        """Returns the coordinates x and y of all pixels, in units, as two arrays (H, W).

        turn: an angle in radians, by which the axes are turned clockwise about the upper left corner.
        """
        y, x = np.mgrid[: self.image.height, : self.image.width].astype(np.float32) / np.float32(self.unit)
        cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
        return x * cos + y * sin, y * cos - x * sin

    def noise(self, rng: Generator, cells: float, octaves: int = 4, stretch: float = 1.0) -> Field:
        """Returns fractal noise (H, W) from 0 to 1, the sum of `octaves` layers, each twice as fine as the one before.

        cells: approximate number of spots per unit in the first layer. stretch: width of the spots divided by their
        height.
        """
        size = (self.image.width // 2, self.image.height // 2)
        total = np.zeros(size[::-1], np.float32)
        for octave in range(octaves):
            across = max(2, round(cells * 2**octave * self.width / math.sqrt(stretch)))
            down = max(2, round(cells * 2**octave * self.height * math.sqrt(stretch)))
            coarse = Image.fromarray(rng.random((down, across), dtype=np.float32))
            total += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) / 2**octave
        total = (total - total.min()) / (total.max() - total.min())
        return np.asarray(Image.fromarray(total).resize(self.image.size, Image.Resampling.BILINEAR))


def ridge(c: Canvas, rng: Generator, level: float, rise: float, bumps: int, octaves: int) -> Points:
    """Returns the outline of the area below a random ridge, which rises up to `rise` above `level`.

    bumps: the number of straight pieces in the first layer of the ridge. octaves: the number of layers, each twice as
    fine as the one before.
    """
    x = np.linspace(-0.05, c.width + 0.05, 180)
    heights = np.zeros_like(x)
    for octave in range(octaves):
        knots = np.linspace(x[0], x[-1], bumps * 2**octave + 1)
        heights += np.interp(x, knots, rng.random(len(knots))) / 2**octave
    heights = (heights - heights.min()) / (heights.max() - heights.min())
    line = np.stack([x, level - rise * heights], axis=-1)
    return np.concatenate([line, [[x[-1], c.height + 0.1], [x[0], c.height + 0.1]]])


def spread(c: Canvas, rng: Generator, most: int, size: float, top: float = 0.0) -> list[tuple[float, float, float]]:
    """Returns one to `most` places (x, y, size) for objects that hardly overlap, sorted by y.

    most: the largest number of places. size: about half the length of an object, if there is only one; if there are
    more, each is smaller. top: the least y of a place.
    """
    count = int(rng.integers(1, most + 1))
    size *= rng.uniform(0.85, 1.15) * (1.0, 0.72, 0.6, 0.52, 0.46)[count - 1]
    low, high = min(size, c.width / 2), max(c.width - size, c.width / 2)
    highest = min(max(size, top), c.height - size)
    places: list[tuple[float, float, float]] = []
    for _ in range(60):
        x, y = rng.uniform(low, high), rng.uniform(highest, c.height - size)
        if len(places) < count and all(math.hypot(x - a, y - b) > 1.7 * size for a, b, _ in places):
            places.append((x, y, size * rng.uniform(0.88, 1.1)))
    return sorted(places, key=lambda place: place[1])
