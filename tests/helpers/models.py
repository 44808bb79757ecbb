"""Models whose features can be checked by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from simsearch.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    from numpy.typing import NDArray


class CellModel:
    """The mean red, green and blue, from 0 to 1, of each quarter of a 16 x 16 picture: 12 dimensions.

    computed: how many images went through it.
    """

    name, weights_sha256, engine = "cells", "ce" * 32, "numpy"
    dimension = 12
    recipe = Preprocessing(resize=16, crop=16)
    distances: tuple[float, ...] = ()

    def __init__(self) -> None:
        self.computed = 0

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.computed += len(pixels)
        cells: NDArray[np.float32] = pixels.reshape(-1, 2, 8, 2, 8, 3).mean((2, 4), dtype=np.float32)  # (B, 2, 2, 3)
        return cells.reshape(len(cells), 12) / np.float32(255)


class Colours(CellModel):
    """The same under another name and with other weights."""

    name, weights_sha256 = "colours", "c0" * 32
