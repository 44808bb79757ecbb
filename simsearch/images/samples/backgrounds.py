"""Backgrounds of the sample pictures."""

from __future__ import annotations

from numpy.random import Generator

from simsearch.images.samples.canvas import Canvas
from simsearch.images.samples.colours import BLACK, WHITE, Colour, hsv, lit, mix, ramp, relief
from simsearch.images.samples.outlines import box, oval


def sky(c: Canvas, rng: Generator, hue: float, level: float, cloud: float = 2.5) -> None:
    """Draws a daytime sky with some clouds, pale at the horizon.

    level: the y of the horizon, where the sky ends. cloud: how dense the clouds are.
    """
    zenith = hsv(hue, rng.uniform(0.25, 0.7), rng.uniform(0.7, 0.97))
    c.image.paste(c.gradient([zenith, hsv(hue - 0.03, 0.12, 0.98)], 0, level))
    c.cover((c.noise(rng, 3, 4, stretch=3) - 0.57) * cloud, WHITE)


def backdrop(c: Canvas, rng: Generator, hue: float) -> float:
    """Draws one of four backgrounds in a hue: a studio, a table before a wall, blurred lights, or plaster.

    Returns the least y at which an object can stand: the edge of the table, or 0 for the other backgrounds.
    """
    hue += rng.uniform(-0.06, 0.06)
    pale, deep = hsv(hue, rng.uniform(0.05, 0.4), rng.uniform(0.7, 0.97)), hsv(hue, 0.45, rng.uniform(0.25, 0.6))
    style = int(rng.integers(4))
    if style == 0:
        c.image.paste(c.gradient([mix(pale, deep, 0.35), pale, pale, mix(pale, deep, 0.25)]))
    elif style == 1:
        level, value = c.height * rng.uniform(0.45, 0.6), rng.uniform(0.45, 0.95)
        c.image.paste(c.gradient([mix(pale, deep, 0.2), pale]))
        board = ramp(c.noise(rng, 18, 3, stretch=50), hsv(0.09, 0.45, value), hsv(0.06, 0.6, value * 0.65))
        c.shape(box(-1, level, 3, 3), board)
        c.shape(box(-1, level - 0.01, 3, level + 0.03), BLACK, opacity=0.35, blur=0.012)
        return level
    elif style == 2:
        c.image.paste(c.gradient([deep, mix(deep, pale, 0.3), mix(deep, BLACK, 0.4)]))
        lights(c, rng, mix(pale, hsv(hue, 0.5, 1), 0.6), int(rng.integers(12, 26)), 0.4)
    else:
        c.image.paste(lit(ramp(c.noise(rng, 3, 5), mix(pale, deep, 0.25), pale), relief(c.noise(rng, 20, 3), 0.3)))
    return 0.0


def lights(c: Canvas, rng: Generator, colour: Colour, count: int, most: float) -> None:
    """Draws discs of light, like bright spots far out of focus. most: the largest opacity of a disc."""
    for _ in range(count):
        size = rng.uniform(0.03, 0.13)
        spot = oval(rng.uniform(0, c.width), rng.uniform(0, c.height), size, size)
        c.shape(spot, colour, opacity=rng.uniform(0.1, most), blur=0.012)


def meadow(c: Canvas, rng: Generator) -> None:
    """Draws a blurred green background, like a meadow out of focus."""
    hue = rng.uniform(0.18, 0.42)
    greens = hsv(hue + 0.05, 0.7, 0.16), hsv(hue, 0.6, rng.uniform(0.35, 0.6)), hsv(hue - 0.06, 0.5, 0.85)
    c.image.paste(ramp(c.noise(rng, rng.uniform(2, 4), 3), *greens))
    lights(c, rng, hsv(hue - 0.08, 0.3, 1), int(rng.integers(0, 14)), 0.25)


def shadow(c: Canvas, y: float, across: float, down: float) -> None:
    c.shape(oval(-0.12 * c.light * c.mirror, y, across, down), BLACK, opacity=0.45, blur=down * 0.5)
