"""Which pictures look the same: difference hashes within a few bits of one another, and colours that are close."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from PIL import Image


def difference_hash(picture: Image.Image) -> int:
    """64 bits: 8 rows of 9 grey means, whether each is darker than the next."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    return int.from_bytes(np.packbits(grey[:, :-1] < grey[:, 1:]).tobytes(), "big")


def mean_colours(picture: Image.Image) -> bytes:
    """48 bytes: the mean red, green and blue of the 4 x 4 parts of a picture."""
    return picture.convert("RGB").resize((4, 4), Image.Resampling.BOX).tobytes()


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

    def near(self, value: int) -> Iterator[int]:
        """The hashes of the set within `bits` bits of `value`, some of them several times."""
        for (shift, mask), table in zip(self.bands, self.tables, strict=True):
            yield from (
                other for other in table.get(value >> shift & mask, ()) if (other ^ value).bit_count() <= self.bits
            )

    def __contains__(self, value: int) -> bool:
        return next(self.near(value), None) is not None


class Alike:
    """The pictures that were kept: a picture is alike if its hash is near one of theirs, and so are its colours.

    Goods on white of one shape, such as shirts, have nearly the same hash, whatever their colours.

    bits: see `Near`. levels: the largest difference, of 255, between the mean colours of two pictures that are alike.
    """

    def __init__(self, bits: int, levels: int) -> None:
        self.hashes, self.levels = Near(bits), levels
        self.colours: dict[int, list[np.ndarray]] = {}

    def add(self, value: int, colours: bytes) -> None:
        if value not in self.colours:
            self.hashes.add(value)
        self.colours.setdefault(value, []).append(np.frombuffer(colours, np.uint8).astype(np.int16))

    def has(self, value: int, colours: bytes) -> bool:
        own = np.frombuffer(colours, np.uint8).astype(np.int16)
        return any(
            np.abs(own - other).max() <= self.levels
            for near in set(self.hashes.near(value))
            for other in self.colours[near]
        )
