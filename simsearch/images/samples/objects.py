"""Objects of the sample pictures. Each function draws one or several objects of a kind before a background."""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator

from simsearch.images.samples.backgrounds import backdrop, meadow, shadow, sky
from simsearch.images.samples.canvas import Canvas, ridge, spread
from simsearch.images.samples.colours import BLACK, WHITE, hsv, lit, mix, pick, ramp, relief
from simsearch.images.samples.outlines import both, box, curve, oval, path, ribbon
from simsearch.images.samples.scenes import gores


def flower(c: Canvas, rng: Generator) -> None:
    meadow(c, rng)
    hue = pick(rng, 0.0, 0.08, 0.14, 0.6, 0.75, 0.9, 0.95) + rng.uniform(-0.03, 0.03)
    petal, vein = hsv(hue, pick(rng, 0.08, 0.6, 0.8), rng.uniform(0.85, 1)), hsv(hue, 0.8, 0.45)
    heart = hsv(pick(rng, 0.12, 0.14, 0.07), 0.85, pick(rng, 0.45, 0.95))
    count, rows = int(rng.integers(5, 15)), int(rng.integers(1, 3))
    broad = min(0.34, rng.uniform(2.2, 3.0) / count)
    blade = curve(path("10 0, 45 -80, 80 -100, 100 -2, 80 100, 45 80") * (1, broad))
    for x, y, size in spread(c, rng, 4, 0.42):
        bend = rng.uniform(-0.2, 0.2)
        stem = curve([(x, y), (x + bend / 2, y + 0.4), (x + bend, c.height + 0.1)], closed=False)
        c.shape(ribbon(stem, 0.05 * size + 0.01), hsv(rng.uniform(0.26, 0.36), 0.65, 0.4), light=0.3)
        head = c.at(x, y, size, rng.uniform(0, 6))
        for row in range(rows):
            reach = 1 - 0.25 * row
            for angle in (np.arange(count) + row / 2 + rng.normal(0, 0.06, count)) * 2 * math.pi / count:
                one = head.turned(angle)
                one.shape(blade * reach, mix(petal, BLACK, rng.uniform(0, 0.14)), light=0.5)
                one.shape(ribbon([(0.2, 0), (0.75 * reach, 0)], 0.06, 0.01), vein, opacity=0.3)
        head.shape(oval(0, 0, 0.27, 0.27), heart, light=0.7)
        for k in range(30):  # seeds, a golden angle apart
            r, a = 0.043 * math.sqrt(k), 2.4 * k
            head.shape(oval(r * math.cos(a), r * math.sin(a), 0.022, 0.022), hsv(0.09, 0.8, 0.3), opacity=0.6)


def apple(c: Canvas, rng: Generator) -> None:
    level = backdrop(c, rng, rng.random())
    hue, blush = pick(rng, (0.98, 0.04), (0.0, 0.08), (0.96, 0.98), (0.25, 0.2), (0.27, 0.98), (0.14, 0.02))
    skin = ramp(c.noise(rng, 3, 4, stretch=0.2), hsv(hue, 0.85, 0.72), hsv(hue, 0.8, 0.85), hsv(blush, 0.7, 0.9))
    body = curve(both(path("0 -72, 35 -86, 80 -65, 92 -10, 72 55, 32 88, 6 83")))
    for x, y, size in spread(c, rng, 3, 0.36, level):
        shadow(c.at(x, y, size), 0.84, 0.85, 0.16)
        fruit = c.at(x, y, size, rng.normal(0, 0.2), pick(rng, -1, 1))
        fruit.shape(body * (rng.uniform(0.95, 1.08), 1), skin, light=0.75)
        fruit.shape(oval(0, -0.68, 0.3, 0.1), hsv(hue, 0.8, 0.2), opacity=0.6, blur=0.05)
        stalk = curve(path("0 -66, 3 -90, 14 -112"), closed=False)
        fruit.shape(ribbon(stalk, 0.06, 0.1), hsv(0.07, 0.6, 0.3), light=0.4)
        if rng.random() < 0.7:
            fruit.shape(curve(path("6 -92, 30 -118, 68 -112, 50 -90, 25 -84")), hsv(0.3, 0.7, 0.5), light=0.6)
        fruit.shape(oval(0.38 * c.light * fruit.mirror, -0.4, 0.13, 0.2, 0.5), WHITE, opacity=0.6, blur=0.06)


