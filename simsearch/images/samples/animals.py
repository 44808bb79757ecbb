"""Animals of the sample pictures. Each function draws one or several animals of a kind before a background."""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator

from simsearch.images.samples.backgrounds import backdrop, meadow
from simsearch.images.samples.canvas import Canvas, ridge, spread
from simsearch.images.samples.colours import BLACK, WHITE, Colour, hsv, lit, mix, pick, ramp, relief
from simsearch.images.samples.outlines import both, curve, oval, path, ribbon


def fish(c: Canvas, rng: Generator) -> None:
    hue = rng.uniform(0.44, 0.63)
    c.image.paste(c.gradient([hsv(hue - 0.03, 0.55, 0.9), hsv(hue, 0.8, 0.55), hsv(hue + 0.03, 0.9, 0.25)]))
    x, y = c.grid(rng.uniform(-0.4, 0.4))
    rays = np.sin(x * 14) * np.sin(x * 5 + 2) * 0.5
    c.cover(rays.clip(0, 1) * (1 - y / c.height).clip(0, 1), hsv(hue - 0.05, 0.2, 1))
    if rng.random() < 0.5:
        c.shape(ridge(c, rng, c.height * 0.98, 0.15, 3, 4), lit(hsv(0.11, 0.35, 0.7), relief(c.noise(rng, 20, 3), 1)))
    skin = hsv(pick(rng, 0.05, 0.12, 0.15, 0.6, 0.95), rng.uniform(0.55, 0.9), rng.uniform(0.75, 1))
    band, bands = pick(rng, WHITE, BLACK, hsv(0.6, 0.8, 0.5)), int(rng.integers(0, 5))
    deep, way = rng.uniform(0.36, 0.6), pick(rng, -1, 1)
    for px, py, size in spread(c, rng, 5, 0.42):
        one_fish(c.at(px, py, size, rng.normal(0, 0.15), way), skin, [band] * bands, deep)
    for _ in range(int(rng.integers(0, 14))):
        size = rng.uniform(0.006, 0.02)
        c.shape(oval(rng.uniform(0, c.width), rng.uniform(0, c.height), size, size), WHITE, opacity=0.4)


def one_fish(c: Canvas, skin: Colour, bands: list[Colour], deep: float) -> None:
    """Draws a fish, two units long, that looks to the right.

    bands: the colours of the stripes on its body. deep: half the height of its body.
    """
    fin = mix(skin, BLACK, 0.25)
    c.shape(curve(path("-60 0, -102 -50, -100 -15, -90 0, -100 15, -102 50")), fin, light=0.4)
    c.shape(curve(path("35 -80, 10 -145, -35 -125, -45 -50") * (1, deep)), fin, light=0.4)
    c.shape(curve(path("10 80, -10 140, -40 110, -30 60") * (1, deep)), fin, light=0.4)
    body = path("100 2, 70 -70, 20 -100, -30 -70, -72 -15, -72 15, -30 70, 20 100, 70 65") * (1, deep)
    c.shape(curve(body), skin, light=0.6)
    for index, band in enumerate(bands):
        x = 0.42 - index * 0.28
        tall = deep * (0.93 - 0.75 * abs(x - 0.15) ** 1.5)
        c.shape(curve(path("-7 -100, 7 -100, 11 0, 7 100, -7 100, -3 0") * (1, tall) + (x, 0)), band, light=0.4)
    c.shape(curve(path("30 8, -10 0, -12 25, 10 28")), fin, light=0.5)
    c.shape(oval(0.68, -0.1, 0.1, 0.1), WHITE)
    c.shape(oval(0.7, -0.1, 0.06, 0.06), BLACK)


def butterfly(c: Canvas, rng: Generator) -> None:
    if rng.random() < 0.5:
        meadow(c, rng)
    else:
        backdrop(c, rng, rng.random())
    hue, breadth = pick(rng, 0.06, 0.12, 0.58, 0.75, 0.0, 0.45), rng.uniform(0.75, 1.05)
    wing, edge = hsv(hue, rng.uniform(0.5, 0.95), rng.uniform(0.8, 1)), mix(BLACK, hsv(hue, 0.8, 0.3), rng.random())
    fan = np.linspace(-0.9, 0.9, int(rng.integers(2, 6)))
    lower = curve(path("3 2, 40 2, 78 20, 72 62, 40 78, 14 40")) * (breadth, 1)
    upper = curve(path("3 -10, 30 -60, 78 -86, 100 -60, 80 -12, 35 6")) * (breadth, 1)
    middles = path("42 36, 55 -40") * (breadth, 1)
    wings = ((lower, middles[0], 0.35), (upper, middles[1], -0.5))  # outline, middle, place of the spots
    for x, y, size in spread(c, rng, 3, 0.44):
        body = c.at(x, y, size, rng.normal(0, 0.4))
        for half in (body.mirrored(-1), body):
            for outline, middle, way in wings:
                half.shape(outline, edge, light=0.3)
                half.shape((outline - middle) * 0.8 + middle * 0.97, wing, light=0.55)
                for tip in outline[6:-6:7]:
                    half.shape(ribbon([(0.03, 0), tip], 0.012, 0.02), edge, opacity=0.6)
                for angle in fan + way:
                    across, down = 0.36 * breadth * math.cos(angle), 0.36 * math.sin(angle)
                    half.shape(oval(middle[0] + across, middle[1] + down, 0.05, 0.05), WHITE, opacity=0.85)
            half.shape(ribbon(curve(path("2 -30, 10 -60, 24 -78"), closed=False), 0.018), BLACK)
        body.shape(curve(path("0 -40, 7 -20, 6 20, 0 55, -6 20, -7 -20")), (48, 38, 34), light=0.6)


