"""Draws a seeded set of labelled pictures, so that the engine can be tried without any data.

There are thirty kinds: scenes and textures (`scenes`, `textures`), objects and animals (`objects`, `animals`). Pictures
of one kind show the same things and differ in their number, colours, places, sizes and tilts, and in light and
background, so "same kind" is a ground truth that a search can be measured against. A picture depends only on its seed,
its kind and its number among the pictures of its kind: a larger set begins with the pictures of a smaller one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

from simsearch.errors import UsageError
from simsearch.images.samples import animals, objects, scenes, textures
from simsearch.images.samples.canvas import Canvas

__all__ = ["KINDS", "draw", "generate"]

KINDS: dict[str, Callable[[Canvas, Generator], None]] = {
    "apple": objects.apple,
    "balloons": objects.balloons,
    "beach": scenes.beach,
    "bricks": textures.bricks,
    "butterfly": animals.butterfly,
    "car": objects.car,
    "cat": animals.cat,
    "checkerboard": textures.checkerboard,
    "citrus": objects.citrus,
    "clock": objects.clock,
    "clouds": scenes.clouds,
    "desert": scenes.desert,
    "dots": textures.dots,
    "fish": animals.fish,
    "flower": objects.flower,
    "forest": scenes.forest,
    "house": scenes.house,
    "ladybird": animals.ladybird,
    "marble": textures.marble,
    "mountains": scenes.mountains,
    "mushroom": objects.mushroom,
    "planet": objects.planet,
    "sailboat": scenes.sailboat,
    "skyline": scenes.skyline,
    "snow": scenes.snow,
    "sunset": scenes.sunset,
    "tartan": textures.tartan,
    "umbrella": objects.umbrella,
    "wood": textures.wood,
    "zebra": textures.zebra,
}

LANDSCAPE, PORTRAIT = (256, 192), (192, 256)
PORTRAIT_EVERY = 4  # the last of each four pictures of a kind is in portrait format
FINENESS = 2  # pictures are drawn this many times larger, then reduced, for smooth edges


def draw(kind: str, number: int, seed: int = 0, size: tuple[int, int] = LANDSCAPE) -> Image.Image:
    """Draws an RGB picture of a kind, of exactly `size` (width, height). The same arguments give the same picture.

    kind: a key of `KINDS`. number: the picture's number among the pictures of its kind, from 0.
    Raises UsageError for an unknown kind, a negative number or seed, and a size below 16 x 16.
    """
    if kind not in KINDS:
        raise UsageError(f"no kind of picture is called {kind!r}", hint=f"use one of: {', '.join(KINDS)}")
    if number < 0 or seed < 0:
        raise UsageError(f"a picture's number and seed cannot be negative: {min(number, seed)}")
    if min(size) < 16:
        raise UsageError(f"a picture of {size[0]} x {size[1]} pixels is too small to draw", hint="use 16 x 16 or more")
    rng = np.random.default_rng((seed, zlib.crc32(kind.encode()), number))
    paper = Image.new("RGB", (size[0] * FINENESS, size[1] * FINENESS))
    KINDS[kind](Canvas(paper, light=int(rng.choice((-1, 1)))), rng)
    return develop(paper.reduce(FINENESS), rng)


def develop(image: Image.Image, rng: Generator) -> Image.Image:
    """Adds the marks of a camera: exposure, a colour cast, darker corners and grain."""
    pixels = np.asarray(image, dtype=np.float32)  # (H, W, 3)
    height, width, _ = pixels.shape
    y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)[None]
    gain = rng.uniform(0.88, 1.1) * rng.normal(1, 0.025, 3)
    corners = 1 - rng.uniform(0, 0.16) * (x**2 + y**2)
    grain = rng.standard_normal((height, width, 1), dtype=np.float32) * rng.uniform(1, 4)
    return Image.fromarray((pixels * gain * corners[..., None] + grain).clip(0, 255).astype(np.uint8))


def generate(
    directory: Path, count: int = 600, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> int:
    """Writes `count` pictures to directory/KIND/KIND-000.jpg and so on, one of each kind in turn. Returns `count`.

    progress: called with (done, count) after each picture.
    Raises UsageError if `count` is below 1, or if the directory exists and is not empty.
    """
    if count < 1:
        raise UsageError(f"cannot draw {count} pictures", hint="ask for one or more")
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        raise UsageError(f"{directory} exists and is not an empty directory", hint="name a new directory")
    names = list(KINDS)
    for done in range(count):
        kind, number = names[done % len(names)], done // len(names)
        upright = number % PORTRAIT_EVERY == PORTRAIT_EVERY - 1
        folder = directory / kind
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{kind}-{number:03d}.jpg"
        partial = target.with_suffix(".part")
        draw(kind, number, seed, PORTRAIT if upright else LANDSCAPE).save(partial, "JPEG", quality=90)
        partial.replace(target)
        if progress is not None:
            progress(done + 1, count)
    return count
