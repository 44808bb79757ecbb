"""Scenes of the sample pictures. Each function fills a canvas with a picture of one kind."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from simsearch.images.samples.backgrounds import sky
from simsearch.images.samples.canvas import Canvas, ridge, spread
from simsearch.images.samples.colours import BLACK, WHITE, Colour, hsv, lit, mix, pick, ramp, relief, rgb
from simsearch.images.samples.outlines import Points, both, box, curve, oval, path


def reflect(c: Canvas, rng: Generator, level: float, water: Colour, dim: float) -> None:
    """Draws rippled water below `level`, which mirrors the picture above it.

    dim: the share of the colour `water` in the mirrored colours, from 0 to 1.
    """
    first = round(level * c.unit)
    if first >= c.image.height:
        return
    depth = np.arange(c.image.height - first)[:, None]
    ripple = c.noise(rng, 8, 3, stretch=30)[first:] - 0.5
    source = first - 1 - depth + (ripple * (6 + depth * 0.35)).astype(np.int64)
    mirrored = np.asarray(c.image)[source.clip(0, first - 1), np.arange(c.image.width)[None]] * (1 - dim)
    mirrored = (mirrored + np.array(water) * dim) * (1 + 0.5 * ripple)[..., None]
    c.image.paste(Image.fromarray(mirrored.clip(0, 255).astype(np.uint8)), (0, first))


def sunset(c: Canvas, rng: Generator) -> None:
    hue, level = rng.uniform(-0.05, 0.035), rng.uniform(0.5, 0.75) * c.height
    x, y = c.grid()
    dusk, rose, gold = hsv(0.68 + hue, 0.6, rng.uniform(0.2, 0.5)), hsv(0.96 + hue, 0.6, 0.8), hsv(0.1 + hue, 0.75, 1)
    c.image.paste(c.gradient([dusk, hsv(0.8 + hue, 0.45, 0.55), rose, hsv(0.05 + hue, 0.8, 0.97), gold], 0, level))
    streaks = c.noise(rng, rng.uniform(3, 5), 4, stretch=14)
    c.cover((streaks - rng.uniform(0.45, 0.65)) * 3, mix(rose, dusk, rng.uniform(0, 0.9)))
    sun_x, sun_y = rng.uniform(0.2, 0.8) * c.width, level - rng.uniform(-0.04, 0.24)
    radius = rng.uniform(0.05, 0.14)
    c.cover(np.exp(-np.hypot(x - sun_x, y - sun_y) / rng.uniform(0.12, 0.3)) * 0.9, gold)
    c.shape(oval(sun_x, sun_y, radius, radius), hsv(0.14 + hue, 0.3, 1))
    c.shape(box(-1, level, 3, 3), c.gradient([hsv(0.04 + hue, 0.65, 0.72), hsv(0.8 + hue, 0.5, 0.3), dusk], level))
    waves = c.noise(rng, 9, 3, stretch=40)
    c.cover((y > level) * (waves - 0.5) * 1.6, hsv(0.75 + hue, 0.6, 0.2))
    glitter = np.exp(-(((x - sun_x) / (radius + 0.35 * (y - level).clip(0, 1))) ** 2))
    c.cover((y > level) * glitter * (1.4 - 2.2 * np.abs(waves - 0.4)), hsv(0.11 + hue, 0.55, 1))
    if rng.random() < 0.5:
        side = pick(rng, -1, 1)
        cape = c.at(0 if side > 0 else c.width, level, rng.uniform(0.7, 1.3), mirror=side)
        cape.shape(curve(path("-30 2, -20 -9, 10 -13, 30 -6, 50 -2, 62 0, 20 2")), hsv(0.8 + hue, 0.5, 0.14))


def mountains(c: Canvas, rng: Generator) -> None:
    top, rise = rng.uniform(0.58, 0.72) * c.height, rng.uniform(0.35, 0.5) * c.height
    haze, rock = hsv(rng.uniform(0.55, 0.64), rng.uniform(0.1, 0.3), 0.95), hsv(rng.uniform(0.55, 0.72), 0.2, 0.36)
    sky(c, rng, rng.uniform(0.57, 0.62), top)
    _, y = c.grid()
    crags = c.noise(rng, 4, 6)
    frost = ((y - top + rise) / rise + 1.1 * (crags - 0.5) - rng.uniform(0.3, 0.75)) * 2.2 + 0.5
    slopes = lit(ramp(frost, WHITE, WHITE, WHITE, rock, rock, mix(rock, haze, 0.35)), relief(crags, 4.0))
    c.shape(ridge(c, rng, top, rise, int(rng.integers(3, 6)), 6), slopes)
    green = hsv(rng.uniform(0.22, 0.42), rng.uniform(0.3, 0.55), rng.uniform(0.2, 0.4))
    count = int(rng.integers(1, 4))
    for near in np.linspace(1 / count, 1, count):
        hill = ridge(c, rng, top + (0.08 + 0.2 * near) * c.height, rng.uniform(0.1, 0.2), int(rng.integers(2, 5)), 5)
        c.shape(hill, lit(mix(haze, green, 0.35 + 0.65 * float(near)), relief(crags, 1.2)))
    if rng.random() < 0.4:  # a lake at their feet
        reflect(c, rng, rng.uniform(0.82, 0.9) * c.height, mix(rock, haze, 0.4), 0.4)


def fir(rng: Generator, tiers: int = 8) -> Points:
    """Returns the outline of a conifer, one unit high, with its foot at (0, 0)."""
    half = np.linspace(0.03, rng.uniform(0.2, 0.28), tiers) * rng.uniform(0.85, 1.15, tiers)
    y = np.linspace(-0.94, -0.1, tiers)
    branches = np.stack([half, y, half * 0.55, y - 0.02], axis=-1).reshape(-1, 2)  # out to a tip and in again
    return both(np.concatenate([[[0, -1]], branches, [[0.025, -0.1], [0.025, 0]]]))


def forest(c: Canvas, rng: Generator) -> None:
    hue, size = rng.uniform(0.18, 0.46), rng.uniform(0.75, 1.3)
    mist, dark = hsv(hue - 0.03, rng.uniform(0.08, 0.3), rng.uniform(0.7, 0.95)), hsv(hue, 0.6, rng.uniform(0.1, 0.24))
    c.image.paste(c.gradient([mix(mist, WHITE, 0.4), mist, mix(mist, dark, 0.3)]))
    if rng.random() < 0.4:
        c.shape(oval(rng.uniform(0, c.width), rng.uniform(0.1, 0.3), 0.12, 0.12), (255, 250, 222), blur=0.05)
    rows = int(rng.integers(3, 5))
    for row in range(rows):
        near = (row + 1) / rows
        foot, colour = c.height * (0.5 + 0.55 * near), mix(mist, dark, near**0.8)
        for x in np.arange(-0.05, c.width + 0.05, (0.085 + 0.11 * near) * size):
            tall = rng.uniform(0.75, 1.15) * (0.35 + 0.5 * near) * size
            tree = c.at(x + rng.normal(0, 0.04), foot + rng.normal(0, 0.03), tall)
            tree.shape(fir(rng), mix(colour, hsv(hue + rng.normal(0, 0.03), 0.7, 0.4), rng.uniform(0, 0.3)), light=0.3)
        c.shape(box(-1, foot - 0.03, 3, 3), colour, opacity=0.8, blur=0.02)
        c.cover((c.noise(rng, 2, 2, stretch=6) - 0.5) * (0.9 - 0.8 * near), mist)


def skyline(c: Canvas, rng: Generator) -> None:
    hue, ground = rng.uniform(0.55, 0.8), rng.uniform(0.66, 0.95) * c.height
    glow = hsv(pick(rng, hue, 0.9, 0.05), rng.uniform(0.4, 0.7), rng.uniform(0.5, 0.9))
    c.image.paste(c.gradient([hsv(hue, 0.8, 0.14), hsv(hue, 0.7, 0.34), glow], 0, ground))
    if rng.random() < 0.6:
        moon = c.at(rng.uniform(0.1, 0.9) * c.width, rng.uniform(0.08, 0.2), rng.uniform(0.04, 0.08))
        moon.shape(oval(0, 0, 2, 2), WHITE, opacity=0.25, blur=1)
        moon.shape(oval(0, 0, 1, 1), (245, 240, 220))
    for layer, shade in enumerate((0.26, 0.17, 0.09)):
        x = rng.uniform(-0.1, 0)
        while x < c.width:
            wide, tall = rng.uniform(0.08, 0.2), ground * rng.uniform(0.2, 0.85 - 0.18 * layer)
            colour = hsv(hue + rng.uniform(-0.03, 0.03), 0.5, shade)
            c.shape(box(x, ground - tall, x + wide, ground), colour)
            if rng.random() < 0.25:
                c.shape(box(x + wide * 0.46, ground - tall - rng.uniform(0.04, 0.1), x + wide * 0.54, ground), colour)
            windows(c, rng, (x, ground - tall), (wide, tall), 0.4 + 0.27 * layer)
            x += wide + rng.uniform(-0.02, 0.05)
    reflect(c, rng, ground, hsv(hue, 0.7, 0.12), 0.5)


def windows(c: Canvas, rng: Generator, corner: tuple[float, float], size: tuple[float, float], bright: float) -> None:
    """Draws lit windows on a tower block.

    corner: the block's upper left corner. size: its width and height. bright: the brightness of the windows.
    """
    pen, step = ImageDraw.Draw(c.image), rng.uniform(0.011, 0.016)
    share, hue = rng.uniform(0.25, 0.7), rng.uniform(0.09, 0.15)
    for y in np.arange(corner[1] + step, corner[1] + size[1] - step, step * 2) * c.unit:
        for x in np.arange(corner[0] + step, corner[0] + size[0] - step * 1.3, step * 1.9) * c.unit:
            if rng.random() < share:
                colour = rgb(hsv(hue, rng.uniform(0.2, 0.7), bright * rng.uniform(0.5, 1.2)))
                pen.rectangle((x, y, x + step * c.unit, y + step * 1.2 * c.unit), fill=colour)


def beach(c: Canvas, rng: Generator) -> None:
    level, hue = rng.uniform(0.25, 0.42) * c.height, rng.uniform(0.46, 0.54)
    x, y = c.grid()
    sky(c, rng, 0.58, level, 3)
    sea = [hsv(hue + 0.07, 0.85, rng.uniform(0.45, 0.65)), hsv(hue, 0.65, 0.85), hsv(hue - 0.03, 0.3, 0.92)]
    c.shape(box(-1, level, 3, 3), c.gradient(sea, level, c.height * 0.75))
    c.cover((y > level) * (c.noise(rng, 7, 3, stretch=25) - 0.55) * 1.5, WHITE)
    sand = hsv(rng.uniform(0.08, 0.13), rng.uniform(0.2, 0.42), rng.uniform(0.85, 0.97))
    shore = rng.uniform(0.6, 0.75) * c.height + rng.uniform(-0.35, 0.35) * (x - c.width / 2)
    shore += rng.uniform(0.02, 0.05) * np.sin(x * rng.uniform(4, 8) + rng.uniform(0, 6))
    edge = y - shore - 0.05 * (c.noise(rng, 6, 3) - 0.5)
    c.cover((edge + 0.07) * 60, WHITE)  # foam, then wet sand, then dry
    c.cover((edge + 0.03) * 40, mix(sand, (110, 90, 70), 0.35))
    c.cover((y - shore - 0.04) * 12, sand)
    c.cover((y > shore) * 1.0, lit(c.image, relief(c.noise(rng, 12, 4), 0.9)))
    for _ in range(int(rng.integers(0, 3))):
        parasol = c.at(rng.uniform(0.15, 0.85) * c.width, c.height * 0.93, rng.uniform(0.25, 0.45))
        parasol.shape(oval(0.25, 0, 0.5, 0.06), (90, 70, 50), opacity=0.4, blur=0.03)
        parasol = parasol.turned(rng.uniform(-0.25, 0.25))
        parasol.shape(box(-0.018, -0.95, 0.018, 0.02), (235, 230, 220))
        gores(parasol, (0.6, -0.6, 0.4), hsv(rng.random(), 0.75, 0.9), WHITE)


def gores(c: Canvas, size: tuple[float, float, float], one: Colour, other: Colour) -> None:
    """Draws a parasol's canopy in panels of two colours.

    size: half its width, the y of its rim, and its height above the rim.
    """
    half, rim, rise = size
    t = np.linspace(0, math.pi / 2, 14)
    across = np.sin(np.linspace(-math.pi / 2, math.pi / 2, 7))
    seams = [np.stack([s * half * np.sin(t), rim - rise * np.cos(t)], axis=-1) for s in across]
    for index, (left, right) in enumerate(pairwise(seams)):
        scallop = (left[-1:] + right[-1:]) / 2 - (0, 0.07 * half)
        shade = 0.12 * abs(index - 2.5 - 1.5 * c.light)
        colour = mix(one if index % 2 else other, BLACK, shade)
        c.shape(np.concatenate([left, scallop, right[::-1]]), colour, light=0.15)


def desert(c: Canvas, rng: Generator) -> None:
    hue, level = rng.uniform(0.04, 0.12), rng.uniform(0.25, 0.55) * c.height
    day = hsv(pick(rng, 0.58, 0.58, hue), 0.55, rng.uniform(0.6, 0.95))
    c.image.paste(c.gradient([day, hsv(hue, 0.2, 0.98)], 0, level + 0.1))
    if rng.random() < 0.4:
        c.shape(oval(rng.uniform(0.1, 0.9) * c.width, level * rng.uniform(0.3, 0.7), 0.06, 0.06), (255, 244, 214))
    x, y = c.grid()
    ripples = c.noise(rng, 5, 2, stretch=8)
    fine = np.sin(ripples * 16 + y * rng.uniform(150, 220) + 0.3 * x)
    for near in np.linspace(0, 1, int(rng.integers(2, 5))):
        pale, deep = hsv(hue + 0.02, 0.45 + 0.2 * near, 0.96), hsv(hue, 0.8, 0.42 + 0.12 * near)
        angle = rng.uniform(1.5, 4) * x + rng.uniform(0, 6)
        swell = (0.06 + 0.1 * near) * np.abs(np.sin(angle[0])) + 0.02 * np.sin(rng.uniform(4, 7) * x[0])
        below = y - (level + near * 0.45 * c.height - swell)
        crest = (np.sin(2 * angle + c.light * 6 * below) * 0.5 + 0.5) * np.exp(-3.5 * below.clip(0, 2))
        sand = ramp(0.15 + 0.75 * crest + 0.12 * ripples, pale, mix(pale, deep, 0.35), deep)
        c.cover(below * c.unit * 0.6, lit(sand, 1 + 0.06 * near * fine))


def snow(c: Canvas, rng: Generator) -> None:
    hue, level = rng.uniform(0.53, 0.68), rng.uniform(0.4, 0.65) * c.height
    dull = hsv(hue, rng.uniform(0.1, 0.5), rng.uniform(0.45, 0.85))
    c.image.paste(c.gradient([dull, hsv(hue, 0.06, 0.92)], 0, level))
    drifts = relief(c.noise(rng, 2, 4, stretch=4), 1.6, 8)
    white = lit(c.gradient([hsv(hue, 0.09, 0.92), hsv(hue, 0.02, 1), hsv(hue, 0.16, 0.86)], level), drifts)
    c.shape(ridge(c, rng, level, rng.uniform(0.04, 0.16), 3, 3), mix(hsv(hue, 0.2, 0.6), WHITE, 0.4))
    c.shape(ridge(c, rng, level + 0.08, 0.1, 2, 2), white)
    for foot in np.sort(rng.uniform(level + 0.06, c.height * 0.98, int(rng.integers(2, 10)))):
        tree = c.at(rng.uniform(0, c.width), foot, rng.uniform(0.2, 0.3) + 0.5 * (foot - level))
        tree.shape(oval(0.15, 0, 0.3, 0.05), hsv(hue, 0.4, 0.5), opacity=0.5, blur=0.02)
        branches, dark = fir(rng, 6), hsv(rng.uniform(0.35, 0.5), 0.4, rng.uniform(0.18, 0.3))
        tree.shape(branches, dark)
        tree.shape(branches * (0.8, 0.92) - (0, 0.075), hsv(hue, 0.05, 0.97), light=0.25)
        tree.shape(branches * (0.55, 0.8) - (0, 0.06), mix(dark, WHITE, 0.25), opacity=0.55)
    for _ in range(int(rng.integers(0, 160))):
        size = rng.uniform(0.003, 0.009)
        c.shape(oval(rng.uniform(0, c.width), rng.uniform(0, c.height), size, size), WHITE, opacity=0.85)


def clouds(c: Canvas, rng: Generator) -> None:
    deep = hsv(rng.uniform(0.53, 0.63), rng.uniform(0.45, 0.8), rng.uniform(0.55, 0.95))
    c.image.paste(c.gradient([deep, mix(deep, WHITE, rng.uniform(0.2, 0.6))]))
    puffs = c.noise(rng, rng.uniform(1.5, 3), 6, stretch=rng.uniform(1, 2.5))
    thick = ((puffs - rng.uniform(0.38, 0.55)) * 4).clip(0, 1)
    grey = mix(mix(deep, WHITE, rng.uniform(0.4, 0.7)), (150, 150, 160), rng.uniform(0, 0.6))
    shade = c.noise(rng, 2, 3, stretch=2) * 0.5 + (1 - puffs) * 0.7
    c.cover(thick, lit(ramp(shade, grey, mix(grey, WHITE, 0.6), WHITE, WHITE), relief(puffs, 0.7, 12)))


def sailboat(c: Canvas, rng: Generator) -> None:
    level, hue = c.height * rng.uniform(0.58, 0.75), rng.uniform(0.5, 0.64)
    sky(c, rng, hue, level)
    if rng.random() < 0.6:
        c.shape(ridge(c, rng, level, rng.uniform(0.04, 0.14), 3, 4), hsv(rng.uniform(0.3, 0.6), 0.3, 0.6))
    for x, _, size in spread(c, rng, 3, 0.5):
        cloth = pick(rng, WHITE, WHITE, hsv(pick(rng, 0.0, 0.08, 0.6, 0.13), 0.75, 0.9))
        boat = c.at(x, level - 0.03 * size, size * 1.05, rng.normal(0, 0.05), pick(rng, -1, 1))
        boat.shape(box(-0.02, -1.25, 0.015, -0.1), (90, 66, 44))
        boat.shape(curve(path("3 -120, 34 -70, 62 -24, 30 -20, 4 -22")), cloth, light=0.35)
        jib = curve(path("-5 -112, -25 -70, -52 -24, -30 -22, -6 -24"))
        boat.shape(jib, mix(cloth, hsv(0.58, 0.3, 0.7), 0.25), light=0.35)
        hull = hsv(pick(rng, 0.0, 0.6, 0.08, 0.1), pick(rng, 0.08, 0.7), rng.uniform(0.3, 0.9))
        boat.shape(path("-62 -14, 72 -16, 50 8, -48 8"), hull, light=0.3)
        boat.shape(path("-62 -14, 72 -16, 68 -12, -60 -10"), WHITE)
    reflect(c, rng, level, hsv(hue, rng.uniform(0.6, 0.8), rng.uniform(0.3, 0.65)), 0.62)


def house(c: Canvas, rng: Generator) -> None:
    level = c.height * rng.uniform(0.68, 0.82)
    sky(c, rng, rng.uniform(0.54, 0.64), level)
    leaf = hsv(rng.uniform(0.12, 0.36), 0.55, rng.uniform(0.35, 0.6))
    c.shape(ridge(c, rng, level, 0.1, 4, 4), mix(leaf, WHITE, 0.2))
    blades = relief(c.noise(rng, 30, 3, stretch=0.3), 1.2, 2)
    c.shape(box(-1, level, 3, 3), lit(c.gradient([leaf, mix(leaf, BLACK, 0.35)], level), blades))
    size, x = rng.uniform(0.26, 0.38), c.width * rng.uniform(0.4, 0.6)
    for side in pick(rng, (), (-1,), (1,), (-1, 1)):
        tree = c.at(x + side * rng.uniform(0.42, 0.6), level + 0.02, rng.uniform(0.35, 0.55))
        tree.shape(box(-0.05, -0.5, 0.05, 0), (92, 66, 44), light=0.3)
        for dx, dy in path("-20 -60, 20 -62, 0 -85, 0 -58"):
            tree.shape(oval(dx, dy, 0.3, 0.28), mix(leaf, BLACK, rng.uniform(0.05, 0.3)), light=0.6)
    one_house(c.at(x, level + 0.03, size, 0, pick(rng, -1, 1)), rng)


def one_house(c: Canvas, rng: Generator) -> None:
    """Draws a house, about two units wide, with the middle of its base at (0, 0)."""
    wall = hsv(pick(rng, 0.0, 0.08, 0.12, 0.55), rng.uniform(0.03, 0.5), rng.uniform(0.75, 0.97))
    tiles = hsv(pick(rng, 0.02, 0.04, 0.6, 0.0), pick(rng, 0.1, 0.65, 0.65), rng.uniform(0.3, 0.65))
    tall, peak = rng.uniform(0.75, 1.2), rng.uniform(0.5, 0.85)
    c.shape(box(0.35, -tall - peak * 1.02, 0.57, -tall - 0.1), mix((140, 72, 56), wall, 0.2), light=0.3)
    c.shape(box(-0.85, -tall, 0.85, 0), wall, light=0.35)
    ends = pick(rng, 0.0, 0.62)  # a gable, or a hipped roof
    c.shape(np.array([(-1.05, -tall), (-ends, -tall - peak), (ends, -tall - peak), (1.05, -tall)]), tiles, light=0.4)
    c.shape(box(-1.0, -tall, 1.0, -tall + 0.05), BLACK, opacity=0.3, blur=0.02)
    columns = (-0.5, 0.0, 0.45)
    door = pick(rng, *columns)
    c.shape(box(door - 0.16, -0.55, door + 0.16, 0), hsv(rng.random(), 0.6, 0.4), light=0.4)
    c.shape(oval(door + 0.1, -0.27, 0.025, 0.025), (230, 200, 90))
    for x in columns:
        for y in (-0.42, -tall + 0.32) if tall > 1.05 else (-0.45,):
            if x == door and y > -0.6:
                continue
            c.shape(box(x - 0.17, y - 0.19, x + 0.17, y + 0.17), WHITE)
            c.shape(box(x - 0.14, y - 0.16, x + 0.14, y + 0.14), hsv(0.58, 0.4, 0.5), light=0.6)
            c.shape(box(x - 0.012, y - 0.16, x + 0.012, y + 0.14), WHITE)
            c.shape(box(x - 0.14, y - 0.02, x + 0.14, y + 0.004), WHITE)