def ladybird(c: Canvas, rng: Generator) -> None:
    hue, rib = rng.uniform(0.2, 0.38), rng.uniform(0.2, 0.6) * c.height
    greens = hsv(hue, 0.75, 0.35), hsv(hue, 0.65, rng.uniform(0.5, 0.75)), hsv(hue - 0.04, 0.55, 0.85)
    c.image.paste(lit(ramp(c.noise(rng, 4, 4), *greens), relief(c.noise(rng, 14, 3), 0.6)))
    x, y = c.grid(rng.uniform(-1, 1))
    side_veins = 0.6 - 18 * np.abs(((x - 1.1 * np.abs(y - rib)) * 5) % 1 - 0.5)
    c.cover(np.maximum(side_veins, 1 - 90 * np.abs(y - rib)), hsv(hue - 0.05, 0.35, 0.85))
    shell = hsv(pick(rng, 0.0, 0.015, 0.04, 0.1), rng.uniform(0.85, 0.95), rng.uniform(0.75, 0.95))
    spots = path(pick(rng, "0 42", "40 42, -45 42", "45 42, -5 52, -55 36", "48 30, 10 58, -20 28, -60 36"))
    for px, py, size in spread(c, rng, 3, 0.3):
        bug = c.at(px, py, size, rng.uniform(0, 6.3))
        bug.shape(oval(0.1, 0.1, 1, 0.95), BLACK, opacity=0.5, blur=0.1)
        bug.shape(oval(0.86, 0, 0.36, 0.42), BLACK, light=0.5)
        for side in (-1, 1):
            for reach in (-0.55, 0.0, 0.5):
                leg = np.array([(reach * 0.8, 0.6), (reach, 1.02), (reach * 1.25 + 0.1, 1.2)])
                bug.shape(ribbon(curve(leg * (1, side), closed=False), 0.07), BLACK)
            bug.shape(ribbon(curve(path("100 15, 125 30, 135 45") * (1, side), closed=False), 0.04), BLACK)
            bug.shape(oval(0.98, side * 0.24, 0.1, 0.1), WHITE)
        bug.shape(oval(-0.05, 0, 0.92, 0.85), shell, light=0.75)
        bug.shape(ribbon(path("-97 0, 86 0"), 0.04), BLACK)
        for along, aside in np.vstack((spots, spots * (1, -1))):
            bug.shape(oval(along, aside, 0.15, 0.15), BLACK, light=0.25)
        bug.shape(oval(0.72, 0, 0.12, 0.2), BLACK)


def cat(c: Canvas, rng: Generator) -> None:
    backdrop(c, rng, rng.random())
    reds, greys = ((0.07, 0.65, 0.85), (0.07, 0.4, 0.55), (0.09, 0.35, 0.85)), ((0.6, 0.06, 0.5), (0.05, 0.2, 0.2))
    hue, saturation, value = pick(rng, *reds, *greys, (0.08, 0.1, 0.95))
    coat = hsv(hue, saturation, value * rng.uniform(0.9, 1.05))
    fur = lit(coat, relief(c.noise(rng, 40, 2, stretch=0.3), 0.5, 2))
    stripe, pale, pink = mix(coat, BLACK, 0.5), mix(coat, WHITE, 0.65), hsv(0.98, 0.4, 0.8)
    eyes, slit = hsv(pick(rng, 0.13, 0.2, 0.3, 0.55), rng.uniform(0.5, 0.8), 0.9), rng.uniform(0.03, 0.11)
    body = c.at(c.width * rng.uniform(0.36, 0.64), c.height * rng.uniform(0.42, 0.56), rng.uniform(0.26, 0.4))
    body.shape(curve(both(path("75 50, 105 160, 110 260"))), fur, light=0.6)
    body.shape(oval(0, 1.4, 0.4, 0.7), pale, opacity=0.7, blur=0.1)
    head = body.turned(rng.normal(0, 0.16))
    for half in (head.mirrored(-1), head):
        half.shape(curve(path("25 -62, 62 -98, 84 -126, 93 -80, 88 -25")), fur, light=0.4)
        half.shape(curve(path("45 -62, 66 -88, 80 -105, 83 -70, 78 -40")), pink, light=0.3)
    head.shape(curve(both(path("5 -78, 60 -68, 98 -10, 85 42, 40 75, 5 80"))), fur, light=0.55)
    if rng.random() < 0.65:
        for dx, tip in path("-20 -42, 0 -34, 20 -42"):
            head.shape(curve([(dx - 0.04, -0.7), (dx + 0.04, -0.7), (dx * 0.7, tip)]), stripe)
    for half in (head.mirrored(-1), head):
        half.shape(oval(0.2, 0.38, 0.24, 0.2), pale, light=0.3)
        half.shape(oval(0.4, -0.08, 0.22, 0.19, -0.25), BLACK)
        half.shape(oval(0.4, -0.08, 0.195, 0.165, -0.25), eyes, light=0.4)
        half.shape(oval(0.4, -0.08, slit, 0.15), BLACK)
        half.shape(oval(0.4 + 0.07 * c.light * half.mirror, -0.14, 0.04, 0.04), WHITE)
        for whisker in ("30 33, 75 20, 125 2", "30 37, 75 30, 125 26", "30 41, 75 40, 125 50"):
            half.shape(ribbon(curve(path(whisker), closed=False), 0.018, 0.005), WHITE)
        half.shape(ribbon(curve(path("0 32, 5 46, 20 48"), closed=False), 0.025), stripe)
    head.shape(curve(both(path("11 18, 3 31"))), pink, light=0.3)