def citrus(c: Canvas, rng: Generator) -> None:
    level = backdrop(c, rng, rng.random())
    hue = pick(rng, 0.06, 0.075, 0.09, 0.145, 0.22) + rng.uniform(-0.008, 0.008)
    pores, pulp = relief(c.noise(rng, 45, 2), 0.35, 2), relief(c.noise(rng, 20, 3), 0.6)
    peel, flesh = lit(hsv(hue, 0.92, 0.97 - max(0, hue - 0.15) * 4), pores), lit(hsv(hue + 0.005, 0.8, 1), pulp)
    count = int(rng.integers(8, 12))
    wedge = curve(path("8 0, 45 -20, 76 -20, 84 0, 76 20, 45 20") * (1, 9.5 / count))
    for index, (x, y, size) in enumerate(spread(c, rng, 4, 0.38, level)):
        shadow(c.at(x, y, size), 0.86, 0.9, 0.18)
        fruit = c.at(x, y, size, rng.uniform(0, 6))
        fruit.shape(oval(0, 0, 1, 1), peel, light=0.7)
        if index and rng.random() < 0.5:  # the first fruit is cut, others may be whole
            fruit.shape(oval(0.3, -0.3, 0.07, 0.07), hsv(0.25, 0.6, 0.35), light=0.5)
            continue
        fruit.shape(oval(0, 0, 0.93, 0.93), mix(hsv(hue, 0.25, 1), WHITE, 0.3))
        for segment in range(count):
            fruit.turned(segment * 2 * math.pi / count).shape(wedge, flesh, light=0.35)
        fruit.shape(oval(0, 0, 0.07, 0.07), hsv(hue, 0.2, 1))


def car(c: Canvas, rng: Generator) -> None:
    level = c.height * rng.uniform(0.58, 0.75)
    sky(c, rng, rng.uniform(0.5, 0.65), level)
    if rng.random() < 0.5:
        hills = ridge(c, rng, level - 0.02, rng.uniform(0.1, 0.3), 4, 4)
        c.shape(hills, hsv(rng.uniform(0.15, 0.4), 0.45, rng.uniform(0.35, 0.6)))
    else:
        wall = lit(hsv(rng.random(), 0.25, rng.uniform(0.5, 0.85)), relief(c.noise(rng, 20, 2), 0.4))
        c.shape(box(-1, level - rng.uniform(0.3, 0.6), 3, level), wall)
    c.shape(box(-1, level, 3, 3), lit(hsv(0.6, 0.05, rng.uniform(0.3, 0.5)), relief(c.noise(rng, 40, 2), 0.5, 2)))
    c.shape(box(-1, level, 3, level + 0.03), (186, 182, 176))
    for x in np.arange(-0.2, c.width, 0.34) + rng.uniform(0, 0.2):
        c.shape(box(x, level + 0.23, x + 0.17, level + 0.25), (236, 230, 206))
    size, way = rng.uniform(0.34, 0.5), pick(rng, -1, 1)
    one_car(c.at(c.width * rng.uniform(0.4, 0.6), level + rng.uniform(-0.02, 0.06), size, 0, way), rng)


