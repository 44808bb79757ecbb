"""Textures of the sample pictures. Each function fills a canvas with one pattern."""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator
from PIL import Image

from simsearch.images.samples.canvas import Canvas
from simsearch.images.samples.colours import BLACK, WHITE, Colour, Field, hsv, lit, mix, pick, ramp, relief


def bricks(c: Canvas, rng: Generator) -> None:
    x, y = c.grid(rng.normal(0, 0.03))
    tall = rng.uniform(0.07, 0.16)
    wide, joint = tall * rng.uniform(2, 2.8), rng.uniform(0.08, 0.14)
    v = y / tall + 50 + rng.random()
    row = np.floor(v)
    u = x / wide + (row % 2) / 2 + 50 + rng.random()
    tone = rng.random((199, 199))[row.astype(int) % 199, np.floor(u).astype(int) % 199]
    rough = c.noise(rng, 14, 4)
    clays = ((0.02, 0.6, 0.6), (0.04, 0.55, 0.7), (0.09, 0.35, 0.78), (0.0, 0.55, 0.42), (0.06, 0.1, 0.6))
    hue, depth, value = pick(rng, *clays)
    tones = hsv(hue, depth * 1.15, value * 0.6), hsv(hue, depth, value), hsv(hue + 0.02, depth * 0.8, value * 1.2)
    c.image.paste(lit(ramp(0.6 * tone + 0.4 * rough, *tones), relief(rough, 1.2, 2)))
    u, v = u % 1, v % 1
    edge = np.minimum(np.minimum(u, 1 - u) * (wide / tall), np.minimum(v, 1 - v)) + 0.06 * (rough - 0.5)
    c.cover((joint / 2 - edge) * 30, hsv(0.1, 0.08, pick(rng, 0.4, 0.72, 0.85)))


def folds(c: Canvas, rng: Generator, depth: float) -> Field:
    """Returns factors (H, W) around 1: the brightness of cloth in soft folds. depth: how much the brightness varies."""
    return relief(c.noise(rng, rng.uniform(1.2, 2.5), 2, stretch=rng.uniform(0.3, 3)), depth, 10)


def checkerboard(c: Canvas, rng: Generator) -> None:
    x, y = c.grid(rng.uniform(0, math.pi / 2))
    bend, wave = rng.uniform(0, 0.12), math.pi / rng.uniform(0.08, 0.2)
    x, y = x + bend * c.noise(rng, 1.5, 1), y + bend * c.noise(rng, 1.5, 1)
    check = np.sin(x * wave) * np.sin(y * wave) * 14 + 0.5
    dark = hsv(rng.random(), rng.uniform(0.5, 0.9), rng.uniform(0.15, 0.7)) if rng.random() < 0.6 else BLACK
    c.image.paste(lit(ramp(check, dark, mix(dark, WHITE, rng.uniform(0.85, 1))), folds(c, rng, 2.5)))


def tartan(c: Canvas, rng: Generator) -> None:
    x, y = c.grid(pick(rng, 0.0, math.pi / 4, rng.uniform(-0.2, 0.2)))
    hue = pick(rng, 0.0, 0.33, 0.6, 0.1, 0.8) + rng.uniform(-0.04, 0.04)
    sett = np.empty((64, 3))  # the colour of each thread in half of the pattern; the other half mirrors it
    sett[:] = hsv(hue, rng.uniform(0.6, 0.85), rng.uniform(0.35, 0.65))
    sett[: int(rng.integers(14, 26))] = hsv(hue + pick(rng, 0.33, 0.5, 0.62), 0.7, 0.22)
    for colour in (pick(rng, WHITE, hsv(0.14, 0.8, 0.95)), hsv(hue + 0.5, 0.6, 0.85), BLACK):
        thread = int(rng.integers(0, 60))
        sett[thread : thread + int(rng.integers(1, 5))] = colour
    sett = np.concatenate([sett, sett[::-1]])
    size = 128 / rng.uniform(0.28, 0.6)
    warp, weft = (sett[(axis * size).astype(int) % 128] for axis in (x, y))
    twill = np.where(((x + y) * 110) % 1 < 0.5, 0.75, 0.25)[..., None]
    c.image.paste(lit(Image.fromarray((warp * twill + weft * (1 - twill)).astype(np.uint8)), folds(c, rng, 2.0)))


