"""Images and runs for tests of extraction."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (40, 30), kind: str = "PNG", **options: Any) -> bytes:
    """A picture of random smooth colours, as a file."""
    colours = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(out, kind, **options)
    return out.getvalue()
