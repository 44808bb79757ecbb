"""Images drawn for tests: four quarters of random colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("amber", "blue", "green", "rose")
EACH = 6


def draw(path: Path, seed: int, kind: str = "PNG") -> Path:
    """A picture of four quarters of random colours; another seed gives another picture."""
    colours = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colours.repeat(8, 0).repeat(8, 1)).save(path, kind)
    return path