def dots(c: Canvas, rng: Generator) -> None:
    x, y = c.grid(rng.uniform(0, math.pi / 2))
    hue, step = rng.random(), rng.uniform(0.12, 0.27)
    ground = hsv(hue, rng.uniform(0.35, 0.85), rng.uniform(0.4, 0.95))
    spot = pick(rng, WHITE, WHITE, hsv(hue + rng.uniform(0.3, 0.7), 0.65, rng.uniform(0.3, 1)))
    if rng.random() < 0.35:
        ground, spot = spot, ground
    u = x / step
    v = y / step + 0.5 * (np.floor(u) % 2)
    inside = rng.uniform(0.22, 0.36) - np.hypot(u % 1 - 0.5, v % 1 - 0.5)
    c.image.paste(lit(ramp(inside * step * 200 + 0.5, ground, spot), folds(c, rng, 2.0)))


def wood(c: Canvas, rng: Generator) -> None:
    upright = pick(rng, False, True)
    _, y = c.grid((math.pi / 2 if upright else 0.0) + rng.normal(0, 0.02))
    hue, value, wide = rng.uniform(0.045, 0.1), rng.uniform(0.35, 0.9), rng.uniform(0.2, 0.6)
    plank = np.floor(y / wide + 20 + rng.random()).astype(int)
    shift = rng.uniform(-9, 9, 97)[plank % 97]
    warp = c.noise(rng, 1.6, 2, stretch=1 / 5 if upright else 5)
    rings = (y * rng.uniform(9, 16) + shift + warp * rng.uniform(3, 6)) % 1
    fibre = c.noise(rng, 22, 3, stretch=1 / 60 if upright else 60)
    grain = 0.55 * rings**1.7 + 0.45 * fibre + 0.02 * shift
    pale, deep = hsv(hue + 0.02, 0.45, value * 1.15), hsv(hue - 0.01, 0.7, value * 0.5)
    c.image.paste(ramp(grain, pale, hsv(hue, 0.6, value), deep))
    seam = (np.diff(plank, axis=0, prepend=plank[:1]) != 0) | (np.diff(plank, axis=1, prepend=plank[:, :1]) != 0)
    c.cover((seam | np.roll(seam, 1, int(upright))) * 0.75, hsv(hue, 0.7, 0.12))


def marble(c: Canvas, rng: Generator) -> None:
    stones: tuple[tuple[Colour, Colour], ...] = (
        ((238, 236, 232), (110, 112, 122)),
        ((240, 226, 216), (150, 100, 84)),
        ((46, 96, 78), (206, 226, 212)),
        ((40, 40, 46), (216, 206, 190)),
        ((226, 200, 192), (134, 78, 82)),
        ((196, 206, 216), (70, 84, 104)),
    )
    ground, vein = pick(rng, *stones)
    x, _ = c.grid(rng.uniform(0, math.pi))
    swirl, drift = c.noise(rng, rng.uniform(1.2, 2), 5), c.noise(rng, 2, 4)
    c.image.paste(ramp(c.noise(rng, 2, 5), mix(ground, vein, 0.35), ground, mix(ground, WHITE, 0.25)))
    for count, warp, sharp, strength in ((rng.uniform(3, 5), 4, 1.6, 0.5), (rng.uniform(5, 9), 5, 7.0, 0.9)):
        band = np.abs(np.sin(x * count + swirl * warp + rng.uniform(0, 6)))
        c.cover((1 - band * sharp).clip(0, 1) * strength * (1.6 * drift).clip(0, 1), vein)
        swirl, drift = swirl + 0.3 * drift, 1 - drift


def zebra(c: Canvas, rng: Generator) -> None:
    x, y = c.grid(rng.uniform(-0.6, 0.6) + pick(rng, 0.0, 0.0, math.pi / 2))
    warp = c.noise(rng, rng.uniform(1.0, 1.8), 2)
    wave = np.sin(x * rng.uniform(18, 34) + warp * rng.uniform(7, 12) + y * rng.uniform(-3, 3))
    edge = wave * 3.2 + 2.2 * (c.noise(rng, 40, 2, stretch=0.3) - 0.5) + rng.uniform(0.1, 0.9)
    white = hsv(rng.uniform(0.08, 0.13), rng.uniform(0.02, 0.16), rng.uniform(0.88, 0.98))
    fur = relief(c.noise(rng, 30, 2, stretch=0.25), 0.35, 2) * folds(c, rng, 1.5)
    c.image.paste(lit(ramp(edge, hsv(0.07, 0.25, rng.uniform(0.06, 0.16)), white), fur))