def one_car(c: Canvas, rng: Generator) -> None:
    """Draws a car, two units long, that drives to the right, with its doors at (0, 0)."""
    paint = hsv(rng.random(), pick(rng, 0.05, 0.75, 0.9), rng.uniform(0.3, 0.95))
    dark = mix(paint, BLACK, 0.55)
    tail, roof = rng.uniform(-0.86, -0.45), rng.uniform(-0.52, -0.4)
    shadow(c, 0.36, 1.05, 0.09)
    back = [(tail, -0.06), (tail + 0.14, roof + 0.05), (tail + 0.4, roof)]
    cabin = curve([*back, (0.2, roof + 0.01), (0.34, roof + 0.08), (0.62, -0.06), (0.3, 0), (-0.3, 0)])
    c.shape(cabin, paint, light=0.5)
    middle = (tail + 0.6) / 2
    glass = c.gradient([hsv(0.58, 0.25, 0.85), hsv(0.6, 0.5, 0.25)], c.origin[1] - 0.2, c.origin[1])
    c.shape((cabin - (middle, roof / 2)) * (0.86, 0.74) + (middle, roof / 2), glass)
    for post in (middle - 0.04, middle + 0.33 if tail < -0.7 else middle - 0.03):
        c.shape(box(post, roof + 0.03, post + 0.06, -0.02), paint)
    body = path("-100 18, -100 -2, -90 -10, -40 -12, 50 -11, 85 -4, 100 8, 100 22, 85 28, -88 28")
    c.shape(curve(body), paint, light=0.65)
    c.shape(box(-0.96, 0.19, 0.97, 0.23), dark)
    c.shape(box(middle - 0.02, -0.08, middle, 0.19), dark)
    c.shape(box(middle - 0.16, -0.03, middle - 0.06, -0.01), mix(paint, WHITE, 0.6))
    c.shape(oval(0.93, 0.04, 0.06, 0.045), (255, 244, 190), light=0.3)
    c.shape(oval(-0.97, 0.02, 0.04, 0.06), (200, 24, 20), light=0.3)
    for x in (-0.58, 0.58):
        c.shape(oval(x, 0.22, 0.24, 0.24), mix(paint, BLACK, 0.85))
        c.shape(oval(x, 0.24, 0.2, 0.2), (28, 28, 30), light=0.3)
        c.shape(oval(x, 0.24, 0.12, 0.12), (196, 198, 204), light=0.6)
        for a in np.arange(5) * 2 * math.pi / 5:
            c.shape(oval(x + 0.07 * math.cos(a), 0.24 + 0.07 * math.sin(a), 0.024, 0.024), (60, 60, 64))


def clock(c: Canvas, rng: Generator) -> None:
    backdrop(c, rng, rng.random())
    size = rng.uniform(0.26, 0.46)
    x, y = rng.uniform(size, c.width - size), rng.uniform(size, c.height - size)
    face = c.at(x, y, size, rng.normal(0, 0.06))
    rim = hsv(rng.random(), pick(rng, 0.06, 0.5, 0.8), rng.uniform(0.15, 0.8))
    ink, dial = BLACK, hsv(rng.uniform(0.08, 0.6), rng.uniform(0, 0.15), 0.97)
    if rng.random() < 0.2:
        ink, dial = WHITE, mix(BLACK, rim, 0.2)
    face.shape(oval(-0.08 * c.light, 0.1, 1, 1), BLACK, opacity=0.5, blur=0.06)
    face.shape(oval(0, 0, 1, 1), rim, light=0.8)
    face.shape(oval(0, 0, 0.86, 0.86), mix(rim, BLACK, 0.5))
    face.shape(oval(0, 0, 0.84, 0.84), dial, light=0.12)
    minutes = rng.random() < 0.5
    for tick in range(0, 60, 1 if minutes else 5):
        mark = box(-0.028, -0.8, 0.028, -0.64) if tick % 5 == 0 else box(-0.008, -0.8, 0.008, -0.74)
        face.turned(tick * math.pi / 30).shape(mark, ink)
    hour, red = rng.uniform(0, 12), hsv(0.0, 0.85, 0.8)
    hands = ((hour / 12, 0.45, 0.09, ink), (hour % 1, 0.68, 0.06, ink), (rng.random(), 0.74, 0.022, red))
    for turns, long, wide, colour in hands:
        face.turned(turns * 2 * math.pi).shape(ribbon([(0, 0.14), (0, -long)], wide, wide / 2), colour)
    face.shape(oval(0, 0, 0.06, 0.06), red, light=0.5)


