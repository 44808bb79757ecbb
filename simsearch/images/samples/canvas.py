"""Paper to draw the sample's pictures on: outlines, paints, light and noise, with nothing but Pillow and numpy.

Lengths are in units of the shorter side, so that one recipe serves landscape and portrait: the canvas spans
x in [0, width] and y in [0, height], y pointing down, and min(width, height) is 1. Colours are RGB in [0, 255].
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFilter

T = TypeVar("T")
Colour = tuple[float, float, float]
Field = NDArray[np.floating[Any]]  # (H, W), one value a pixel
Points = NDArray[np.float64]  # (n, 2), a closed outline or an open path

BLACK: Colour = (18, 17, 20)
WHITE: Colour = (252, 250, 246)


@dataclass(frozen=True)
class Canvas:
    """An RGB image drawn upon in place, and where the next outline goes: mirrored, turned, scaled, moved."""

    image: Image.Image
    light: int  # the light comes from the upper left (-1) or the upper right (1)
    origin: tuple[float, float] = (0.0, 0.0)  # where its (0, 0) lies on the paper
    scale: float = 1.0
    turn: float = 0.0  # radians, clockwise
    mirror: int = 1  # -1 swaps left and right

    @property
    def unit(self) -> int:
        return min(self.image.size)

    @property
    def width(self) -> float:
        return self.image.width / self.unit

    @property
    def height(self) -> float:
        return self.image.height / self.unit

    def at(self, x: float, y: float, scale: float, turn: float = 0.0, mirror: int = 1) -> Canvas:
        """The same paper with its own coordinates: (0, 0) is at (x, y) of the paper, one unit is `scale` long."""
        return replace(self, origin=(x, y), scale=scale, turn=turn, mirror=mirror)

    def turned(self, angle: float) -> Canvas:
        return replace(self, turn=self.turn + angle)

    def mirrored(self, mirror: int) -> Canvas:
        return replace(self, mirror=mirror)

    def shape(
        self, outline: Points, paint: Colour | Image.Image, light: float = 0.0, opacity: float = 1.0, blur: float = 0.0
    ) -> None:
        """Fills an outline with a colour or with a picture as large as the canvas.

        `light` in [0, 1] shades the shape as if it were round; `blur` is in the canvas's own units.
        """
        points = (outline * (self.mirror, 1) @ rotation(self.turn) * self.scale + self.origin) * self.unit
        low, high = points.min(axis=0), points.max(axis=0)
        soft = float(blur * self.scale * self.unit)
        margin = 1 + 2.5 * soft
        left, top = (max(0, math.floor(v - margin)) for v in low)
        right, bottom = (min(n, math.ceil(v + margin)) for n, v in zip(self.image.size, high, strict=True))
        if right <= left or bottom <= top:
            return
        mask = Image.new("L", (2 * (right - left), 2 * (bottom - top)))  # twice as fine, for smooth edges
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
        """Lays a colour or a picture over everything, `amount` in [0, 1] at each pixel."""
        mask = Image.fromarray((amount * 255).clip(0, 255).astype(np.uint8))
        self.image.paste(paint if isinstance(paint, Image.Image) else rgb(paint), (0, 0), mask)

    def gradient(self, stops: Sequence[Colour], top: float = 0.0, bottom: float | None = None) -> Image.Image:
        """A picture that runs evenly through `stops` between two heights."""
        ends = np.linspace(top, self.height if bottom is None else bottom, len(stops))
        rows = np.arange(self.image.height) / self.unit
        column = np.stack([np.interp(rows, ends, channel) for channel in np.array(stops).T], axis=-1)
        return Image.fromarray(column.astype(np.uint8)[:, None]).resize(self.image.size, Image.Resampling.NEAREST)

    def grid(self, turn: float = 0.0) -> tuple[Field, Field]:
        """The x and y of every pixel, in axes turned about the corner."""
        y, x = np.mgrid[: self.image.height, : self.image.width].astype(np.float32) / np.float32(self.unit)
        cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
        return x * cos + y * sin, y * cos - x * sin

    def noise(self, rng: Generator, cells: float, octaves: int = 4, stretch: float = 1.0) -> Field:
        """Fractal noise in [0, 1], about `cells` blotches a unit, each `stretch` times wider than high."""
        size = (self.image.width // 2, self.image.height // 2)
        total = np.zeros(size[::-1], np.float32)
        for octave in range(octaves):
            across = max(2, round(cells * 2**octave * self.width / math.sqrt(stretch)))
            down = max(2, round(cells * 2**octave * self.height * math.sqrt(stretch)))
            coarse = Image.fromarray(rng.random((down, across), dtype=np.float32))
            total += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) / 2**octave
        total = (total - total.min()) / (total.max() - total.min())
        return np.asarray(Image.fromarray(total).resize(self.image.size, Image.Resampling.BILINEAR))


def rounded(patch: Image.Image, u: Field, v: Field, towards: float, amount: float) -> Image.Image:
    """A patch lit as a ball would be: brighter around (towards, -0.45), darker away from it; u, v in [-1, 1]."""
    far = np.sqrt(((u - towards) ** 2)[None] + ((v + 0.45) ** 2)[:, None])
    gain = (amount * (0.62 - far)).clip(-0.85, 0.6)[..., None].astype(np.float32)
    pixels = np.asarray(patch, dtype=np.float32)
    pixels = pixels * (1 + np.minimum(gain, 0)) + (255 - pixels) * np.maximum(gain, 0)
    return Image.fromarray(pixels.astype(np.uint8))


def lit(paint: Colour | Image.Image, gain: Field) -> Image.Image:
    """A colour or a picture with each pixel multiplied by `gain`."""
    pixels = np.asarray(paint, dtype=np.float32) * gain.astype(np.float32)[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def relief(height: Field, depth: float, step: int = 4) -> Field:
    """The brightness, around 1, of a surface of that height lit from the upper left."""
    beyond = np.pad(height, ((0, step), (0, step)), mode="reflect")[step:, step:]
    return 1 + np.float32(depth) * (height - beyond)


def ramp(values: Field, *stops: Colour) -> Image.Image:
    """A picture from a field in [0, 1] that runs evenly through `stops`."""
    places = np.linspace(0, 255, len(stops))
    table = np.stack([np.interp(np.arange(256), places, channel) for channel in np.array(stops).T], axis=-1)
    return Image.fromarray(table.astype(np.uint8)[(values * 255).clip(0, 255).astype(np.uint8)])


def pick(rng: Generator, *options: T) -> T:
    return options[int(rng.integers(len(options)))]


def rgb(colour: Colour) -> tuple[int, int, int]:
    return round(colour[0]), round(colour[1]), round(colour[2])


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """A colour from its hue (a circle: 1 is 0 again), saturation and value, the last two cut to [0, 1]."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(1, max(0, saturation)), min(1, max(0, value)))
    return red * 255, green * 255, blue * 255


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """`share` of the other colour, the rest of the one."""
    red, green, blue = (a + (b - a) * share for a, b in zip(one, other, strict=True))
    return red, green, blue


