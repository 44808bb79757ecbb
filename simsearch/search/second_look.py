"""Compares the pixels of pictures whose features are near, to find out which pictures are copies.

`simsearch.images.likeness` compares the pixels. If one picture of a pair cannot be read, is too large, or is in a
remote source, the distance of the features decides instead. (Pictures are not downloaded for a comparison.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from simsearch.common.machine import MemoryBudget, available_cores
from simsearch.errors import ImageError
from simsearch.images import decode, likeness, memory
from simsearch.images.sources import recorded
from simsearch.images.sources.remote import addresses

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.images.sources.base import Source
    from simsearch.storage.reader import Item

VIEW_BYTES = 3 * likeness.SIDE**2
"""Bytes of a view, the small version of a picture that is compared."""

VIEWS = 8192
"""Number of views that are kept in memory."""

DECODING_BYTES = 256 << 20
"""Memory for the pictures that are decoded at the same time, in bytes; a picture that needs more is decoded alone."""


@dataclass(frozen=True)
class Allowance:
    """The limits for reading pictures. If a picture exceeds them, the distance of the features decides.

    budget: the limit of the memory for decoding. Before a picture is decoded, the budget's method `hold` waits for free
    memory. The `hold` of a subclass of `MemoryBudget` may raise ImageError instead; the picture is then not read.
    largest: the largest number of pixels of a picture.
    views: the number of views to keep in memory. A view is the small version of a picture that is compared.
    """

    budget: MemoryBudget = field(default_factory=lambda: MemoryBudget(DECODING_BYTES))
    largest: int = decode.LARGEST_PIXELS
    views: int = VIEWS


class SecondLook:
    """Decides which pairs of pictures are copies. The caller gives each picture a number, its place.

    limit: the largest distance of the features at which a pair counts as copies if one of its pictures cannot be read.
    item: takes a place; returns the item there and the item's source. It is called by one thread at a time.
    allowance: the limits for reading pictures; None for the default limits.
    """

    def __init__(
        self, limit: float, item: Callable[[int], tuple[Item, Source]], allowance: Allowance | None = None
    ) -> None:
        self._limit = limit
        self._item = item
        self._copies: set[tuple[int, int]] = set()
        self._views: OrderedDict[int, NDArray[np.uint8] | None] = OrderedDict()
        self._allowance = allowance or Allowance()

    def __call__(self, pairs: NDArray[np.int64], distances: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Returns True for each pair of copies, (n,). pairs: (n, 2) places. distances: (n,) of the pairs' features."""
        copies = distances <= self._limit
        keys = [(min(pair), max(pair)) for pair in pairs.tolist()]
        new = sorted(set(keys) - self._copies)
        views = self._read(sorted({place for key in new for place in key}))
        seen = [(a, b) for a, b in new if a in views and b in views]
        if seen:
            first, second = (np.stack([views[place] for place in column]) for column in zip(*seen, strict=True))
            agree = likeness.are_copies(first, second).tolist()
            self._copies.update(key for key, yes in zip(seen, agree, strict=True) if yes)
        unseen = set(new) - set(seen)
        for place, key in enumerate(keys):
            if key not in unseen:
                copies[place] = key in self._copies
        return copies

    def _read(self, places: list[int]) -> dict[int, NDArray[np.uint8]]:
        """Returns a view, the small version, of the picture at each of the given places; the keys are the places.

        Leaves out pictures that cannot be read.
        """
        missing = [(place, *self._item(place)) for place in places if place not in self._views]
        with ThreadPoolExecutor(available_cores()) as threads:
            read = threads.map(lambda each: self._view(*each[1:]), missing)
            self._views.update(zip((place for place, *_ in missing), read, strict=True))
        found = {}
        for place in places:
            self._views.move_to_end(place)
            if (view := self._views[place]) is not None:
                found[place] = view
        while len(self._views) > self._allowance.views:
            self._views.popitem(last=False)
        return found

    def _view(self, item: Item, source: Source) -> NDArray[np.uint8] | None:
        largest = self._allowance.largest
        if addresses.is_kind(source.kind) or item.width * item.height > largest:
            return None
        try:
            with (
                recorded.open_recorded(source, item.path, item.digest, decodes=False) as file,
                self._allowance.budget.hold(memory.peak_memory(file, likeness.DECODED)),
            ):
                return likeness.view(decode.decode_image(file, likeness.DECODED, largest).image)
        except ImageError:
            return None