def umbrella(c: Canvas, rng: Generator) -> None:
    backdrop(c, rng, rng.uniform(0.5, 0.68))
    size, hue = rng.uniform(0.36, 0.56), rng.random()
    cover = c.at(c.width * rng.uniform(0.4, 0.6), c.height / 2 + 0.03, size, rng.normal(0, 0.35))
    one = hsv(hue, rng.uniform(0.7, 0.95), rng.uniform(0.55, 0.95))
    other = pick(rng, WHITE, hsv(hue + 0.5, 0.7, 0.85), mix(one, BLACK, 0.2), hsv(hue + 0.15, 0.8, 0.95))
    handle = hsv(0.07, 0.6, rng.uniform(0.2, 0.5))
    cover.shape(box(-0.018, -0.85, 0.018, 0.6), (70, 70, 76), light=0.4)
    cover.shape(ribbon(curve(path("0 55, 0 74, 8 86, 19 80, 21 70"), closed=False), 0.06), handle, light=0.4)
    gores(cover, (0.95, 0.0, 0.72), one, other)
    cover.shape(oval(0, -0.76, 0.025, 0.07), handle)
    slant = rng.uniform(-0.3, 0.3)
    for _ in range(pick(rng, 0, 50, 100, 140)):
        x, y, long = rng.uniform(0, c.width), rng.uniform(0, c.height), rng.uniform(0.03, 0.08)
        c.shape(ribbon([(x, y), (x + slant * long, y + long)], 0.004), (226, 236, 246), opacity=0.55)


def balloons(c: Canvas, rng: Generator) -> None:
    sky(c, rng, rng.uniform(0.48, 0.65), c.height, 2)
    size, count = rng.uniform(0.1, 0.2), int(rng.integers(3, 12))
    knot = (c.width * rng.uniform(0.3, 0.7), c.height * rng.uniform(1.0, 1.3))
    across, down = rng.uniform(size, c.width - size, count), rng.uniform(size, c.height * 0.68, count)
    for x, y in zip(across, down, strict=True):
        middle = ((x + knot[0]) / 2 + 0.03, (y + knot[1]) / 2)
        c.shape(ribbon(curve([(x, y + size), middle, knot], closed=False), 0.005), (120, 116, 116))
    for x, y in zip(across, down, strict=True):
        balloon = c.at(x, y, size * rng.uniform(0.9, 1.1), math.atan2(x - knot[0], knot[1] - y) * 0.7)
        colour = hsv(rng.random(), rng.uniform(0.75, 0.95), rng.uniform(0.75, 1))
        balloon.shape(path("0 90, 12 108, -12 108"), mix(colour, BLACK, 0.2))
        balloon.shape(curve(both(path("10 -98, 62 -72, 80 -10, 50 60, 8 94"))), colour, light=0.7, opacity=0.95)
        balloon.shape(oval(0.3 * c.light, -0.5, 0.1, 0.2, -0.5 * c.light), WHITE, opacity=0.75, blur=0.04)