def rotation(angle: float) -> Points:
    """The matrix that turns points, as rows, clockwise on the paper."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])


def path(text: str) -> Points:
    """The points of "x y, x y, ...", given in hundredths."""
    return np.array([point.split() for point in text.split(",")], dtype=np.float64) / 100


def both(half: Points) -> Points:
    """The right half of an outline, from top to bottom, with its mirror image."""
    return np.concatenate([half, half[::-1] * (-1, 1)])


def box(left: float, top: float, right: float, bottom: float) -> Points:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def oval(x: float, y: float, across: float, down: float, turn: float = 0.0) -> Points:
    """An ellipse about (x, y) by its two radii."""
    angle = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    return np.stack([across * np.cos(angle), down * np.sin(angle)], axis=-1) @ rotation(turn) + (x, y)


def curve(points: ArrayLike, closed: bool = True) -> Points:
    """A smooth line through the points (a Catmull-Rom spline), eight steps from one to the next."""
    knots = np.asarray(points, dtype=np.float64)
    p = np.concatenate([knots[-1:], knots, knots[:2]] if closed else [knots[:1], knots, knots[-1:]])
    t = np.linspace(0, 1, 8, endpoint=False)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    smooth = (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * (b - c) + d - a) * t**3) / 2
    return smooth.reshape(-1, 2) if closed else np.concatenate([smooth.reshape(-1, 2), knots[-1:]])


def ribbon(points: ArrayLike, start: float, end: float | None = None) -> Points:
    """The outline of an open path drawn with a pen of width `start`, running to `end`."""
    line = np.asarray(points, dtype=np.float64)
    along = np.gradient(line, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=-1) / np.maximum(np.hypot(*along.T), 1e-9)[:, None]
    side = normal * np.linspace(start / 2, (start if end is None else end) / 2, len(line))[:, None]
    return np.concatenate([line + side, (line - side)[::-1]])


def ridge(c: Canvas, rng: Generator, level: float, rise: float, bumps: int, octaves: int) -> Points:
    """Everything below a skyline that rises up to `rise` above `level`."""
    x = np.linspace(-0.05, c.width + 0.05, 180)
    heights = np.zeros_like(x)
    for octave in range(octaves):
        knots = np.linspace(x[0], x[-1], bumps * 2**octave + 1)
        heights += np.interp(x, knots, rng.random(len(knots))) / 2**octave
    heights = (heights - heights.min()) / (heights.max() - heights.min())
    line = np.stack([x, level - rise * heights], axis=-1)
    return np.concatenate([line, [[x[-1], c.height + 0.1], [x[0], c.height + 0.1]]])


def spread(c: Canvas, rng: Generator, most: int, size: float, top: float = 0.0) -> list[tuple[float, float, float]]:
    """Places (x, y, size) below `top` for one to `most` objects that hardly overlap; those in front, lower, last."""
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
