"""Which pictures look the same: difference hashes, and those within a few bits of one another."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from PIL import Image


def difference_hash(picture: Image.Image) -> int:
    """64 bits: 8 rows of 9 grey means, whether each is darker than the next."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    return int.from_bytes(np.packbits(grey[:, :-1] < grey[:, 1:]).tobytes(), "big")


class Near:
    """A set of 64-bit hashes that finds one within `bits` bits of another.

    Each hash is cut into bits + 1 bands: two hashes that differ in at most `bits` bits agree in one of them.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        edges = [64 * n // (bits + 1) for n in range(bits + 2)]
        self.bands = [(low, (1 << high - low) - 1) for low, high in pairwise(edges)]
        self.tables: list[dict[int, list[int]]] = [{} for _ in self.bands]

    def add(self, value: int) -> None:
        for (shift, mask), table in zip(self.bands, self.tables, strict=True):
            table.setdefault(value >> shift & mask, []).append(value)

    def __contains__(self, value: int) -> bool:
        return any(
            (other ^ value).bit_count() <= self.bits
            for (shift, mask), table in zip(self.bands, self.tables, strict=True)
            for other in table.get(value >> shift & mask, ())
        )