def mushroom(c: Canvas, rng: Generator) -> None:
    meadow(c, rng)
    moss = hsv(rng.uniform(0.08, 0.3), 0.55, rng.uniform(0.2, 0.4))
    c.shape(ridge(c, rng, c.height * 0.86, 0.08, 3, 4), lit(moss, relief(c.noise(rng, 18, 3), 1.6)))
    skin = hsv(pick(rng, 0.0, 0.015, 0.05, 0.08), rng.uniform(0.65, 0.9), rng.uniform(0.45, 0.9))
    count, squat = int(rng.integers(1, 5)), rng.uniform(0.5, 1.0)
    cap = curve(both(path("4 -90, 70 -45, 86 8, 40 14")) * (1, squat) - (0, 1))
    for x in rng.permutation((np.arange(count) + rng.uniform(0.3, 0.7, count)) / count) * c.width:
        size = rng.uniform(0.34, 0.44) * (1.15, 0.9, 0.7, 0.56)[count - 1]
        plant = c.at(x, c.height * rng.uniform(0.86, 0.96), size, rng.normal(0, 0.1))
        shadow(plant, 0.0, 0.5, 0.1)
        plant.shape(curve(both(path("13 -100, 15 -50, 20 2"))), hsv(0.1, 0.12, 0.95), light=0.6)
        plant.shape(curve(both(path("1 -86, 24 -78, 20 -68, 1 -72"))), hsv(0.1, 0.08, 0.98), light=0.4)
        plant.shape(cap, skin, light=0.7)
        plant.shape(oval(0, -0.9, 0.66, 0.07), hsv(0.09, 0.3, 0.75), light=0.3)
        for dx, dy in path("-50 15, -22 50, 5 22, 30 52, 55 16, 3 72, -28 16") * (1, squat) + (0, 1):
            across = rng.uniform(0.06, 0.11)
            plant.shape(oval(dx, -dy, across, across * 0.8), WHITE, light=0.3)
    for x in rng.uniform(0, c.width, 60):
        y, tall = c.height * rng.uniform(0.94, 1.05), rng.uniform(0.06, 0.16)
        blade = curve([(x, y), (x + 0.01, y - tall * 0.6), (x + rng.normal(0, 0.03), y - tall)], closed=False)
        c.shape(ribbon(blade, 0.014, 0.002), mix(moss, hsv(0.25, 0.6, 0.7), rng.random()))


def planet(c: Canvas, rng: Generator) -> None:
    nebula = hsv(rng.random(), rng.uniform(0.5, 0.8), rng.uniform(0.1, 0.4))
    c.image.paste(ramp(c.noise(rng, 2, 4), (4, 4, 12), (8, 8, 24), nebula))
    for _ in range(int(rng.integers(60, 160))):
        size = rng.exponential(0.0022) + 0.0012
        star = mix(WHITE, hsv(rng.random(), 0.6, 1), 0.3)
        c.shape(oval(rng.uniform(0, c.width), rng.uniform(0, c.height), size, size), star)
    turn, tone, tilt = rng.normal(0, 0.45), rng.random(), rng.uniform(0.1, 0.4)
    x, y = c.width * rng.uniform(0.35, 0.65), c.height * rng.uniform(0.38, 0.62)
    ball = c.at(x, y, rng.uniform(0.18, 0.32), turn)
    bands = np.sin(c.grid(turn)[1] * rng.uniform(18, 40) + 2 * c.noise(rng, 2, 4) + rng.uniform(0, 6)) * 0.5 + 0.5
    skin = ramp(bands, hsv(tone, 0.6, 0.6), hsv(tone + 0.03, 0.45, 0.9), hsv(tone + 0.08, 0.2, 1))
    dust = hsv(tone + rng.uniform(-0.1, 0.15), 0.25, 0.9)
    rings = [(inner, outer, rng.uniform(0.5, 0.9)) for inner, outer in ((1.38, 1.52), (1.57, 1.75), (1.82, 1.98))]
    arc = np.linspace(0, math.pi, 60)
    half = np.stack([np.cos(arc), tilt * np.sin(arc)], axis=-1)
    for side in (-1, 1):  # the rings behind the planet, the planet, the rings before it
        for inner, outer, opacity in rings:
            band = np.concatenate([half * outer, half[::-1] * inner]) * (1, side)
            ball.shape(band, mix(dust, BLACK, 0.9 - opacity), opacity=opacity)
        if side < 0:
            ball.shape(oval(0, 0, 1, 1), skin, light=0.95)
